"""What PyTorch asks of operators, of every operation, on the path that this machine takes."""

import inspect

import pytest
import torch
from test_ops import ALL, leaf, mapped, public, results, tensors

import timm_extra_kernels
from timm_extra_kernels import Path, _dispatch, explain
from timm_extra_kernels._spec import SPECS

EACH = [pytest.param(spec, id=spec.name) for spec in SPECS]


def operator_of(spec, direction='forward'):
    return getattr(torch.ops.timm_extra, spec.name if direction == 'forward' else f'{spec.name}_backward')


def arguments(spec, dtype=torch.float32, case=0):
    return list(spec.inputs(spec.cases[case], dtype, torch.device('cpu')))


@pytest.mark.parametrize('spec, case', ALL)
def test_the_reference_is_the_definition(spec, case):
    args = spec.inputs(case, torch.float64, torch.device('cpu'))
    ours = results(lambda *a: public(spec, operator_of(spec)(*a)), mapped(leaf, args))
    exact = results(spec.definition, mapped(leaf, args))
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, i=i: f'result {i}: {text}')


@pytest.mark.parametrize('spec', EACH)
def test_they_are_proper_operators(spec):
    args = mapped(leaf, arguments(spec))
    torch.library.opcheck(operator_of(spec), tuple(args))
    with torch.no_grad():
        outs = operator_of(spec)(*args)
        first = outs[0] if isinstance(outs, (tuple, list)) else outs
        plain = mapped(lambda t: t.detach(), args)
        backward = spec.backward_args(torch.randn_like(first), plain, outs)
        torch.library.opcheck(operator_of(spec, 'backward'), tuple(backward))


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
        out = operator_of(spec)(*mapped(lambda t: next(given) if t.is_floating_point() else t, args))
        return out[0] if isinstance(out, (tuple, list)) else out

    assert torch.autograd.gradcheck(first, tuple(tensors(args)), fast_mode=True)


@pytest.mark.parametrize('spec', EACH)
def test_compiled_and_exported(spec):
    args = mapped(lambda t: t.detach(), arguments(spec))
    expected = results(operator_of(spec), mapped(leaf, args))

    class Model(torch.nn.Module):
        def forward(self, *given):
            return operator_of(spec)(*given)

    compiled = torch.compile(Model(), fullgraph=True, backend='aot_eager')
    for a, b in zip(results(compiled, mapped(leaf, args)), expected, strict=True):
        torch.testing.assert_close(a, b)
    out = torch.export.export(Model(), tuple(args)).module()(*args)
    torch.testing.assert_close(out[0] if isinstance(out, (tuple, list)) else out, expected[0])


@pytest.mark.parametrize('spec', EACH)
def test_there_is_no_second_derivative(spec):
    args = mapped(leaf, arguments(spec))
    out = operator_of(spec)(*args)
    out = out[0] if isinstance(out, (tuple, list)) else out
    grad = torch.autograd.grad(out.square().sum(), next(tensors(args)), create_graph=True)[0]
    with pytest.raises(RuntimeError, match='no second derivative'):
        grad.sum().backward()


def test_all_functions_have_a_spec():
    functions = {name for name in timm_extra_kernels.__all__ if inspect.isfunction(getattr(timm_extra_kernels, name))}
    assert {spec.name for spec in SPECS} == functions - {'explain'}


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

    def path(D=64, dtype=torch.bfloat16, B=2):
        with FakeTensorMode():
            q, k = (
                torch.empty(B, 2, 1, D, dtype=dtype, device='cuda'),
                torch.empty(B, 2, 5, D, dtype=dtype, device='cuda'),
            )
            return explain(timm_extra_kernels.class_attention, q, k, k, scale=1.0)

    assert str(path()) == 'class_attention: Triton kernel'
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
    monkeypatch.setattr(_dispatch, '_has_triton', lambda: False)
    assert path().reason == 'triton is not installed'


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(q=torch.randn(2, 3, 2, 8)), r'q must be \(2, 3, 1, 8\) for k \(2, 3, 5, 8\), got \(2, 3, 2, 8\)'),
        (dict(q=torch.randn(3, 1, 8)), r'got \(3, 1, 8\)'),
        (dict(v=torch.randn(2, 3, 5, 7)), r'k and v must be \(B, H, L, D\), got \(2, 3, 5, 8\) and \(2, 3, 5, 7\)'),
        (dict(q=torch.ones(2, 3, 1, 8, dtype=torch.long)), 'q must be of a floating-point dtype, got torch.int64'),
        (dict(q=torch.randn(2, 3, 1, 8).half()), 'of one dtype, got torch.float16, torch.float32 and torch.float32'),
        (dict(v=torch.empty(2, 3, 5, 8, device='meta')), 'q is on cpu, v on meta'),
        (dict(k=torch.randn(2, 3, 0, 8), v=torch.randn(2, 3, 0, 8)), 'no tokens to attend to'),
    ],
)
def test_what_does_not_fit_class_attention_is_named(change, message):
    given = dict(q=torch.randn(2, 3, 1, 8), k=torch.randn(2, 3, 5, 8), v=torch.randn(2, 3, 5, 8))
    with pytest.raises(ValueError, match=message):
        timm_extra_kernels.class_attention(**{**given, **change}, scale=1.0)


def test_class_attention_of_nothing_nan_and_expanded():
    k = torch.randn(0, 3, 5, 8)
    assert timm_extra_kernels.class_attention(k[:, :, :1], k, k, scale=1.0).shape == (0, 3, 1, 8)
    q, k = torch.randn(1, 3, 1, 8).expand(2, 3, 1, 8), torch.randn(2, 1, 5, 8).expand(2, 3, 5, 8)
    expected = (q @ k.mT).softmax(-1) @ k
    torch.testing.assert_close(timm_extra_kernels.class_attention(q, k, k, scale=1.0), expected)
    k = k.clone()
    k[0, 0, 0, 0] = float('nan')
    out = timm_extra_kernels.class_attention(q, k, k, scale=1.0)
    assert out[0, 0].isnan().all() and out[1].isfinite().all()
