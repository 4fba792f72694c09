"""The wheel, installed where there is no repository."""

import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMOKE = """
import importlib.util
import timm, torch, timm_extra, timm_extra_kernels
from timm_extra_kernels._ops import add_op_namespace_prefix
for module in (timm_extra, timm_extra_kernels):
    assert 'site-packages' in module.__file__, module.__file__
kernels = importlib.util.find_spec('kernels')
assert kernels is None or kernels.origin is not None, 'an empty namespace package named kernels'
print(tuple(timm.create_model('test_ceit').eval()(torch.randn(1, 3, 160, 160)).shape))
"""


pytestmark = pytest.mark.xdist_group('wheel')  # built once


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob('*.whl'))


def test_it_holds_two_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split('/')[0] for n in names}
    assert {t for t in tops if not t.endswith('.dist-info')} == {'timm_extra', 'timm_extra_kernels'}
    assert 'timm_extra_kernels/_ops.py' in names and 'timm_extra/py.typed' in names


def test_links_of_its_readme_work_elsewhere(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith('.dist-info/METADATA')]
        text = archive.read(name).decode()
    targets = re.findall(r'\]\(([^)]+)\)', text)
    assert len(targets) > 20 and all(t.startswith('https://') for t in targets)
    for target in targets:
        path = re.fullmatch(r'https://github.com/timm-extra/timm-extra/(?:raw|blob)/main/([^#]+).*', target)
        assert path is None or (ROOT / path[1]).exists(), target


def test_it_works_outside_the_repository(wheel, tmp_path):
    """The virtual environment holds the wheel; its dependencies come from this one."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'], check=True)
    python = tmp_path / 'venv' / 'bin' / 'python'
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', wheel], check=True)
    (site,) = (tmp_path / 'venv' / 'lib').glob('python*/site-packages')
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    done = subprocess.run([python, '-c', SMOKE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '(1, 1000)'
    command = tmp_path / 'venv' / 'bin' / 'timm-extra'
    listed = subprocess.run([command, 'models', 'test_*'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'test_ceit' in listed.stdout
