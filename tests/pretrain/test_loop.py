"""The loop: what it leaves behind, what it refuses, how it resumes, how it shares work."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import timm_extra
from timm_extra.pretrain import PretrainConfig, pretrain
from timm_extra.pretrain.located import Located
from timm_extra.pretrain.recipes import Schedule, build_optimizer, settings
from timm_extra.pretrain.tasks import BYOL, SimSiam, without_batchnorm
from timm_extra.pretrain.views import BYOL_VIEWS, RandomView
from timm_extra.training import checkpoints
from timm_extra.training.log import read_log

sys.path.insert(0, str(Path(__file__).parent))
from train import STEPS, equal, images, losses, run

pytestmark = pytest.mark.slow

ENV = dict(
    os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(Path(timm_extra.__file__).parents[1])
)


def command(output, method='byol', batch_size=8, *more, launcher=(sys.executable,)):
    return [*launcher, str(Path(__file__).with_name('train.py')), str(output), method, str(batch_size), *more]


def events(folder, name):
    """Values that TensorBoard shows, by step."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return {event.step: event.value for event in found.Scalars(name)}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A training that nothing interrupted."""
    output = tmp_path_factory.mktemp('finished')
    subprocess.run(command(output), env=ENV, check=True, capture_output=True)
    return output


@pytest.mark.parametrize('method', ['byol', 'simsiam'])
def test_it_leaves_what_it_says(method, tmp_path):
    done = run(tmp_path, method, probe=(images(), images()), probes=('knn', 'linear'), log_with='tensorboard')
    assert (done.steps, done.skipped, done.folder) == (STEPS, 0, tmp_path)
    rows = read_log(tmp_path / 'log.csv')
    assert [int(r['step']) for r in rows if r['loss']] == list(range(STEPS))
    assert [int(r['step']) for r in rows if r['knn']] == [7, 15, 23]
    assert done.accuracies == dict(knn=float(rows[-1]['knn']), linear=float(rows[-1]['linear']))
    best = max((float(r['knn']), -int(r['step'])) for r in rows if r['knn'])
    assert set(checkpoints.steps(tmp_path / 'checkpoints')) == {21, 24, 1 - best[1]}
    logged = {int(r['step']): pytest.approx(float(r['loss'])) for r in rows if r['loss']}
    assert events(tmp_path / 'tensorboard', 'loss') == logged
    saved = PretrainConfig.load(tmp_path / 'args.yaml')
    assert (saved.method, saved.probes, saved.num_train_steps) == (method, ('knn', 'linear'), STEPS)
    assert yaml.safe_load((tmp_path / 'args.yaml').read_text())['images'] == len(images())
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert config['pretrained_cfg']['input_size'] == [1, 16, 16]
    assert (tmp_path / 'best' / 'model.safetensors').exists()


def test_the_backbone_loads_everywhere(finished):
    """The three ways that timm's users have; what the file holds comes back."""
    held = load_file(finished / 'model' / 'model.safetensors')
    assert not any(name.startswith('fc.') for name in held)
    file = str(finished / 'model' / 'model.safetensors')
    for model in (
        timm.create_model(f'local-dir:{finished / "model"}', pretrained=True),
        timm.create_model(f'local-dir:{finished / "model"}', pretrained=True, num_classes=7),
        timm.create_model(
            'test_resnet',
            pretrained=True,
            in_chans=1,
            num_classes=0,
            pretrained_cfg_overlay=dict(file=file, num_classes=0),
        ),
        timm.create_model(  # what train.py --pretrained-path does
            'test_resnet',
            pretrained=True,
            in_chans=1,
            num_classes=5,
            pretrained_cfg_overlay=dict(file=file, num_classes=-1),
        ),
    ):
        for name, tensor in model.state_dict().items():
            if name in held:
                assert torch.equal(tensor, held[name]), name
        assert set(held) <= set(model.state_dict())


def test_other_modules_are_saved_as_tensors(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    config = PretrainConfig(
        num_train_steps=2, batch_size=8, hidden_layer=-1, input_size=(1, 16, 16), workers=0, cpu=True,
        task_args=dict(projection_size=8, projection_hidden_size=16),
    )  # fmt: skip
    done = pretrain(net, images(), tmp_path, config)
    held = load_file(tmp_path / 'model' / 'model.safetensors')
    assert all(torch.equal(v, held[k]) for k, v in done.model.state_dict().items())


def test_killed_at_any_time_it_resumes_bit_for_bit(finished, tmp_path):
    """Ten kills at random moments."""
    _killed(tmp_path, 'byol', 10)
    _same(tmp_path, finished)


def test_pixpro_resumes_bit_for_bit(tmp_path):
    run(tmp_path / 'whole', 'pixpro', probe=(images(),) * 2)
    _killed(tmp_path / 'killed', 'pixpro', 2)
    _same(tmp_path / 'killed', tmp_path / 'whole')


def _killed(output, method, wanted):
    """Train, and kill and resume the training so many times."""
    generator = random.Random(0)
    kills = 0
    for attempt in range(60):
        more = ['resume'] if attempt else []
        child = subprocess.Popen(command(output, method, 8, *more), env=ENV, stderr=subprocess.DEVNULL)
        if kills < wanted:
            _wait_for_a_row(output, child)
            time.sleep(generator.uniform(0, 0.35))
            child.send_signal(signal.SIGKILL)
        status = child.wait()
        kills += status == -signal.SIGKILL
        if status == 0 and kills >= wanted:
            break
        if status == 0:  # done before the kill: take its end away, and go on from the checkpoint before
            last = checkpoints.steps(output / 'checkpoints')[-1]
            (output / 'checkpoints' / checkpoints.NAME.format(last)).unlink()
        assert status in (0, -signal.SIGKILL)
    assert kills == wanted


def _same(output, finished):
    """Check that two trainings logged and left behind the same."""
    assert losses(output) == losses(finished)
    ours, theirs = (load_file(folder / 'model' / 'model.safetensors') for folder in (output, finished))
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    ours, theirs = (
        checkpoints.read(folder / 'checkpoints' / checkpoints.NAME.format(STEPS)) for folder in (output, finished)
    )
    equal(ours, theirs)


def _wait_for_a_row(output, child):
    """Until the training runs."""
    before = (output / 'log.csv').stat().st_mtime_ns if (output / 'log.csv').exists() else 0
    while child.poll() is None:
        if (output / 'log.csv').exists() and (output / 'log.csv').stat().st_mtime_ns != before:
            return
        time.sleep(0.01)


def test_accumulation_is_a_larger_batch_without_batch_statistics(tmp_path):
    """With BatchNorm it cannot be: statistics are those of the parts."""
    found = []
    for name, kwargs in (('one', dict(batch_size=8)), ('parts', dict(batch_size=4, grad_accum_steps=2))):
        torch.manual_seed(1)
        model = without_batchnorm(timm.create_model('test_resnet', num_classes=0, in_chans=1)).double()
        heads = dict(projection_size=16, projection_hidden_size=32, head_norm='group')
        config = PretrainConfig(
            num_train_steps=4, opt='momentum', lr=0.05, workers=0, cpu=True, input_size=(1, 16, 16), log_interval=1,
            task_args=heads, clip_grad=1.0, **kwargs,
        )  # fmt: skip
        with pytest.warns(UserWarning, match='gets the tensors alone: the configuration'):
            pretrain(model, images(), tmp_path / name, config, view1=_double, view2=_flipped)
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-9, rtol=1e-7)


def _double(x):
    return x.double()[..., :16, :16]


def _flipped(x):
    return x.double()[..., -16:, -16:].flip(-1)


@pytest.mark.parametrize('method', ['byol', 'pixpro'])
def test_where_views_are_made_does_not_matter(method, tmp_path):
    found = []
    for name, kwargs in (('here', {}), ('workers', dict(workers=2)), ('device', dict(views_on_device=True))):
        run(tmp_path / name, method, num_train_steps=3, **kwargs)
        found.append(losses(tmp_path / name))
    assert found[0] == found[1] == found[2]


def test_scale_sets_the_area_of_the_crops(tmp_path):
    own = {
        f'view{number}': RandomView(replace(recipe, scale=(0.5, 0.9)), (1, 16, 16), mean=(0.5,), std=(0.5,))
        for number, recipe in enumerate(BYOL_VIEWS, 1)
    }
    run(tmp_path / 'scale', num_train_steps=3, mean=(0.5,), std=(0.5,), scale=(0.5, 0.9))
    run(tmp_path / 'views', num_train_steps=3, mean=(0.5,), std=(0.5,), **own)
    run(tmp_path / 'paper', num_train_steps=3, mean=(0.5,), std=(0.5,))
    assert losses(tmp_path / 'scale') == losses(tmp_path / 'views') != losses(tmp_path / 'paper')
    with pytest.raises(ValueError, match="the crops of the method's own views: leave out `scale` or view2"):
        run(tmp_path / 'both', scale=(0.5, 0.9), view2=_flipped)


def test_pixpro_takes_views_and_crops_of_ones_own(tmp_path):
    size = dict(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,))
    views = [RandomView(replace(recipe, scale=(0.5, 0.9)), **size) for recipe in BYOL_VIEWS]
    run(tmp_path / 'scale', 'pixpro', num_train_steps=3, **size, scale=(0.5, 0.9))
    run(tmp_path / 'views', 'pixpro', num_train_steps=3, **size, view1=views[0], view2=views[1])
    own = [partial(_placed, size=16), partial(_placed, size=12)]
    run(tmp_path / 'own', 'pixpro', num_train_steps=3, **size, view1=own[0], view2=own[1])
    assert losses(tmp_path / 'scale') == losses(tmp_path / 'views') != losses(tmp_path / 'own')
    with pytest.raises(ValueError, match='view1 gives Tensor, not `Located`: PixPro needs the place of every crop'):
        run(tmp_path / 'tensor', 'pixpro', view1=_flipped)
    assert not (tmp_path / 'tensor' / 'model').exists()
    with pytest.raises(ValueError, match="method 'pixpro' has no `hidden_layer`; it has `input_size`, `mean`, `std`"):
        run(tmp_path / 'layer', 'pixpro', hidden_layer=-2)


def _placed(x, size):
    """The corner, as large as the images of the network."""
    crop = nn.functional.interpolate(x[..., :size, :size], (16, 16))
    return Located(crop, torch.tensor([[0, 0, size, size]] * len(x)), torch.zeros(len(x), dtype=torch.bool))


def test_mixed_precision(tmp_path):
    """In a process of its own: Accelerate keeps one precision per process."""
    # not smaller: PyTorch's bfloat16 convolutions on the CPU leave gradients of taps that see padding alone unset
    options = dict(num_train_steps=3, input_size=(1, 64, 64))
    code = f"from train import run; run({str(tmp_path / 'bf16')!r}, mixed_precision='bf16', **{options})"
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=ENV, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run(tmp_path / 'no', **options)
    for a, b in zip(losses(tmp_path / 'bf16'), losses(tmp_path / 'no'), strict=True):
        assert a[1] != b[1] and float(a[1]) == pytest.approx(float(b[1]), abs=0.2)
    with pytest.raises(ValueError, match="has used another mixed precision than 'bf16': start a new process"):
        run(tmp_path / 'again', mixed_precision='bf16')


@pytest.mark.parametrize('method', ['byol', 'simsiam', 'pixpro'])
def test_two_processes_are_one_with_the_double_batch(method, tmp_path):
    launcher = [
        sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines',
        '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0',
    ]  # fmt: skip
    two = subprocess.Popen(
        command(tmp_path / 'two', method, 8, 'exact', launcher=launcher), env=ENV, stderr=subprocess.PIPE, text=True
    )
    subprocess.run(command(tmp_path / 'one', method, 16, 'exact'), env=ENV, check=True, capture_output=True)
    assert two.wait(timeout=300) == 0, two.stderr.read()
    one, both = (read_log(tmp_path / name / 'log.csv') for name in ('one', 'two'))
    assert len(one) == len(both) > STEPS
    for a, b in zip(one, both, strict=True):
        if a['loss']:
            assert float(a['loss']) == pytest.approx(float(b['loss']), abs=1e-9), a['step']
    a, b = (load_file(tmp_path / name / 'model' / 'model.safetensors') for name in ('one', 'two'))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=1e-8, rtol=1e-7)


def test_what_cannot_be_is_refused(tmp_path):
    run(tmp_path, method='byol', num_train_steps=1)
    with pytest.raises(ValueError, match=r"`method` must be one of byol, simsiam, glom, pixpro, got 'dino'"):
        PretrainConfig(method='dino')
    with pytest.raises(FileExistsError, match='has checkpoints up to step 1: `resume=True` goes on, or'):
        run(tmp_path, num_train_steps=1)
    for kwargs, message in (
        (dict(mean=(0.1,)), r'`mean` was \[0\.5\] and is \[0\.1\]'),
        (dict(task_args=dict(projection_size=16, projection_hidden_size=16)), '`projection_size` was 8 and is 16'),
        (
            dict(task_args=dict(projection_size=8, projection_hidden_size=16, use_momentum=False)),
            '`use_momentum` was True and is False',
        ),
        (dict(hidden_layer='layer3'), "`hidden_layer` was None and is 'layer3'"),
        (dict(view1=_flipped), '`view1` was .*RandomView'),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, num_train_steps=1, resume=True, **kwargs)
    with pytest.raises(ValueError, match=r'checkpoint in .* is of another training: `images_per_step` was 8 and is 16'):
        run(tmp_path, num_train_steps=1, batch_size=16, resume=True)
    other = timm.create_model('test_vit', num_classes=0, in_chans=1, img_size=16)
    with pytest.raises(ValueError, match="`model` was 'test_resnet' and is 'test_vit'"):
        config = PretrainConfig(num_train_steps=1, batch_size=8, resume=True, workers=0, cpu=True)
        pretrain(other, images(), tmp_path, config)
    for kwargs, message in (
        (dict(epochs=1), 'give `epochs` or `num_train_steps`, got 1 and 24'),
        (dict(num_train_steps=None), 'give `epochs` or `num_train_steps`, got None and None'),
        (dict(num_train_steps=0), '`num_train_steps` must be positive, got 0'),
        (dict(batch_size=0), '`batch_size` must be positive, got 0'),
        (dict(batch_size=1), 'a batch of one image'),
        (dict(checkpoint_interval=0), '`checkpoint_interval` must be positive, got 0'),
        (dict(probes=['knn']), '`probes` need labelled images'),
        (dict(probes=['svm']), "one of knn, linear, attentive, got 'svm'"),
        (
            dict(task_args=dict(input_size=(1, 8, 8))),
            'input_size cannot be in `task_args`: give `input_size` instead',
        ),
        (dict(lr=None, opt='lion'), "no learning rate is published for byol with 'lion'"),
        (dict(probe=([pictures()], images())), 'image 0 has no class, a number, but None'),
        (dict(batch_size=65), 'the data set has 64 images, fewer than the 65 of a step'),
        (dict(checkpoint_hist=0), '`checkpoint_hist` must be positive, got 0'),
        (
            dict(lr=1e9, num_train_steps=24, clip_grad=None, opt='momentum', warmup_epochs=0),
            'the training diverged at step',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / 'other', **kwargs)


def test_a_batch_of_the_wrong_images_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'must have shape \(3, H, W\), got \(1, 20, 20\)'):
        config = PretrainConfig(num_train_steps=1, batch_size=8, workers=0, cpu=True)
        pretrain(timm.create_model('test_resnet'), images(), tmp_path, config)


def pictures():
    return torch.zeros(1, 20, 20, dtype=torch.uint8)


def test_divergence_leaves_the_good_checkpoints(tmp_path):
    run(tmp_path, checkpoint_interval=1, checkpoint_hist=STEPS)
    folder = tmp_path / 'checkpoints'
    for step in range(5, STEPS + 1):
        (folder / checkpoints.NAME.format(step)).unlink()
    state = checkpoints.read(folder / checkpoints.NAME.format(4))
    state['optimizer']['state'][0]['momentum_buffer'].fill_(torch.inf)  # the next step ruins the weights
    checkpoints.write(state, folder / checkpoints.NAME.format(4))
    with pytest.raises(ValueError, match='the training diverged at step 4'):
        run(tmp_path, checkpoint_interval=1, log_interval=100, resume=True)
    assert checkpoints.steps(folder) == [1, 2, 3, 4]


def test_tied_weights_and_float64_images(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.Linear(256, 256))
    net[2].weight = net[1].weight
    dataset = [x.double().div(255) for x, _ in images()]
    config = PretrainConfig(
        num_train_steps=1, batch_size=8, hidden_layer=-1, input_size=(1, 16, 16), workers=0, cpu=True,
        task_args=dict(projection_size=8, projection_hidden_size=16),
    )  # fmt: skip
    pretrain(net, dataset, tmp_path, config)
    assert len(load_file(tmp_path / 'model' / 'model.safetensors')) == 3


def test_denoising(tmp_path, capsys):
    """Trains, leaves a plain GLOM, says nothing of collapse, and goes on bit for bit from any checkpoint."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    done = run(whole, 'glom', probe=(images(), images()), noise=0.2, noise_schedule=None)
    rows = [row for row in read_log(whole / 'log.csv') if row['loss']]
    assert len(rows) == STEPS and not any(row['std'] for row in rows)
    assert sum(float(row['loss']) for row in rows[-3:]) < 0.8 * sum(float(row['loss']) for row in rows[:3])
    assert 'collapsed' not in capsys.readouterr().err and done.accuracies.keys() == {'knn'}
    held = load_file(whole / 'model' / 'model.safetensors')
    loaded = timm.create_model(f'local-dir:{whole / "model"}', pretrained=True)
    assert loaded.pretrained_cfg['architecture'] == 'test_glom' and held.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, held[name]) for name, tensor in loaded.state_dict().items())

    run(parts / 'whole', 'glom')  # noise of another std for every image, which grows; drop path
    run(parts / 'cut', 'glom', checkpoint_hist=STEPS)
    for left in (19, 5):
        for step in checkpoints.steps(parts / 'cut' / 'checkpoints'):
            if step > left:
                (parts / 'cut' / 'checkpoints' / checkpoints.NAME.format(step)).unlink()
        run(parts / 'cut', 'glom', checkpoint_hist=STEPS, resume=True)
    assert losses(parts / 'cut') == losses(parts / 'whole')
    last = (parts / name / 'checkpoints' / checkpoints.NAME.format(STEPS) for name in ('cut', 'whole'))
    equal(*map(checkpoints.read, last))


def test_what_denoising_has_not_is_refused(tmp_path):
    for kwargs, message in (
        (dict(view2=_flipped), "method 'glom' has no `view2`; it has `view1`"),
        (dict(hidden_layer=-1), "method 'glom' has no `hidden_layer`; it has `noise`, `iteration`, `level`"),
        (dict(lr=None, opt='sgd'), "no learning rate is published for glom with 'sgd'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, 'glom', **kwargs)
    with pytest.raises(TypeError, match='projection_size'):
        run(tmp_path, 'glom', task_args=dict(projection_size=8))
    with pytest.raises(ValueError, match='ResNet is no GLOM'):
        net = timm.create_model('test_resnet', in_chans=1)
        pretrain(net, images(), tmp_path, PretrainConfig(method='glom', num_train_steps=1, batch_size=8, cpu=True))


def test_collapse_raises_an_alarm(tmp_path, capsys):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    nn.init.zeros_(net[1].weight)
    heads = dict(projection_size=16, projection_hidden_size=32, head_norm='group')
    config = PretrainConfig(
        num_train_steps=1, batch_size=8, hidden_layer=-1, input_size=(1, 16, 16), workers=0, cpu=True, task_args=heads,
    )  # fmt: skip
    pretrain(net, images(), tmp_path, config)
    assert 'the projections have collapsed, their std is 0.000 of 1' in capsys.readouterr().err


def test_one_image_per_step_has_no_std_and_raises_no_alarm(tmp_path, capsys):
    heads = dict(projection_size=32, projection_hidden_size=32, head_norm='group')
    model = timm.create_model('test_vit', num_classes=0, in_chans=1, img_size=16)
    config = PretrainConfig(num_train_steps=3, batch_size=1, workers=0, cpu=True, task_args=heads, log_interval=1)
    pretrain(model, images(), tmp_path, config)
    assert [row['std'] for row in read_log(tmp_path / 'log.csv')] == ['', '', '']
    assert 'collapsed' not in capsys.readouterr().err


def test_recipes_are_those_published():
    resnet, vit = timm.create_model('test_resnet', num_classes=0), timm.create_model('test_vit', num_classes=0)
    for epochs, lr, wd, decay in (
        (40, 0.45, 1e-6, 0.97),
        (150, 0.45, 1e-6, 0.99),
        (300, 0.3, 1e-6, 0.99),
        (1000, 0.2, 1.5e-6, 0.996),
    ):
        found = settings('byol', resnet, epochs)
        assert (found.optimizer, found.learning_rate, found.weight_decay, found.decay) == ('lars', lr, wd, decay)
    assert settings('byol', resnet, 300).warmup_epochs == 10 and settings('byol', resnet, 40).warmup_epochs == 4
    assert settings('simsiam', resnet, 100).optimizer == 'momentum'
    assert settings('byol', resnet, 100, 512).learning_rate == 0.9
    assert settings('byol', resnet, 100, 512, 'AdamW').learning_rate == 3e-4
    glom = settings('glom', resnet, 100, 512)
    assert (glom.optimizer, glom.learning_rate, glom.weight_decay, glom.warmup_epochs) == ('adamw', 1e-3, 0.05, 10)
    assert settings('glom', vit, 40).warmup_epochs == 4
    found = settings('pixpro', resnet, 100, 1024)
    assert (found.optimizer, found.learning_rate, found.weight_decay, found.decay) == ('lars', 4.0, 1e-5, 0.99)
    assert found.warmup_epochs == 5 and settings('pixpro', resnet, 10).warmup_epochs == 1
    assert settings('pixpro', vit, 100, 512).learning_rate == 3e-4 and settings('pixpro', vit, 100).decay == 0.99
    assert settings('byol', vit, 100).optimizer == 'adamw' == settings('simsiam', vit, 100).optimizer


def test_lars_leaves_vectors_alone():
    task = BYOL(timm.create_model('test_resnet', num_classes=0), input_size=(3, 32, 32))
    optimizer = build_optimizer(task.trainable_module, settings('byol', task.model, 100))
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for name, p in task.trainable_module.named_parameters():
        assert groups[id(p)]['weight_decay'] == (0 if p.ndim == 1 else 1e-6), name
        assert not groups[id(p)]['always_adapt'] and groups[id(p)]['trust_coeff'] == 1e-3
    vit = BYOL(timm.create_model('test_vit', num_classes=0))
    optimizer = build_optimizer(vit.trainable_module, settings('byol', vit.model, 100))
    plain = {id(p) for group in optimizer.param_groups if not group['weight_decay'] for p in group['params']}
    assert id(vit.model.pos_embed) in plain and id(vit.model.cls_token) in plain


def test_simsiams_predictor_keeps_its_rate_and_all_is_decayed():
    task = SimSiam(timm.create_model('test_resnet', num_classes=0), input_size=(3, 32, 32))
    found = settings('simsiam', task.model, 100)
    optimizer = build_optimizer(task.trainable_module, found)
    assert all(group['weight_decay'] == 1e-4 for group in optimizer.param_groups)
    schedule = Schedule(optimizer, 100, 0)
    for step, factor in ((0, 1), (50, 0.5), (100, 0)):
        assert schedule.set(step) == pytest.approx(0.05 * factor)
        for group in optimizer.param_groups:
            fixed = any(p is q for p in group['params'] for q in task.trainable_module.predictor.parameters())
            assert group['lr'] == pytest.approx(0.05 if fixed else 0.05 * factor)


def test_the_rate_rises_and_falls():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2.0)
    schedule = Schedule(optimizer, 110, 10)
    assert [schedule.set(k) for k in (0, 5, 10, 60, 110)] == pytest.approx([0, 1, 2, 1, 0])
    assert Schedule(optimizer, 3, 0).set(0) == 2
