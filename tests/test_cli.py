import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_extra import cli

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


@pytest.mark.parametrize('command', [['-m', 'timm_extra'], ['-m', 'timm_extra.cli', 'run']])
def test_scripts_run_with_the_models_registered(command, script):
    done = run(*command, script, '--flag', 'x')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == EXPECTED


def test_scripts_run_under_torchrun(script):
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '-m', 'timm_extra']
    done = run(*torchrun, script, '--flag', 'x')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(EXPECTED) == 2


@pytest.mark.parametrize('command', [['-m', 'timm_extra'], ['-m', 'timm_extra.cli', 'run']])
def test_a_missing_script_is_named(command):
    done = run(*command, 'nosuch.py')
    assert done.returncode == 1
    assert done.stderr.strip() == "timm-extra: no script at 'nosuch.py'"


def test_the_module_without_a_script_shows_its_usage():
    done = run('-m', 'timm_extra')
    assert done.returncode == 2
    assert 'torchrun' in done.stdout


@pytest.mark.parametrize('command', [['-m', 'timm_extra'], ['-m', 'timm_extra.cli', 'run']])
def test_errors_of_the_script_come_through(command, tmp_path):
    (tmp_path / 'bad.py').write_text('def deep():\n    raise ValueError(42)\ndeep()')
    done = run(*command, str(tmp_path / 'bad.py'))
    assert done.returncode == 1
    assert 'in deep' in done.stderr
    assert 'ValueError: 42' in done.stderr


@pytest.mark.parametrize('verb', [v.name for v in cli.VERBS])
def test_every_verb_shows_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, '--help'])
    assert stop.value.code == 0
    assert f'timm-extra {verb}' in capsys.readouterr().out.split('examples:')[1]


def test_models(capsys):
    assert cli.main(['models', 'ceit_tiny*']) == 0
    assert 'ceit_tiny_384' in capsys.readouterr().out
    assert cli.main(['models', 'ceit_small', '--json']) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert info['params'] == 24_204_840
    assert info['gmacs'] == pytest.approx(4.76, abs=0.005)
    assert info['weights'] is False


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


@pytest.mark.parametrize('method', ['byol', 'simsiam'])
def test_pretrain_then_probe(method, photos, tmp_path, capsys):
    output = tmp_path / method
    command = ['pretrain', method, *MODEL, '--data-dir', str(photos), '--output', str(output), '--cpu', '-b', '8']
    assert cli.main([*command, '--epochs', '1', '--probe', 'knn', '--mean', '0.4', '--std', '0.3']) == 0
    printed = capsys.readouterr().out
    assert '3 steps done; knn accuracy ' in printed
    assert f"timm.create_model('local-dir:{output}/model', pretrained=True)" in printed
    assert timm.create_model(f'local-dir:{output}/model', pretrained=True).pretrained_cfg['mean'] == [0.4]

    assert cli.main([*command, '--epochs', '1']) == 1
    assert 'has checkpoints up to step 3: resume, or choose another folder' in capsys.readouterr().err

    probe = ['--model', f'local-dir:{output}/model', '--data-dir', str(photos), '-j', '0']
    assert cli.main(['probe', 'linear', *probe]) == 0
    assert 'linear accuracy 100.00 % on 24 images, learned from 24' in capsys.readouterr().out
    assert cli.main(['probe', 'knn', *probe, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {'model', 'probe', 'top1', 'train', 'test'} and found['top1'] > 50


def test_pretrain_says_what_is_wrong(photos, tmp_path, capsys):
    def refused(*more):
        assert cli.main(['pretrain', 'byol', *MODEL, '--output', str(tmp_path / 'out'), '--cpu', *more]) == 1
        return capsys.readouterr().err

    assert 'give --data-dir' in refused()
    assert '24 images, fewer than the 256 of a step: lower batch_size' in refused('--data-dir', str(photos))
    broken = tmp_path / 'broken'
    shutil.copytree(photos, broken)
    (broken / 'train' / 'class0' / '2.png').write_bytes(b'no image')
    run = ['--data-dir', str(broken), '-b', '8', '--epochs', '1']
    assert '2.png) cannot be read: cannot identify image file' in refused(*run)
    whole = ['pretrain', 'byol', *MODEL, *run, '--output', str(tmp_path / 'skip'), '--cpu', '--skip-unreadable']
    assert cli.main(whole) == 0
    assert '; 1 unreadable images left out' in capsys.readouterr().out


def test_a_probe_starts_in_a_process_of_its_own(photos):
    done = run('-m', 'timm_extra.cli', 'probe', 'knn', *MODEL, '--data-dir', str(photos))
    assert done.returncode == 0, done.stderr
    assert 'test_resnet: knn accuracy' in done.stdout


def test_a_probe_needs_two_splits_with_the_same_classes(photos, tmp_path, capsys):
    command = ['probe', 'linear', *MODEL]
    assert cli.main([*command, '--data-dir', str(photos / 'train')]) == 1
    assert 'has no folders train and validation' in capsys.readouterr().err
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
