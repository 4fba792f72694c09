"""What PyTorch asks of operators, of every operation, on the path that this machine takes."""

import pytest
import torch
from gates import ALL, EACH, leaf, mapped, outputs, public, results, tensors

import timm_extra_kernels
from timm_extra_kernels import Path, _dispatch, explain


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


@pytest.mark.parametrize('spec', EACH)
def test_there_is_no_second_derivative(spec):
    args = mapped(leaf, arguments(spec))
    out = outputs(spec.operator(*args))[0]
    grad = torch.autograd.grad(out.square().sum(), next(tensors(args)), create_graph=True)[0]
    with pytest.raises(RuntimeError, match='no second derivative'):
        grad.sum().backward()


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
