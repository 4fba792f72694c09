"""Imports point one way: kernels, layers, models, tasks, then what people call."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / 'kernels' / 'torch-ext' / 'timm_extra_kernels'

# What a file may import of this repository, by the folder or file it is in; anything else of it is refused.
ALLOWED = {
    'layers': {'layers', 'timm_extra_kernels'},
    'models': {'layers', '_timm', 'models/_'},
    'tasks': {'layers', 'tasks'},
}


def imports(file: Path):
    """Absolute names of the modules a file imports, relative imports resolved."""
    package = '.'.join(file.relative_to(ROOT).with_suffix('').parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package.split('.')[: len(package.split('.')) - node.level + 1]) if node.level else ''
            module = '.'.join(p for p in (base, node.module) if p)
            yield from ([f'{module}.{a.name}' for a in node.names] if not node.module else [module])


@pytest.mark.parametrize('folder', list(ALLOWED))
def test_imports_point_one_way(folder):
    for file in (ROOT / 'timm_extra' / folder).glob('*.py'):
        if file.name == '__init__.py':
            continue
        for name in imports(file):
            if not name.startswith(('timm_extra', 'benchmarks', 'tests')):
                continue
            part = name.removeprefix('timm_extra.').replace('.', '/')
            assert any(
                part == a or part.startswith((a + '/', a) if a.endswith('_') else a + '/') for a in ALLOWED[folder]
            ), f'{file.relative_to(ROOT)} imports {name}'


def test_kernels_import_the_standard_library_torch_and_triton_alone():
    allowed = {*sys.stdlib_module_names, 'torch', 'triton', 'timm_extra_kernels', 'kernels'}
    for file in KERNELS.rglob('*.py'):
        for name in imports(file):
            assert name.split('.')[0] in allowed, f'{file.relative_to(ROOT)} imports {name}'


def test_only_one_file_touches_private_timm_names():
    for file in (ROOT / 'timm_extra').rglob('*.py'):
        for name in imports(file):
            private = name.split('.')[0] == 'timm' and any(p.startswith('_') for p in name.split('.'))
            assert not private or file.name == '_timm.py', f'{file.relative_to(ROOT)} imports {name}'


def test_the_kernels_folder_is_no_package():
    assert not (ROOT / 'kernels' / '__init__.py').exists()
