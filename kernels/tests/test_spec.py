"""An operation is one folder, one line in `_spec.py` and an export; everything else reads the list."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from gates import EACH, tensors

import timm_extra_kernels
from timm_extra_kernels import _spec, layers
from timm_extra_kernels._dispatch import arguments
from timm_extra_kernels._spec import SPECS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'kernels' / 'torch-ext' / 'timm_extra_kernels'
MODULES = {'__init__', 'naive', 'eager', 'kernel', 'cases'}
NAMES = [name for spec in SPECS for name in (spec.name, spec.layer)]


def test_the_list_has_every_folder_in_order():
    folders = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob('*.py')))
    assert [spec.name for spec in SPECS] + ['linear'] == folders  # which is PyTorch's own, by another library


@pytest.mark.parametrize('spec', EACH)
def test_a_folder_has_all_modules(spec):
    assert {path.stem for path in (PACKAGE / spec.name).glob('*.py')} >= MODULES
    assert spec.package.__all__ == [spec.name]
    assert callable(spec.package.prepare) and callable(spec.limits)


@pytest.mark.parametrize('spec', EACH)
def test_all_forms_take_the_same_arguments(spec):
    assert arguments(spec.naive.forward) == arguments(spec.eager.forward)
    assert not hasattr(spec.naive, 'backward')
    assert arguments(spec.eager.forward) == arguments(spec.kernel.forward)
    assert arguments(spec.eager.backward) == arguments(spec.kernel.backward)


@pytest.mark.parametrize('spec', EACH)
def test_operators_have_the_arguments_of_the_eager_form(spec):
    functions = spec.eager.forward, spec.eager.backward, spec.eager.forward
    operators = spec.operator, spec.backward_operator, spec.exported_operator
    for operator, function in zip(operators, functions, strict=True):
        schema = operator.default._schema
        assert tuple(argument.name for argument in schema.arguments) == arguments(function)
        assert not re.search(r'\bint ', str(schema)), 'sizes are SymInt'


@pytest.mark.parametrize('spec', EACH)
def test_limits_read_what_both_directions_have(spec):
    both = set(arguments(spec.eager.forward)) & set(arguments(spec.eager.backward))
    for name, parameter in inspect.signature(spec.limits).parameters.items():
        assert parameter.kind == inspect.Parameter.KEYWORD_ONLY
        assert name in both or parameter.default is not inspect.Parameter.empty


@pytest.mark.parametrize('spec', EACH)
def test_cases_say_everything_that_is_measured(spec):
    large = spec.compiled[0]
    inputs = spec.inputs(large, torch.bfloat16, torch.device('meta'))
    assert len(inputs) == len(arguments(spec.eager.forward))
    assert min(spec.work(inputs)) > 0
    assert spec.benchmark.sizes


@pytest.mark.parametrize('spec', EACH)
def test_the_example_is_a_call_of_the_function(spec):
    args, kwargs = spec.example(torch.device('meta'))
    out = spec.function(*args, **kwargs)
    assert all(t.device.type == 'meta' for t in tensors(out if isinstance(out, tuple) else [out]))
    assert timm_extra_kernels.explain(spec.function, *args, **kwargs).operation == spec.name


def test_every_public_function_has_a_spec_and_a_layer():
    public = {name for name in timm_extra_kernels.__all__ if inspect.isfunction(getattr(timm_extra_kernels, name))}
    assert {spec.name for spec in SPECS} == public - {'explain', 'linear'}
    assert layers.__all__ == [spec.layer for spec in SPECS]
    for spec in SPECS:
        layer = getattr(layers, spec.layer)
        assert spec.function is getattr(timm_extra_kernels, spec.name)
        assert layer.__name__ == spec.layer and layer.has_backward and layer.can_torch_compile


def readers():
    """Files that read the list and know no operation by its name."""
    own = {PACKAGE / '__init__.py', Path(_spec.__file__)}
    yield from (path for path in PACKAGE.glob('*.py') if path not in own)
    shown = 'CARD.md', 'example.py'  # to readers, by an operation
    yield from (path for path in (ROOT / 'kernels').glob('*.*') if path.name not in shown)
    yield from (Path(__file__).with_name(name) for name in ('conftest.py', 'gates.py', 'test_ops.py', 'test_spec.py'))
    yield from (Path(__file__).with_name(name) for name in ('test_compile.py', 'triton_aot.py'))
    for name in ('doctor.py', 'info.py'):
        found = list((ROOT / 'timm_extra').rglob(name))
        assert found, name
        yield from found
    yield ROOT / 'benchmarks' / 'cases' / 'operations.py'


def test_no_other_file_names_an_operation():
    names = '|'.join(NAMES)
    beginnings = '|'.join({spec.name.split('_')[0] for spec in SPECS})  # as in spec.name.startswith('…')
    for path in readers():
        branches = rf'startswith\([\'"](?:{beginnings})'
        found = re.findall(rf'\b(?:{names})(?:_backward)?\b|{branches}', path.read_text())
        assert not found, f'{path.relative_to(ROOT)} names {", ".join(sorted(set(found)))}'
