"""What PyTorch asks of operators, of every operation, on the path that this machine takes."""

from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from gates import ALL, EACH, leaf, mapped, outputs, public, results, tensors
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import timm_extra_kernels
from timm_extra_kernels import Path, _dispatch, explain
from timm_extra_kernels._cases import Case


def arguments(spec, dtype=torch.float32, case=0):
    return list(spec.inputs(spec.cases[case], dtype, torch.device('cpu')))


@pytest.mark.parametrize('spec, case', ALL)
def test_the_eager_form_is_the_naive_form(spec, case):
    args = spec.inputs(case, torch.float64, torch.device('cpu'))
    ours = results(lambda *a: public(spec, spec.operator(*a)), mapped(leaf, args))
    exact = results(spec.naive.forward, mapped(leaf, args))
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, i=i: f'result {i}: {text}')


@pytest.mark.parametrize('spec', EACH)
def test_they_are_proper_operators(spec):
    args = mapped(leaf, arguments(spec))
    torch.library.opcheck(spec.operator, tuple(args))
    with torch.no_grad():
        outs = spec.operator(*args)
        first = outputs(outs)[0]
        plain = mapped(lambda t: t.detach(), args)
        backward = spec.backward_args(torch.randn_like(first), plain, outs)
        torch.library.opcheck(spec.backward_operator, tuple(backward))


def mixed(spec, first, rest):
    """Inputs of a small case, the first tensor of one dtype and the others of another."""
    args = mapped(lambda t: t.to(rest) if t.is_floating_point() else t, arguments(spec, case=1))
    return [args[0].to(first), *args[1:]]


@pytest.mark.parametrize('first, rest', [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize('spec', EACH)
def test_kernels_keep_what_their_operators_promise(spec, first, rest, device, forced):
    """Shapes, dtypes and strides as declared, no output that shares memory with another or with an input."""
    args = [t.to(device) if isinstance(t, torch.Tensor) else t for t in mixed(spec, first, rest)]
    outs = spec.operator(*args)
    grad = torch.randn_like(outputs(outs)[0])
    promises = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    torch.library.opcheck(spec.operator, tuple(args), test_utils=promises)
    torch.library.opcheck(spec.backward_operator, tuple(spec.backward_args(grad, args, outs)), test_utils=promises)


@pytest.mark.parametrize('spec', EACH)
def test_gradcheck(spec):
    args = spec.inputs(
        min(
            spec.cases,
            key=lambda c: sum(t.numel() for t in tensors(spec.inputs(c, torch.float64, torch.device('cpu')))),
        ),
        torch.float64,
        torch.device('cpu'),
    )
    args = mapped(leaf, args)

    def first(*given):
        given = iter(given)
        return outputs(spec.operator(*mapped(lambda t: next(given) if t.is_floating_point() else t, args)))[0]

    assert torch.autograd.gradcheck(first, tuple(tensors(args)), fast_mode=True)


@pytest.mark.parametrize('spec', EACH)
def test_compiled_and_exported(spec):
    args = mapped(lambda t: t.detach(), arguments(spec))
    expected = results(spec.operator, mapped(leaf, args))

    class Model(torch.nn.Module):
        def forward(self, *given):
            return spec.operator(*given)

    compiled = torch.compile(Model(), fullgraph=True, backend='aot_eager')
    for a, b in zip(results(compiled, mapped(leaf, args)), expected, strict=True):
        torch.testing.assert_close(a, b)
    out = torch.export.export(Model(), tuple(args)).module()(*args)
    torch.testing.assert_close(outputs(out)[0], expected[0])


class Operation(torch.nn.Module):
    """What an operation's public function calls."""

    def __init__(self, spec):
        super().__init__()
        self.operators = spec.package.OPERATORS

    def forward(self, *args):
        return self.operators(*args)


GRIDS = 5
ANY = 'BHWYXMNL'  # names of the sizes that a compiled model leaves open, in the cases of an operation


def over_sizes(spec):
    """Inputs of batches of 1 to 3 on five grids."""
    fixed = {name: min(most, 4) for name, (_, most) in spec.sizes.items()}
    for i in range(GRIDS):
        open_sizes = {name: 2 + i + ANY.index(name) % 3 for name in fixed if name in ANY}
        for batch in (2, 3, 1):
            yield spec.inputs(Case('drawn', {**fixed, **open_sizes, 'B': batch}), torch.float32, torch.device('cpu'))


@pytest.mark.parametrize('spec', EACH)
def test_few_compiled_graphs_serve_all_sizes(spec):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(Operation(spec), fullgraph=True, backend=counter)
    for args in over_sizes(spec):
        ours = results(compiled, mapped(leaf, args))
        eager = results(lambda *a: public(spec, spec.operator(*a)), mapped(leaf, args))
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count <= 5  # sizes are opened one after the other, and a batch of one has its own
    torch._dynamo.reset()


@pytest.mark.parametrize('spec', EACH)
def test_one_exported_program_serves_all_sizes(spec):
    first, *others = over_sizes(spec)

    def sizes(arg):
        if isinstance(arg, list):
            return [sizes(t) for t in arg]
        opened = isinstance(arg, torch.Tensor) or type(arg) is int
        return [Dim.AUTO] * arg.ndim if isinstance(arg, torch.Tensor) else Dim.AUTO if opened else None

    program = torch.export.export(Operation(spec), tuple(first), dynamic_shapes=(tuple(map(sizes, first)),)).module()
    for args in (first, *others):
        for a, b in zip(outputs(program(*args)), public(spec, spec.operator(*args)), strict=True):
            torch.testing.assert_close(a, b)


def targets(program):
    """Names of the operators in a program's graph."""
    return {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}


def own(spec, program):
    """Those of them that are of this package."""
    namespace = spec.operator.default.namespace
    return {name for name in targets(program) if name.startswith(f'{namespace}.')}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('spec, case', ALL)
def test_exported_programs_decompose_into_the_naive_form(spec, case, dtype):
    args = spec.inputs(case, dtype, torch.device('cpu'))
    program = torch.export.export(Operation(spec), tuple(args))
    decomposed = program.run_decompositions()
    assert {name.split('.')[0] for name in targets(decomposed)} <= {'aten', '<built-in function getitem>'}
    operator = public(spec, spec.operator(*args))
    exact = outputs(spec.naive.forward(*mapped(lambda t: t.double() if t.is_floating_point() else t, args)))
    found = program.module()(*args), decomposed.module()(*args), operator, exact
    for kept, a, b, c in zip(*map(outputs, found), strict=True):
        assert torch.equal(kept, b)
        assert a.dtype == b.dtype
        error, known = (a - c).abs().max(), (b - c).abs().max()
        floor = 4 * torch.finfo(dtype).eps * c.abs().max() + 8 * torch.finfo(torch.float32).eps
        assert error <= known + floor, f'error {error:.3g}, that of the operator {known:.3g}'


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('spec', EACH)
def test_exported_programs_hold_one_operator(spec, strict):
    args = spec.inputs(spec.cases[0], torch.float32, torch.device('cpu'))
    program = torch.export.export(Operation(spec), tuple(args), strict=strict)
    assert own(spec, program) == {str(spec.exported_operator.default)}
    assert not own(spec, program.run_decompositions())


@pytest.mark.parametrize('spec', EACH)
def test_exported_programs_keep_operators_that_are_not_in_the_table(spec):
    args = spec.inputs(spec.cases[0], torch.float32, torch.device('cpu'))
    program = torch.export.export(Operation(spec), tuple(args))
    table = torch.export.default_decompositions()
    del table[spec.exported_operator.default]
    for kept in (program.run_decompositions({}), program.run_decompositions(table)):
        assert own(spec, kept) == {str(spec.exported_operator.default)}


@pytest.mark.parametrize('spec', EACH)
def test_exported_programs_compile_with_kernels_and_have_gradients(spec):
    args = mapped(leaf, spec.inputs(spec.cases[0], torch.float32, torch.device('cpu')))
    program = torch.export.export(Operation(spec), tuple(mapped(lambda t: t.detach(), args))).module()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph)

    compiled = torch.compile(program, backend=aot_autograd(fw_compiler=backend))
    expected = results(lambda *a: public(spec, spec.operator(*a)), args)
    for found in (program, compiled):
        for a, b in zip(results(found, args), expected, strict=True):
            torch.testing.assert_close(a, b)
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert str(spec.operator.default) in names and str(spec.exported_operator.default) not in names


def test_explain_says_why_not():
    q, k, v = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    path = explain(timm_extra_kernels.class_attention, q, k, v, scale=1.0)
    assert path == Path('class_attention', False, 'the tensors are on cpu')
    assert str(path) == 'class_attention: PyTorch, the tensors are on cpu'
    with pytest.raises(ValueError, match=r'q must be \(1, 2, 1, 8\)'):
        explain(timm_extra_kernels.class_attention, k, k, v, scale=1.0)
    with pytest.raises(ValueError, match=r"class_attention.*, not 'randn'"):
        explain(torch.randn, 1)


def test_the_path_depends_on_metadata_alone(monkeypatch):
    """On a GPU that is not there: fake tensors have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    monkeypatch.setattr(torch.version, 'hip', None)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(multi_processor_count=4))
    monkeypatch.setattr(_dispatch, 'cannot_run', lambda device: None)

    def path(D=64, dtype=torch.bfloat16, B=2):
        with FakeTensorMode():
            q, k = (
                torch.empty(B, 2, 1, D, dtype=dtype, device='cuda'),
                torch.empty(B, 2, 5, D, dtype=dtype, device='cuda'),
            )
            return explain(timm_extra_kernels.class_attention, q, k, k, scale=1.0)

    assert str(path()) == 'class_attention: Triton kernel'
    assert path(B=1).reason == '2 heads of all items leave some of 4 processors idle'
    assert path(D=512).reason == '512 channels per head are more than 256'
    assert path(dtype=torch.float64).reason == 'torch.float64 has no kernel'
    assert 'is empty' in path(B=0).reason
    assert path(B=2**21).fused
    assert 'more than 2147483647 elements' in path(B=2**24).reason
    capability = (7, 5)
    assert path().reason == 'compute capability (7, 5) is below (8, 0)'
    capability = (9, 0)
    monkeypatch.setenv('TIMM_EXTRA_FUSED', '0')
    assert path().reason == 'TIMM_EXTRA_FUSED=0'
    monkeypatch.setenv('TIMM_EXTRA_FUSED', '1')
    monkeypatch.setattr(_dispatch, 'no_triton', lambda: 'triton is not installed')
    assert path().reason == 'triton is not installed'
    monkeypatch.setattr(_dispatch, 'no_triton', lambda: None)
    monkeypatch.setattr(_dispatch, 'cannot_run', lambda device: f'Triton runs no kernel on {device}')
    assert path().reason == 'Triton runs no kernel on cuda:0'
