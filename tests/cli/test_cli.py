import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_extra import cli, hub

SCRIPT = """
import sys
import timm
import sibling
print(sys.argv[1:], timm.is_model('ceit_small'), sibling.VALUE, __name__)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / 'sibling.py').write_text('VALUE = 7')
    return str(tmp_path / 'script.py')


def run(*command, **kwargs):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **kwargs)


EXPECTED = "['--flag', 'x'] True 7 __main__"


@pytest.mark.parametrize('command', [['-m', 'timm_extra'], ['-m', 'timm_extra', 'run']])
def test_scripts_run_with_the_models_registered(command, script):
    done = run(*command, script, '--flag', 'x')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == EXPECTED


def test_scripts_run_under_torchrun(script):
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '-m', 'timm_extra']
    done = run(*torchrun, script, '--flag', 'x')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(EXPECTED) == 2


@pytest.mark.parametrize('command', [['-m', 'timm_extra'], ['-m', 'timm_extra', 'run']])
def test_a_missing_script_is_named(command):
    done = run(*command, 'nosuch.py')
    assert done.returncode == 1
    assert done.stderr.strip() == "timm-extra: no script at 'nosuch.py'"


def test_the_module_without_a_script_shows_its_usage():
    done = run('-m', 'timm_extra')
    assert done.returncode == 2
    assert 'torchrun' in done.stderr


@pytest.mark.parametrize('command', [['-m', 'timm_extra'], ['-m', 'timm_extra', 'run']])
def test_errors_of_the_script_come_through(command, tmp_path):
    (tmp_path / 'bad.py').write_text('def deep():\n    raise ValueError(42)\ndeep()')
    done = run(*command, str(tmp_path / 'bad.py'))
    assert done.returncode == 1
    assert 'in deep' in done.stderr
    assert 'ValueError: 42' in done.stderr


@pytest.mark.parametrize('verb', list(cli.VERBS))
def test_every_verb_shows_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, '--help'])
    assert stop.value.code == 0
    assert f'timm-extra {verb}' in capsys.readouterr().out.split('examples:')[1]


def test_models(capsys):
    assert cli.main(['models', 'ceit_tiny*']) == 0
    assert 'ceit_tiny_384' in capsys.readouterr().out
    assert cli.main(['models', 'ceit_small', '--json']) == 0
    info, _ = json.loads(capsys.readouterr().out)  # and ceit_small_384
    assert info['params'] == 24_204_840
    assert info['gmacs'] == pytest.approx(4.76, abs=0.005)
    assert info['weights'] == 'convert a file'


@pytest.mark.parametrize(
    'pattern, expected',
    [
        ('glom', {'glom_base', 'glom_small', 'glom_tiny', 'test_glom'}),
        ('glom_*', {'glom_base', 'glom_small', 'glom_tiny'}),
        ('_384', {'ceit_tiny_384', 'ceit_small_384'}),
        ('ceit_[st]*_384', {'ceit_tiny_384', 'ceit_small_384'}),
    ],
)
def test_a_plain_word_is_looked_for_anywhere_in_a_name(pattern, expected, capsys):
    assert cli.main(['models', pattern]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == expected


def test_models_say_where_their_weights_are(capsys):
    """As the table of docs/models.md does."""
    page = (Path(__file__).resolve().parents[2] / 'docs' / 'models.md').read_text()
    cells = [line.split('|') for line in page.splitlines() if line.startswith('| `')]
    documented = {row[1].strip(' `'): row[6] for row in cells if len(row) == 8}
    assert cli.main(['models']) == 0
    for line in capsys.readouterr().out.splitlines()[1:]:
        name, weights = line.split()[0], line.split('  ')[-1].strip()
        kinds = {'on the Hub': 'on the Hub', 'convert a file': ('file', 'checkpoints of'), 'none': '–'}
        said = [kind for kind, words in kinds.items() if any(w in documented[name] for w in np.atleast_1d(words))]
        assert said == [weights] or (name.startswith('test_') and weights == 'none'), name


def test_models_that_are_not_ours_are_not_listed(capsys):
    assert cli.main(['models', 'resnet50']) == 1
    assert "'resnet50'" in capsys.readouterr().err


@pytest.mark.parametrize('argv', [[], ['nosuch'], ['demo', '--epochs', 'many']])
def test_misuse_exits_with_two(argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    'options, message',
    [
        (['--epochs', '0'], 'epochs must be positive, got 0'),
        (['--seed', '-1'], 'seed must be between 0 and 2**32 - 1, got -1'),
        (['--lr', 'nan'], 'lr must be positive, got nan'),
        (['--batch-size', '5000'], 'batch_size must be at most 4000, the number of training images, got 5000'),
    ],
)
def test_unfit_values_are_refused_with_a_message(options, message, tmp_path, capsys):
    assert cli.main(['demo', *options, '--output', str(tmp_path / 'out')]) == 1
    assert capsys.readouterr().err.strip() == f'timm-extra: {message}'
    assert not (tmp_path / 'out').exists()


def test_an_output_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / 'out').write_text('mine')
    assert cli.main(['demo', '--output', str(tmp_path / 'out')]) == 1
    assert str(tmp_path / 'out') in capsys.readouterr().err
    assert (tmp_path / 'out').read_text() == 'mine'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Folders of grey images with two classes: bright above, or below."""
    root = tmp_path_factory.mktemp('photos')
    generator = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for i in range(24):
            image = generator.integers(0, 80, (20, 20), dtype=np.uint8)
            image[slice(0, 10) if i % 2 else slice(10, 20)] += 150
            (root / split / f'class{i % 2}').mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / f'class{i % 2}' / f'{i}.png')
    return root


MODEL = ['--model', 'test_resnet', '--input-size', '1', '32', '32', '-j', '0']


@pytest.mark.parametrize('method', ['byol', 'simsiam', 'pixpro'])
def test_pretrain_then_probe(method, photos, tmp_path, capsys):
    output = tmp_path / method
    command = ['pretrain', method, *MODEL, '--data-dir', str(photos), '--output', str(output), '--cpu', '-b', '8']
    assert cli.main([*command, '--epochs', '1', '--probes', 'knn', '--mean', '0.4', '--std', '0.3']) == 0
    printed = capsys.readouterr().out
    assert '3 steps done; knn accuracy ' in printed
    assert f"timm.create_model('local-dir:{output}/model', pretrained=True)" in printed
    assert timm.create_model(f'local-dir:{output}/model', pretrained=True).pretrained_cfg['mean'] == [0.4]

    assert cli.main([*command, '--epochs', '1']) == 1
    assert 'has checkpoints up to step 3: --resume goes on, or choose another folder' in capsys.readouterr().err

    probe = ['--model', f'local-dir:{output}/model', '--data-dir', str(photos), '-j', '0']
    assert cli.main(['probe', 'linear', *probe]) == 0
    assert 'linear accuracy 100.00 % on 24 images, learned from 24' in capsys.readouterr().out
    assert cli.main(['probe', 'attentive', *probe]) == 0
    assert 'attentive accuracy' in capsys.readouterr().out
    assert cli.main(['probe', 'knn', *probe, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {'model', 'probe', 'top1', 'train', 'test'} and found['top1'] > 50


GLOM = ['--model', 'test_glom', '--input-size', '1', '28', '28', '-j', '0']


def test_pretrain_glom(photos, tmp_path, capsys):
    command = ['pretrain', 'glom', *GLOM, '--data-dir', str(photos), '--cpu', '-b', '8', '--epochs', '1']
    more = ['--noise', '0.5', '1.5', '--noise-schedule', 'cosine', '--iteration', '5', '--level', '1']
    more += ['--probes', 'knn']
    assert cli.main([*command, *more, '--output', str(tmp_path / 'whole')]) == 0
    assert '3 steps done; knn accuracy ' in capsys.readouterr().out
    loaded = timm.create_model(f'local-dir:{tmp_path}/whole/model', pretrained=True)
    assert tuple(loaded.pretrained_cfg['input_size']) == (1, 28, 28)
    again = [*command, *more, '--output', str(tmp_path / 'whole'), '--resume', '--noise', '0.5']
    assert cli.main(again) == 1
    assert '--noise was [0.5, 1.5] and is 0.5' in capsys.readouterr().err

    def refused(*more):
        assert cli.main([*command, '--output', str(tmp_path / 'out'), *more]) == 1
        return capsys.readouterr().err.strip()

    assert refused('--iteration', '0') == 'timm-extra: --iteration must be positive, got 0'
    assert '--noise must be a standard deviation or two, the smaller first, got (1.0, 2.0, 3.0)' in refused(
        '--noise', '1', '2', '3'
    )
    assert '--level 3 is out of range' in refused('--level', '3')
    assert "method 'glom' has no --hidden-layer" in refused('--hidden-layer', 'levels')
    command[1] = 'byol'
    assert refused('--noise', '1', '--level', '0').startswith(
        "timm-extra: method 'byol' has no --noise, --level; it has --hidden-layer, "
    )
    command[1:3] = ['glom', '--model']
    command[3] = 'test_resnet'
    assert 'ResNet is no GLOM' in refused()


def test_pretrain_says_what_is_wrong(photos, tmp_path, capsys):
    def refused(*more):
        assert cli.main(['pretrain', 'byol', *MODEL, '--output', str(tmp_path / 'out'), '--cpu', *more]) == 1
        return capsys.readouterr().err

    assert 'give --data-dir' in refused()
    assert '24 images, fewer than the 256 of a step: lower --batch-size' in refused('--data-dir', str(photos))
    broken = tmp_path / 'broken'
    shutil.copytree(photos, broken)
    (broken / 'train' / 'class0' / '2.png').write_bytes(b'no image')
    run = ['--data-dir', str(broken), '-b', '8', '--epochs', '1']
    error = refused(*run)
    assert '2.png) cannot be read: cannot identify image file' in error
    assert error.endswith('; --unreadable skip leaves such images out\n')
    whole = ['pretrain', 'byol', *MODEL, *run, '--output', str(tmp_path / 'skip'), '--cpu', '--unreadable', 'skip']
    assert cli.main(whole) == 0
    assert '; 1 unreadable images left out' in capsys.readouterr().out


def test_a_probe_starts_in_a_process_of_its_own(photos):
    done = run('-m', 'timm_extra', 'probe', 'knn', *MODEL, '--data-dir', str(photos))
    assert done.returncode == 0, done.stderr
    assert 'test_resnet: knn accuracy' in done.stdout


def test_a_probe_needs_two_splits_with_the_same_classes(photos, tmp_path, capsys):
    command = ['probe', 'linear', *MODEL]
    assert cli.main([*command, '--data-dir', str(photos / 'train')]) == 1
    assert 'has no folders train and validation' in capsys.readouterr().err
    shutil.copytree(photos, tmp_path / 'held')
    shutil.copytree(tmp_path / 'held' / 'train' / 'class0', tmp_path / 'held' / 'validation' / 'new')
    assert cli.main([*command, '--data-dir', str(tmp_path / 'held')]) == 1
    assert "has the class 'new', which" in capsys.readouterr().err
    shutil.copytree(photos, tmp_path / 'more')
    shutil.copytree(photos / 'train' / 'class0', tmp_path / 'more' / 'train' / 'a_class')  # shifts the numbers
    for file in (tmp_path / 'more' / 'train' / 'a_class').iterdir():
        Image.fromarray(np.full((20, 20), 120, np.uint8)).save(file)
    assert cli.main([*command, '--data-dir', str(tmp_path / 'more')]) == 0
    assert float(capsys.readouterr().out.split('accuracy ')[1].split()[0]) > 80


@pytest.mark.parametrize('model', ['vit_tiny_patch16_224', 'test_ceit', 'test_perceiver_io', 'test_resnet'])
def test_any_input_size(model, photos, tmp_path):
    command = ['pretrain', 'simsiam', '--model', model, '--input-size', '1', '64', '64', '--data-dir', str(photos)]
    more = ['--output', str(tmp_path), '--cpu', '-b', '2', '-j', '0', '--num-train-steps', '1', '--opt', 'adamw']
    assert cli.main([*command, *more]) == 0
    loaded = timm.create_model(f'local-dir:{tmp_path}/model', pretrained=True)
    assert tuple(loaded.pretrained_cfg['input_size']) == (1, 64, 64)
    with torch.no_grad():
        assert loaded.eval()(torch.rand(1, 1, 64, 64)).ndim == 2


def test_names_that_are_not_there(photos, tmp_path, capsys):
    command = ['pretrain', 'byol', '--data-dir', str(photos), '--output', str(tmp_path), '--cpu', '-b', '8']
    assert cli.main([*command, '--model', 'resnet5O']) == 1
    assert "timm has no model 'resnet5O'" in capsys.readouterr().err
    named = [*command, '--model', 'test_resnet', '--input-size', '1', '32', '32', '--num-train-steps', '1', '-j', '0']
    assert cli.main([*named, '--hidden-layer', 'layer9']) == 1
    assert "has no layer 'layer9'; its layers are conv1" in capsys.readouterr().err
    assert cli.main([*named, '--hidden-layer', '-2']) == 0


PLOT = ['plot', 'islands', '--model', 'test_glom']


@pytest.mark.parametrize('channels, size', [(3, 56), (1, 42)])
def test_plot_islands(channels, size, photos, tmp_path, capsys):
    image, output = photos / 'train' / 'class0' / '0.png', tmp_path / 'islands.png'
    Image.fromarray(np.repeat([[0], [1]], 10, 0).repeat(20, 1).astype(np.uint8)).save(tmp_path / 'mask.png')
    command = [*PLOT, str(image), '--output', str(output), '--iters', '4', '--threshold', '0.8']
    command += ['--input-size', str(channels), str(size), str(size)]
    assert cli.main([*command, '--mask', str(tmp_path / 'mask.png')]) == 0
    *levels, path = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in levels] == ['level 2', 'level 1', 'level 0']
    for line in levels:
        found = re.fullmatch(
            r'level \d: (\d+) islands?, neighbour cosine (-?\d\.\d{3}), adjusted Rand index (-?\d\.\d{3})', line
        )
        assert 1 <= int(found[1]) <= (size // 14) ** 2
        assert -1 <= float(found[2]) <= 1 and float(found[3]) <= 1
    assert path == str(output)
    assert Image.open(output).size[0] > 400

    assert cli.main([*command, '--force', '--threshold', '-1', '--iters', '3']) == 0
    levels = capsys.readouterr().out.splitlines()[:-1]
    assert all(': 1 island, ' in line and 'Rand' not in line for line in levels)


def test_plot_islands_of_a_saved_model(photos, tmp_path, capsys):
    model = timm.create_model('test_glom', in_chans=1)
    hub.save(model, tmp_path / 'model', data_config=dict(mean=[0.4], std=[0.3]))
    image, output = photos / 'train' / 'class1' / '1.png', tmp_path / 'islands.png'
    command = ['plot', 'islands', str(image), '--output', str(output), '--model', f'local-dir:{tmp_path}/model']

    def printed(*more):
        assert cli.main([*command, *more, '--force']) == 0
        return capsys.readouterr().out

    assert 'level 2: ' in printed()
    assert printed() == printed('--mean', '0.4', '--std', '0.3') != printed('--mean', '0.9')


@pytest.mark.parametrize(
    'more, message',
    [
        (['--model', 'test_resnet'], 'only GLOM has islands, got ResNet'),
        (['--model', 'test_gl0m'], "timm has no model 'test_gl0m': did you mean test_glom?"),
        (['--iters', '0'], 'iters must be at least 1, got 0'),
        (['--threshold', '2'], 'threshold must be between -1 and 1, got 2.0'),
        (['--input-size', '2', '56', '56'], 'images have 1 or 3 channels, the model takes 2'),
        (['--mask', 'nosuch.png'], 'nosuch.png cannot be read: No such file or directory'),
    ],
)
def test_plot_says_what_is_wrong(more, message, photos, tmp_path, capsys):
    image, output = photos / 'train' / 'class0' / '0.png', tmp_path / 'islands.png'
    assert cli.main([*PLOT, str(image), '--output', str(output), *more]) == 1
    assert capsys.readouterr().err.strip() == f'timm-extra: {message}'
    assert not output.exists()


def test_plot_names_images_and_folders_that_are_not_there(photos, tmp_path, capsys):
    (tmp_path / 'text.png').write_text('no image')
    for image in ('text.png', 'nosuch.png', '.'):
        assert cli.main([*PLOT, str(tmp_path / image), '--output', str(tmp_path / 'islands.png')]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith(f'timm-extra: {tmp_path / image} cannot be read: ') and '\n' not in error
    image = photos / 'train' / 'class0' / '0.png'
    assert cli.main([*PLOT, str(image), '--output', str(tmp_path / 'nosuch' / 'islands.png')]) == 1
    assert 'nosuch' in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(['plot', 'oceans', str(image), '--model', 'test_glom'])
    assert stop.value.code == 2


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_terminals_that_lack_a_letter_cost_no_work(encoding, tmp_path, monkeypatch):
    """As Windows has it for files that output goes to."""
    torch.save(timm.create_model('test_ceit', num_classes=2).state_dict(), tmp_path / 'weights.pth')
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', out)
    assert cli.main(['convert', str(tmp_path / 'weights.pth'), str(tmp_path / 'out'), '--model', 'test_ceit']) == 0
    out.flush()
    assert b'weights.pth \\u2192 test_ceit' in out.buffer.getvalue()
