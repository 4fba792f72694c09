"""Imports point one way: kernels ← layers ← models ← pretrain, hub, inference, flow ← plot ← finetune ← cli."""

import sys

import pytest

from tests.architecture import ROOT, Module, circles, graph, imports, modules, target

# What a part of the repository may import: parts of ours, all of them further up in this table, and other packages.
# A new folder or loose module belongs in here.
MAY_IMPORT = {
    'timm_extra_kernels': ((), ('torch', 'triton')),
    'timm_extra._version': ((), ()),
    'timm_extra._timm': ((), ('timm',)),
    'timm_extra._files': ((), ()),
    'timm_extra._nearest': ((), ()),
    'timm_extra._device': ((), ('torch',)),
    'timm_extra._progress': ((), ('tqdm',)),
    'timm_extra.layers': (('timm_extra_kernels',), ('torch', 'einops', 'timm.layers')),
    'timm_extra.models': (
        (
            *('timm_extra_kernels', 'timm_extra._timm', 'timm_extra._files', 'timm_extra._nearest'),
            *('timm_extra._progress', 'timm_extra.layers'),
        ),
        ('torch', 'einops', 'safetensors', 'timm', 'scipy'),
    ),
    'timm_extra.__init__': (('timm_extra._version', 'timm_extra.layers', 'timm_extra.models'), ()),
    'timm_extra.images': (
        ('timm_extra._timm', 'timm_extra._files', 'timm_extra.models'),
        ('torch', 'numpy', 'PIL', 'timm', 'pillow_heif', 'pyarrow'),
    ),
    'timm_extra.inputs': (
        ('timm_extra._files', 'timm_extra.images'),
        ('torch', 'numpy', 'timm', 'soundfile', 'soxr', 'trimesh'),
    ),
    'timm_extra.hub': (
        ('timm_extra._timm', 'timm_extra._files', 'timm_extra.models', 'timm_extra.images'),
        ('torch', 'timm', 'safetensors', 'huggingface_hub'),
    ),
    'timm_extra.training': (('timm_extra._files',), ('torch', 'numpy', 'accelerate', 'tqdm')),
    'timm_extra.pretrain': (
        ('timm_extra._files', 'timm_extra.models', 'timm_extra.images', 'timm_extra.hub', 'timm_extra.training'),
        ('torch', 'numpy', 'PIL', 'yaml', 'safetensors', 'timm', 'tqdm'),
    ),
    'timm_extra.inference': (
        (
            *('timm_extra._files', 'timm_extra._device', 'timm_extra._progress'),
            *('timm_extra.models', 'timm_extra.images', 'timm_extra.inputs'),
        ),
        ('torch', 'timm', 'onnxruntime', 'onnxscript'),
    ),
    'timm_extra.flow': (
        ('timm_extra._files', 'timm_extra._device', 'timm_extra._progress', 'timm_extra.images'),
        ('torch', 'numpy', 'timm', 'av'),
    ),
    'timm_extra.plot': (
        ('timm_extra._files', 'timm_extra.layers', 'timm_extra.models', 'timm_extra.images', 'timm_extra.flow'),
        ('torch', 'timm', 'PIL', 'matplotlib'),
    ),
    'timm_extra.finetune': (
        (
            *('timm_extra._device', 'timm_extra._files', 'timm_extra.images', 'timm_extra.inputs', 'timm_extra.hub'),
            *('timm_extra.training', 'timm_extra.plot'),
        ),
        ('torch', 'numpy', 'timm'),
    ),
    'timm_extra.demo': (
        ('timm_extra._files', 'timm_extra.hub', 'timm_extra.plot', 'timm_extra.finetune'),
        ('torch', 'numpy', 'PIL', 'timm', 'mlxtend'),
    ),
    'timm_extra.doctor': (('timm_extra_kernels', 'timm_extra._version'), ('torch', 'huggingface_hub')),
    'timm_extra.cli': (
        (
            *('timm_extra._device', 'timm_extra._nearest', 'timm_extra._version', 'timm_extra.__init__'),
            *('timm_extra._files', 'timm_extra._progress', 'timm_extra.images', 'timm_extra.models', 'timm_extra.hub'),
            *(
                'timm_extra.inputs',
                'timm_extra.training',
                'timm_extra.pretrain',
                'timm_extra.finetune',
                'timm_extra.inference',
                'timm_extra.flow',
                'timm_extra.plot',
                'timm_extra.demo',
                'timm_extra.doctor',
            ),
        ),
        ('torch', 'timm'),
    ),
    'timm_extra.__main__': (('timm_extra._nearest', 'timm_extra.cli'), ()),
}
FAMILIES = ('ceit', 'glom', 'latent_pool', 'perceiver')
MODULES = modules()


def part_of(module: Module) -> str:
    """The row of the table that a module is in."""
    return module.part if module.name.split('.')[0] == 'timm_extra' else module.name.split('.')[0]


def within(name: str, prefixes) -> bool:
    return any(name == p or name.startswith(f'{p}.') for p in prefixes)


def test_every_folder_and_loose_module_is_known():
    parts = {part_of(module) for module in MODULES.values()} - {'benchmarks'}
    assert parts - set(MAY_IMPORT) == set(), (
        'say in MAY_IMPORT what it may import, and in CONTRIBUTING.md what it is for'
    )
    assert set(MAY_IMPORT) - parts == set(), 'in the table, but not in the repository'
    below = {path.parent.name for path in (ROOT / 'timm_extra' / 'models').glob('*/__init__.py')}
    assert below == set(FAMILIES)


def test_every_folder_with_code_is_read():
    read = {'timm_extra', 'kernels', 'benchmarks', 'tests'}
    generated = {'build', 'dist', 'output'}
    folders = {p.parts[len(ROOT.parts)] for p in ROOT.glob('[!.]*/**/*.py')} - generated
    assert folders == read


def test_the_table_points_one_way():
    order = list(MAY_IMPORT)
    for part, (ours, _) in MAY_IMPORT.items():
        for other in ours:
            assert order.index(other) < order.index(part), f'{part} may not import {other}, which is further down'


@pytest.mark.parametrize('part', list(MAY_IMPORT))
def test_imports_point_one_way(part):
    ours, others = MAY_IMPORT[part]
    for module in MODULES.values():
        if part_of(module) != part:
            continue
        for name in imports(module):
            found = target(name, MODULES)
            if found:
                other = part_of(MODULES[found])
                assert other in (part, *ours), f'{module.path} imports {name}'
            else:
                standard = name.split('.')[0] in sys.stdlib_module_names
                assert standard or within(name, others), f'{module.path} imports {name}'


def test_there_are_no_circles():
    assert circles(graph(MODULES)) == []


def test_model_families_do_not_import_each_other():
    for name, others in graph(MODULES).items():
        family = name.split('.')[2] if name.startswith('timm_extra.models.') else ''
        if family in FAMILIES:
            for other in others:
                foreign = [f for f in FAMILIES if f != family and within(other, [f'timm_extra.models.{f}'])]
                assert not foreign, f'{name} imports {other}'


def test_only_one_file_touches_private_timm_names():
    for module in MODULES.values():
        if part_of(module) == 'timm_extra._timm':
            continue
        for name in imports(module):
            private = name.split('.')[0] == 'timm' and any(p.startswith('_') for p in name.split('.'))
            public = name == 'timm.layers._assert'  # what timm's own models import from there
            assert not private or public, f'{module.path} imports {name}'


def test_the_kernels_folder_is_no_package():
    assert not (ROOT / 'kernels' / '__init__.py').exists()
