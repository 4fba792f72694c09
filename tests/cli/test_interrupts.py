"""Ctrl-C, as a terminal sends it: to the command and to the processes that read for it."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import timm_extra
from timm_extra import cli
from timm_extra.training import checkpoints

ROOT = str(Path(timm_extra.__file__).parents[1])
ENV = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=ROOT)
MODEL = ['--model', 'test_resnet', '--input-size', '1', '32', '32']
PRETRAIN = ['pretrain', 'byol', *MODEL, '--cpu', '-b', '8', '-j', '2', '--epochs', '400', '--log-interval', '1']


def interrupt(argv, when, **env):
    """Exit status and stderr of a command that gets Ctrl-C when its stderr or stdout holds some words."""
    child = subprocess.Popen(
        [sys.executable, '-m', 'timm_extra', *argv],
        env={**ENV, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    seen = ''
    for line in child.stdout:
        seen += line
        if when in line:
            os.killpg(child.pid, signal.SIGINT)
            break
    rest = child.stdout.read()
    return child.wait(), seen + rest


@pytest.mark.skipif(os.name == 'nt', reason='Windows has other signals')
def test_pretrain_says_how_to_go_on(pictures, tmp_path):
    command = [*PRETRAIN, '--data-dir', str(pictures), '--output', str(tmp_path / 'out')]
    status, shown = interrupt(command, 'step 1/')
    assert status == 130, shown
    *_, last = shown.splitlines()
    (done,) = checkpoints.steps(tmp_path / 'out' / 'checkpoints')
    assert last == f'timm-extra: stopped after step {done} of 1200; --resume goes on from there'
    assert 'Traceback' not in shown and 'Error' not in shown
    assert shown.splitlines()[0] == 'model   test_resnet, 372,400 parameters'


@pytest.mark.skipif(os.name == 'nt', reason='Windows has other signals')
def test_a_start_that_is_interrupted_ends_in_a_line(tmp_path):
    """Importing PyTorch takes seconds, in which a typing error is noticed."""
    (tmp_path / 'torch.py').write_text('raise KeyboardInterrupt')
    path = os.pathsep.join([str(tmp_path), ROOT])
    assert interrupt(['models'], 'never', PYTHONPATH=path) == (130, 'timm-extra: interrupted\n')
    code = [sys.executable, '-c', 'import timm_extra']  # a script of somebody is not the command
    done = subprocess.run(code, env=dict(ENV, PYTHONPATH=path), capture_output=True, text=True)
    assert done.returncode not in (0, 130) and done.stderr.endswith('KeyboardInterrupt\n')


@pytest.mark.parametrize('verb', cli.VERBS.values(), ids=list(cli.VERBS))
def test_every_verb_ends_in_a_line(verb, monkeypatch, capsys):
    monkeypatch.setitem(verb.__dict__, 'run', lambda args: signal.raise_signal(signal.SIGINT))
    argv = shlex.split(verb.examples.splitlines()[0])[1:]
    assert cli.main(argv) == 130
    assert capsys.readouterr() == ('', 'timm-extra: interrupted\n')


@pytest.mark.parametrize('rank, said', [('0', 'timm-extra: interrupted\n'), ('1', '')])
def test_of_several_processes_one_says_it(rank, said, monkeypatch, capsys):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setitem(cli.VERBS['models'].__dict__, 'run', lambda args: signal.raise_signal(signal.SIGINT))
    assert cli.main(['models']) == 130
    assert capsys.readouterr().err == said


@pytest.fixture
def spawn(monkeypatch):
    """Start processes as macOS and Windows do; each gets Ctrl-C at once."""
    start = BaseProcess.start

    def start_and_interrupt(process):
        start(process)
        if os.name == 'posix':
            os.kill(process.pid, signal.SIGINT)

    monkeypatch.setattr(BaseProcess, 'start', start_and_interrupt)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method('spawn', force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_processes_that_are_spawned_read_images(spawn, pictures, tmp_path, capfd):
    command = ['pretrain', 'byol', *MODEL, '--data-dir', str(pictures), '--output', str(tmp_path / 'out')]
    more = ['--cpu', '-b', '24', '-j', '1', '--epochs', '1', '--scale', '0.5', '1']
    assert cli.main([*command, *more]) == 0
    assert (tmp_path / 'out' / 'model' / 'model.safetensors').exists()
    assert 'Traceback' not in capfd.readouterr().err
