"""Imports point one way: kernels, layers, models, tasks, then what people call."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / 'kernels' / 'torch-ext' / 'timm_extra_kernels'

# Prefixes of what the files of a folder may import beside the standard library.
ALLOWED = {
    'layers': ('torch', 'einops', 'timm.layers', 'timm_extra_kernels', 'timm_extra.layers'),
    'models': (
        'torch',
        'einops',
        'safetensors',
        'timm',
        'timm_extra.layers',
        'timm_extra._timm',
        'timm_extra.models._',
    ),
    'tasks': ('torch', 'timm', 'timm_extra.layers', 'timm_extra.tasks', 'timm_extra.views'),
    'hub': ('torch', 'timm', 'safetensors', 'huggingface_hub', 'timm_extra._timm', 'timm_extra.info', 'timm_extra.hub'),
    'pretrain': (
        'torch',
        'safetensors',
        'accelerate',
        'tqdm',
        'timm',
        'timm_extra.layers',
        'timm_extra.tasks',
        'timm_extra.pretrain',
        'timm_extra.data',
        'timm_extra.views',
        'timm_extra.probe',
        'timm_extra.hub',
    ),
}


def imports(file: Path):
    """Absolute dotted names that a file imports, relative imports resolved."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*base, *([node.module] if node.module else [])])
            yield from (f'{module}.{alias.name}' for alias in node.names)


def within(name: str, prefixes) -> bool:
    return any(name == p or name.startswith(p if p.endswith('_') else f'{p}.') for p in prefixes)


@pytest.mark.parametrize('folder', list(ALLOWED))
def test_imports_point_one_way(folder):
    files = [f for f in (ROOT / 'timm_extra' / folder).glob('*.py') if f.name != '__init__.py']
    assert files
    for file in files:
        for name in imports(file):
            standard = name.split('.')[0] in sys.stdlib_module_names
            assert standard or within(name, ALLOWED[folder]), f'{file.relative_to(ROOT)} imports {name}'


def test_kernels_import_the_standard_library_torch_and_triton_alone():
    files = list(KERNELS.rglob('*.py'))
    assert files
    allowed = {*sys.stdlib_module_names, 'torch', 'triton', 'kernels'}  # its relative imports begin with its folder
    for file in files:
        for name in imports(file):
            assert name.split('.')[0] in allowed, f'{file.relative_to(ROOT)} imports {name}'


def test_only_one_file_touches_private_timm_names():
    for file in (ROOT / 'timm_extra').rglob('*.py'):
        for name in imports(file):
            private = name.split('.')[0] == 'timm' and any(p.startswith('_') for p in name.split('.'))
            public = name == 'timm.layers._assert'  # what timm's own models import from there
            assert not private or public or file.name == '_timm.py', f'{file.relative_to(ROOT)} imports {name}'


def test_the_kernels_folder_is_no_package():
    assert not (ROOT / 'kernels' / '__init__.py').exists()
