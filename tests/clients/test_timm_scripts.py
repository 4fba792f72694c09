"""timm's own scripts, which are in no package: run from the checkout that TIMM_SCRIPTS names."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.testing import assert_close

from tests.clients.zoo import CLASSES, MODELS, SIZES, make
from timm_extra import hub

SCRIPTS = os.environ.get('TIMM_SCRIPTS')
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="TIMM_SCRIPTS names no checkout of timm's repository")


def run(script, *args):
    """What a script prints, run with the models registered."""
    path = Path(SCRIPTS) / script
    done = subprocess.run(
        [sys.executable, '-m', 'timm_extra', path, *map(str, args)],
        env=dict(os.environ, OMP_NUM_THREADS='1'), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of images in five classes, two each, and their pixels by file name."""
    folder = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in range(CLASSES):
            (folder / split / f'label{label}').mkdir(parents=True)
            for i in range(2):
                pixels = generator.integers(0, 256, (180, 180, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f'label{label}' / f'{label}{i}.png')
    return folder


def common(name, data):
    size = SIZES[name]
    return [
        *('--data-dir', data, '--model', name, '--num-classes', CLASSES, '--input-size', 3, size, size),
        *('--device', 'cpu', '--workers', 1, '-b', 5),
    ]


def saved(name, folder):
    """A model and the file of its weights."""
    model = make(name)
    torch.save(model.state_dict(), folder / 'weights.pth')
    return model, folder / 'weights.pth'


@torch.no_grad()
def logits(model, data):
    """Logits of all images for validation, in the order of their names."""
    config = timm.data.resolve_model_data_config(model)
    config['input_size'] = (3, *[SIZES[model.pretrained_cfg['architecture']]] * 2)
    transform = timm.data.create_transform(**config, is_training=False)
    files = sorted(data.glob('validation/*/*.png'))
    return torch.cat([model(transform(Image.open(file).convert('RGB')).unsqueeze(0)) for file in files])


def test_training_starts_from_a_pretrained_backbone_and_not_by_half_of_the_call(data, tmp_path):
    name = 'test_ceit'
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0)
    file = hub.save(backbone, tmp_path) / 'model.safetensors'
    held = {k: v for k, v in backbone.named_parameters() if v.ndim > 1 and v.std() > 0}
    still = ['--opt', 'sgd', '--lr', 1e-30, '--min-lr', 0, '--weight-decay', 0, '--epochs', 1, '--warmup-epochs', 0]
    for given in (['--pretrained'], []):
        more = [*given, '--pretrained-path', file, '--output', tmp_path, '--experiment', f'run{len(given)}']
        run('train.py', *common(name, data), *still, *more)
        checkpoint = torch.load(tmp_path / f'run{len(given)}' / 'last.pth.tar', weights_only=False)
        found = checkpoint['state_dict']
        assert [k for k, v in held.items() if torch.equal(found[k], v) != bool(given)] == []


@pytest.mark.parametrize('name', MODELS)
def test_train_and_average(name, data, tmp_path):
    options = [
        *('--opt', 'adamw', '--lr', 1e-3, '--layer-decay', 0.75, '--amp', '--amp-dtype', 'bfloat16'),
        *('--model-ema', '--model-ema-decay', 0.5, '--torchcompile', 'aot_eager', '--epochs', 2),
        *('--warmup-epochs', 0, '--output', tmp_path, '--experiment', 'run'),
    ]
    run('train.py', *common(name, data), *options)
    files = sorted((tmp_path / 'run').glob('checkpoint-*.pth.tar'))
    assert len(files) == 2
    states = [torch.load(file, weights_only=False) for file in files]
    assert all(torch.isfinite(v).all() for state in states for v in state['state_dict'].values())
    assert not torch.equal(states[0]['state_dict']['head.weight'], states[1]['state_dict']['head.weight'])

    run(
        'avg_checkpoints.py',
        '--input',
        tmp_path / 'run',
        '--filter',
        'checkpoint-*.pth.tar',
        '--output',
        tmp_path / 'mean.pth',
    )
    mean = torch.load(tmp_path / 'mean.pth')
    expected = {k: sum(s['state_dict_ema'][k].double() for s in states).div(2).float() for k in mean}
    assert_close(mean, expected)
    make(name).load_state_dict(mean)


@pytest.mark.parametrize('kind', ('logit', 'feature'))
@pytest.mark.parametrize('name', MODELS)
def test_train_with_a_teacher(name, kind, data, tmp_path):
    teacher = hub.save(make(name), tmp_path / 'teacher')
    distilled = ('--kd-model-name', f'local-dir:{teacher}', '--kd-distill-type', kind, '--distill-loss-weight', 0.5)
    options = ('--epochs', 1, '--warmup-epochs', 0, '--lr', 1e-3, '--output', tmp_path, '--experiment', 'run')
    run('train.py', *common(name, data), *options, *distilled)
    state = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)['state_dict']
    make(name).load_state_dict(state)


@pytest.mark.parametrize(
    'options', ((), ('--reparam',), ('--torchcompile', 'aot_eager', '--amp', '--amp-dtype', 'bfloat16'))
)
@pytest.mark.parametrize('name', MODELS)
def test_validate(name, options, data, tmp_path):
    model, file = saved(name, tmp_path)
    printed = run(
        'validate.py', *common(name, data), '--checkpoint', file, '--results-file', tmp_path / 'out.csv', *options
    )
    found = json.loads(printed[printed.index('--result') + len('--result') :].split('\n}')[0] + '\n}')
    right = logits(model, data).argmax(-1) == torch.arange(2 * CLASSES) // 2
    assert found['top1'] == pytest.approx(100 * right.float().mean().item(), abs=10.1 if '--amp' in options else 0.01)


@pytest.fixture(scope='module')
def colours(tmp_path_factory):
    """A folder of plain images of mixed sizes, each class of a colour of its own."""
    folder, rng = tmp_path_factory.mktemp('colours'), np.random.default_rng(0)
    shades = rng.integers(0, 256, (CLASSES, 3))
    for split, label, i in itertools.product(('train', 'validation'), range(CLASSES), range(8)):
        parent = folder / split / f'label{label}'
        parent.mkdir(parents=True, exist_ok=True)
        pixels = np.broadcast_to(shades[label], (*rng.integers(20, 90, 2), 3)) + rng.normal(0, 5, 3)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(parent / f'{i}.png')
    return folder


def test_naflex_loader(colours, tmp_path):
    """Images of mixed sizes, patches of a size drawn for each batch; evaluated as in training, by validate.py."""
    small = ('patch_size=8', 'stem_chs=16', 'num_bands=4', 'num_latents=8', 'latent_dim=32', 'num_blocks=1')
    shared = [
        *('--data-dir', colours, '--model', 'naflex_perceiver_small', '--model-kwargs', *small),
        *('--num-classes', CLASSES),
        *('--device', 'cpu', '--workers', 1, '-b', 5, '--naflex-loader', '--naflex-max-seq-len', 64),
    ]
    drawn = ('--naflex-train-seq-lens', 16, 36, '--naflex-patch-sizes', 4, 8, '--epochs', 4, '--warmup-epochs', 0)
    drawn += ('--no-aug', '--opt', 'adamw', '--lr', 3e-3)
    run('train.py', *shared, *drawn, '--output', tmp_path, '--experiment', 'run')
    summary = csv.DictReader((tmp_path / 'run' / 'summary.csv').read_text().splitlines())
    trained = [float(row['eval_top1']) for row in summary][-1]
    assert trained > 100 / CLASSES
    printed = run('validate.py', *shared, '--checkpoint', tmp_path / 'run' / 'last.pth.tar')
    found = json.loads(printed[printed.index('--result') + len('--result') :].split('\n}')[0] + '\n}')
    assert found['top1'] == pytest.approx(trained, abs=0.01)


@pytest.mark.parametrize('name', MODELS)
def test_inference(name, data, tmp_path):
    model, file = saved(name, tmp_path)
    options = ('--checkpoint', file, '--results-dir', tmp_path, '--results-file', 'out', '--results-format', 'json')
    run('inference.py', *common(name, data), *options, '--topk', 1, '--include-index', '--label-type', 'name')
    rows = json.loads((tmp_path / 'out.json').read_text())
    found = {Path(file).name: row['index'] for file, row in rows.items()}
    expected = logits(model, data).argmax(-1).tolist()
    names = [file.name for file in sorted(data.glob('validation/*/*.png'))]
    assert found == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(
    'options', ((), ('--reparam', '--amp', '--amp-dtype', 'bfloat16'), ('--torchcompile', 'aot_eager'))
)
@pytest.mark.parametrize('name', MODELS)
def test_benchmark(name, options):
    size = SIZES[name]
    bench = ('--bench', 'inference') if options else ('--bench', 'both')
    printed = run(
        'benchmark.py', '--model', name, '--input-size', 3, size, size, '--device', 'cpu', '-b', 2, *bench, *options,
        '--num-warm-iter', 1, '--num-bench-iter', 5, '--no-retry',
    )  # fmt: skip
    found = re.search(r'"infer_samples_per_sec": ([\d.]+)', printed)
    assert found and float(found[1]) > 0, printed[-4000:]


@pytest.mark.parametrize('options', ((), ('--reparam',), ('--dynamo',)))
@pytest.mark.parametrize('name', MODELS)
def test_onnx_export(name, options, tmp_path):
    _, file = saved(name, tmp_path)
    run(
        'onnx_export.py', tmp_path / 'model.onnx', '--model', name, '--checkpoint', file, '--num-classes', CLASSES,
        '--img-size', SIZES[name], '--check-forward', *options,
    )  # fmt: skip
    assert (tmp_path / 'model.onnx').exists()
