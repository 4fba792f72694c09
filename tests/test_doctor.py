"""What `timm-extra doctor` says about an installation."""

import json
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import timm_extra_kernels
from timm_extra import cli, doctor
from timm_extra._version import __version__

SECRET = 'hf_averysecrettoken'


def test_doctor_prints_versions_and_paths(monkeypatch, capsys):
    monkeypatch.setenv('TIMM_EXTRA_FUSED', '0')
    assert cli.main(['doctor', '--no-hub']) == 0
    out = capsys.readouterr().out
    assert f'torch {torch.__version__.split("+")[0]}' in out
    assert 'TIMM_EXTRA_FUSED=0' in out and 'Hub: not checked' in out
    assert cli.main(['doctor', '--no-hub', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['versions']['timm-extra'] == __version__
    assert {p['operation'] for p in found['paths']} == {
        name for name in timm_extra_kernels.__all__ if name not in ('Path', 'explain', 'layers', 'linear')
    }
    assert found['linear']['fused'] or found['linear']['reason']
    assert all(p['fused'] or p['reason'] for p in found['paths'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_reasons_without_a_gpu():
    found = doctor.doctor(hub=False)
    assert found.gpus == [] and found.problems == []
    assert {path.reason for path in found.paths} == {'the tensors are on cpu'}


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_paths_on_a_gpu(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    assert all(path.fused for path in doctor.operation_paths('cuda'))
    monkeypatch.setenv('TIMM_EXTRA_FUSED', '0')
    assert {path.reason for path in doctor.operation_paths('cuda')} == {'TIMM_EXTRA_FUSED=0'}


def test_what_is_missing_is_reported(monkeypatch, capsys):
    version = doctor._version
    monkeypatch.setattr(doctor, '_version', lambda name: None if name in ('einops', 'onnx') else version(name))
    assert cli.main(['doctor', '--no-hub']) == 1
    captured = capsys.readouterr()
    assert captured.err == 'timm-extra: einops is not installed\n'
    assert 'onnx missing' in captured.out


class Refused(Exception):
    """As huggingface_hub's errors of an answer, of a status and with a token in the message."""

    def __init__(self, status):
        super().__init__(f'refused {SECRET}')
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    'error, expected',
    [
        (Refused(401), 'the token that is configured was refused (hf auth login)'),
        (Refused(500), 'a token is configured, the Hub could not be reached (Refused)'),
        (
            OSError(f'no route for {SECRET}'),
            'a token is configured, the Hub could not be reached (OSError)',
        ),
        (None, 'logged in as me'),
    ],
)
def test_login(error, expected, monkeypatch, capsys):
    def whoami(token):
        assert token == SECRET
        if error:
            raise error
        return {'name': 'me'}

    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: SECRET)
    monkeypatch.setattr(huggingface_hub, 'whoami', whoami)
    assert cli.main(['doctor']) == 0
    captured = capsys.readouterr()
    assert f'Hub: {expected}' in captured.out
    assert SECRET not in captured.out + captured.err


def test_the_hub_is_not_called_without_a_token(monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
    monkeypatch.setattr(huggingface_hub, 'whoami', lambda token: pytest.fail('the Hub was queried'))
    assert doctor.hub_login() == 'not logged in: public models only (hf auth login)'


def test_a_reader_that_leaves_is_no_error():
    command = f'{sys.executable} -m timm_extra doctor --no-hub --json | head -1'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.stdout == '{\n' and done.stderr == ''
