"""Every kernel of every operation against its definition in float64, forward and all gradients."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from timm_extra_kernels._cases import Case
from timm_extra_kernels._spec import SPECS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ALL = [pytest.param(spec, case, id=f'{spec.name}-{case.name}') for spec in SPECS for case in spec.cases]


def tensors(args):
    """The floating-point tensors among arguments, those in lists included."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.is_floating_point():
            yield arg
        elif isinstance(arg, list):
            yield from tensors(arg)


def mapped(function, args):
    """The arguments with a function applied to every tensor."""
    out = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            arg = function(arg)
        elif isinstance(arg, list):
            arg = mapped(function, arg)
        out.append(arg)
    return out


def leaf(tensor, dtype=None):
    """A leaf of the same strides, with a gradient if it can have one."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(dtype or tensor.dtype).requires_grad_()


def beside(tensor, seed):
    """A leaf that is the tensor up to rounding in float32; the tensor itself in a smaller dtype."""
    if not tensor.is_floating_point():
        return tensor
    step = 2 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    moved = tensor.double() * (1 + torch.finfo(torch.float32).eps * step.to(tensor.device))
    return leaf(torch.empty_like(tensor).copy_(moved))


def results(function, args, seed=0):
    """Outputs, and gradients of the first of them with respect to every tensor."""
    out = function(*args)
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    grad = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grads = torch.autograd.grad(outs[0], list(tensors(args)), grad.to(outs[0].device, outs[0].dtype))
    return [t.detach() for t in (*outs, *grads)]


def check(spec, case, dtype, device, guard):
    """Errors at most twice those of the definition in the same dtype, beyond a floor.

    Where terms cancel, the error of one run is a matter of luck, which changes with the number of threads: float32
    is compared with the largest error of the definition on several inputs that are equal up to rounding.
    """
    args = mapped(guard, spec.inputs(case, dtype, device))
    operator = getattr(torch.ops.timm_extra, spec.name)
    ours = results(lambda *a: public(spec, operator(*a)), mapped(leaf, args))
    exact = results(spec.definition, mapped(lambda t: leaf(t, torch.float64), args))
    eager = [results(spec.definition, mapped(leaf, args))]
    if dtype == torch.float32:
        eager += [results(spec.definition, mapped(lambda t, seed=seed: beside(t, seed), args)) for seed in range(4)]
    assert len(ours) == len(exact)
    for i, (a, b, *several) in enumerate(zip(ours, exact, *eager, strict=True)):
        # rounding the result, and what sums of terms of order 1 leave of float32 where they cancel to nothing
        floor = 4 * torch.finfo(dtype).eps * b.abs().max() + 8 * torch.finfo(torch.float32).eps
        error, eager_error = (a - b).abs().max(), max((c - b).abs().max() for c in several)
        assert error <= 2 * eager_error + floor, f'result {i}: error {error:.3g}, in eager {eager_error:.3g}'
    return args


def public(spec, outs):
    """What the definition returns, of what the operator returns."""
    outs = outs if isinstance(outs, (tuple, list)) else (outs,)
    return outs[: spec.outputs]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('spec, case', ALL)
def test_kernels_are_right(spec, case, dtype, device, launches, guarded):
    check(spec, case, dtype, device, guarded)
    assert any('_fwd_' in name for name in launches) and any('_bwd_' in name for name in launches)


@pytest.mark.parametrize('spec', [pytest.param(spec, id=spec.name) for spec in SPECS])
def test_any_sizes(spec, device, launches, guarded):
    # a failing example is shown as it was drawn: making it smaller takes minutes here
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries({name: st.integers(*bounds) for name, bounds in spec.sizes.items()}))
    def run(sizes):
        check(spec, Case('drawn', sizes), torch.float32, device, guarded)

    run()
    assert launches


@pytest.mark.parametrize('spec, case', ALL)
def test_two_runs_are_bit_equal(spec, case, device, launches):
    args = spec.inputs(case, torch.float32, device)
    operator = getattr(torch.ops.timm_extra, spec.name)
    first, second = (results(operator, mapped(leaf, args)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert launches
