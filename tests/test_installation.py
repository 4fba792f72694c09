"""What docs/installation.md and the workflows install is what the package asks for, without triton."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'installation.md').read_text()
PYPROJECT = (ROOT / 'pyproject.toml').read_text()
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / '.github' / 'workflows').glob('*.yml')}


def dependencies():
    """Requirements of the package, by name."""
    (block,) = re.findall(r'^dependencies = \[\n(.*?)^\]', PYPROJECT, re.DOTALL | re.MULTILINE)
    found = [Requirement(text) for text in re.findall(r'^    "(.*)",$', block, re.MULTILINE)]
    return {one.name: one for one in found}


def test_triton_is_for_linux_alone():
    triton = dependencies()['triton']
    assert triton.marker.evaluate({'platform_system': 'Linux'})
    assert not triton.marker.evaluate({'platform_system': 'Windows'})


@pytest.mark.parametrize('where', ['page', 'workflow'])
def test_all_dependencies_but_torch_and_triton_are_installed_by_name(where):
    steps = WORKFLOWS['platforms']['jobs']['without-triton']['steps']
    text = PAGE if where == 'page' else '\n'.join(step.get('run', '') for step in steps)
    (line,) = [line for line in text.splitlines() if line.startswith('pip install "timm>=')]
    named = {one.name: one for one in map(Requirement, re.findall(r'"([^"]+)"', line))}
    expected = {name: one for name, one in dependencies().items() if name not in ('torch', 'triton')}
    assert {name: one.specifier for name, one in named.items()} == {n: one.specifier for n, one in expected.items()}
    assert re.search(r'^pip install --no-deps (timm-extra|\.)$', text, re.MULTILINE)


def test_workflows_cover_the_platforms_and_pythons_that_are_promised():
    matrix = WORKFLOWS['platforms']['jobs']['test']['strategy']['matrix']
    assert [name.split('-')[0] for name in matrix['os']] == ['ubuntu', 'windows', 'macos']
    first, last = re.search(r'Python (3\.\d+) to (3\.\d+) on Linux, macOS and Windows', PAGE).groups()
    assert f'requires-python = ">={first}"' in PYPROJECT
    pythons = range(int(first.split('.')[1]), int(last.split('.')[1]) + 1)
    assert matrix['python'] == [f'3.{minor}' for minor in pythons]
