"""Nothing needs triton: all models run where it is missing or is something else, and `doctor` says what was found."""

import importlib.metadata
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from timm_extra import cli, doctor
from timm_extra_kernels import _dispatch

MISSING = """
import importlib.machinery

real = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.split('.')[0] == 'triton' else real(name, path, target)
)
"""
# PyTorch itself does not start beside a module of that name that is no triton at all
OTHER = """
import triton

del triton.constexpr_function  # as of a version that had none
"""
BEFORE = {'missing': MISSING, 'another build': OTHER}
ALL = """
import timm, torch
import timm_extra
from timm_extra import cli
from timm_extra.models.info import list_names

for name in list_names('test_*'):
    model = timm.create_model(name, num_classes=3)
    size = model.input_size if hasattr(model, 'input_size') else model.pretrained_cfg['input_size']
    x = torch.randn(2, *size)
    model(x).sum().backward()
    with torch.inference_mode():
        assert model.eval()(x).shape == (2, 3), name
with torch.device('meta'):
    for name in list_names():
        assert timm.create_model(name, num_classes=3).num_classes == 3
assert cli.main(['doctor', '--no-hub', '--json']) == 0
"""


@pytest.mark.parametrize('kind', BEFORE)
def test_all_models_run_without_triton(kind):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p), OMP_NUM_THREADS='1')
    env.pop('TRITON_INTERPRET', None)
    done = subprocess.run([sys.executable, '-c', BEFORE[kind] + ALL], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    said = 'triton is not installed' if kind == 'missing' else 'has no constexpr_function: it is another build'
    assert said in found['triton'] and found['problems'] == []


def modules(**attributes):
    """A triton with submodules and these attributes."""
    triton = ModuleType('triton')
    triton.__path__ = []
    vars(triton).update(attributes)
    return {'triton': triton, 'triton.language': ModuleType('triton.language'), 'triton.runtime': ModuleType('r')}


@pytest.mark.parametrize(
    'attributes, reason',
    [
        (dict(), 'triton in memory has no jit: it is another build'),
        (dict(jit=1, cdiv=1, constexpr_function=1, language=1, runtime=1), None),
    ],
)
def test_kernels_are_left_out_with_a_triton_that_lacks_what_they_use(attributes, reason, monkeypatch):
    for name, module in modules(**attributes).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert _dispatch.no_triton.__wrapped__() == reason


@pytest.mark.parametrize('brought, said', [(['triton-rocm'], 'triton-rocm 3.6.0'), ([], 'of no package')])
def test_doctor_names_the_package_that_brought_triton(brought, said, monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'packages_distributions', lambda: {'triton': brought * 2})
    monkeypatch.setattr(doctor, '_version', lambda name: '3.6.0')
    monkeypatch.setattr(doctor, 'no_triton', lambda: None)
    assert doctor.triton_found() == said


def test_doctor_reports_two_packages_in_one_folder(monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'packages_distributions', lambda: {'triton': ['triton-rocm', 'triton']})
    monkeypatch.setattr(doctor, '_version', lambda name: '3.6.0')
    assert 'several packages wrote one folder: docs/installation.md' in doctor.triton_found()


def test_a_gpu_without_triton_is_a_problem_and_a_cpu_is_not(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'no_triton', lambda: 'triton is not installed')
    assert cli.main(['doctor', '--no-hub']) == 0 or torch.cuda.is_available()
    assert 'triton is not installed' in capsys.readouterr().out
    monkeypatch.setattr(torch, 'cuda', SimpleNamespace(is_available=lambda: True, device_count=lambda: 1))
    monkeypatch.setattr(doctor, '_gpu', lambda index: doctor.Gpu('a GPU', '9.0', 80.0))
    monkeypatch.setattr(doctor, 'operation_paths', lambda device: [])
    assert cli.main(['doctor', '--no-hub']) == 1
    assert 'no kernel runs on the GPU, triton is not installed' in capsys.readouterr().err
