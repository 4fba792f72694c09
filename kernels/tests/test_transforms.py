"""Transforms × operations: every one is right, on either path, or refused in one line."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from gates import EACH, kernel_dtype, leaf, mapped, outputs, tensors
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

CPU = torch.device('cpu')


def smallest(spec):
    """The case with the fewest numbers that has more than one item, input and channel."""

    def size(case):
        return sum(t.numel() for t in tensors(spec.inputs(case, torch.float64, CPU)))

    return min((case for case in spec.cases if size(case) > 60), key=size)


def dual(f, x, direction):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction))).tangent


def double_backward(f, x, direction):
    x = leaf(x)
    first = torch.autograd.grad((f(x) * direction_of(f(x))).sum(), x, create_graph=True)[0]
    return torch.autograd.grad((first * direction).sum(), x)[0]


def third_derivative(f, x, direction):
    x = leaf(x)
    first = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad((first * direction).sum(), x, create_graph=True)[0]
    return torch.autograd.grad((second * direction).sum(), x)[0]


def pullback(f, x):
    """What takes the gradient of the output to that of x, and an output's gradient."""
    x = leaf(x)
    out = f(x)
    return lambda g: torch.autograd.grad(out, x, g, retain_graph=True)[0], out.detach()


def dual_gradient(f, x, direction):
    pull, g = pullback(f, x)
    return dual(pull, g, direction_of(g))


def jvp_of_the_gradient(f, x, direction):
    pull, g = pullback(f, x)
    return jvp(pull, (g,), (direction_of(g),))


def vmap_of_the_gradient(f, x, direction):
    pull, g = pullback(f, x)
    return vmap(pull)(torch.stack([g, direction_of(g)]))


def direction_of(like):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


class Layer(torch.nn.Module):
    def __init__(self, f, x):
        super().__init__()
        self.f, self.x = f, torch.nn.Parameter(x)

    def forward(self):
        return self.f(self.x)


# of a function f of one tensor x, in a direction
TRANSFORMS = {
    'grad': lambda f, x, v: grad(lambda x: f(x).square().sum())(x),
    'vjp': lambda f, x, v: vjp(f, x)[1](torch.ones_like(f(x)))[0],
    'jacrev': lambda f, x, v: jacrev(f)(x),
    'jacfwd': lambda f, x, v: jacfwd(f)(x),
    'jvp': lambda f, x, v: jvp(f, (x,), (v,)),
    'hessian': lambda f, x, v: hessian(lambda x: f(x).square().sum())(x),
    'vmap': lambda f, x, v: vmap(f)(torch.stack([x, v])),
    'vmap of grad': lambda f, x, v: vmap(grad(lambda x: f(x).square().sum()))(torch.stack([x, v])),
    'jvp of grad': lambda f, x, v: jvp(grad(lambda x: f(x).square().sum()), (x,), (v,)),
    'functional_call': lambda f, x, v: functional_call(Layer(f, x), {'x': v}, ()),
    'grad of functional_call': lambda f, x, v: grad(lambda p: functional_call(Layer(f, x), p, ()).square().sum())(
        {'x': v}
    )['x'],
    'forward mode': dual,
    'double backward': double_backward,
    'third derivative': third_derivative,
    'forward mode of the gradient alone': dual_gradient,
    'jvp of the gradient alone': jvp_of_the_gradient,
    'vmap of the gradient alone': vmap_of_the_gradient,
    'vectorised jacobian': lambda f, x, v: torch.autograd.functional.jacobian(f, x, vectorize=True),
    'hvp': lambda f, x, v: torch.autograd.functional.hvp(lambda x: f(x).square().sum(), x, v)[1],
}


def compare(spec, transform, dtype, device):
    """A transform of the operation beside the same of its naive form in float64."""
    args = spec.inputs(smallest(spec), dtype, device)
    exact = mapped(lambda t: t.double() if t.is_floating_point() else t, args)

    def ours(x):
        return outputs(spec.package.OPERATORS(x, *args[1:]))[0]

    def naive(x):
        return outputs(spec.naive.forward(x, *exact[1:]))[0]

    run = TRANSFORMS[transform]
    found = run(ours, args[0], direction_of(args[0]))
    expected = run(naive, exact[0], direction_of(exact[0]))
    for a, b in zip(outputs(found), outputs(expected), strict=True):
        error, floor = (a.double() - b).abs().max(), torch.finfo(dtype).eps * b.abs().max()
        assert error <= 500 * floor, f'{error:.3g} of {b.abs().max():.3g}'


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('spec', EACH)
def test_transforms_are_right(spec, transform):
    if transform == 'third derivative' and spec.name.endswith('train'):
        with pytest.raises(RuntimeError):  # PyTorch's batch norm has none
            compare(spec, transform, torch.float64, CPU)
    else:
        compare(spec, transform, torch.float64, CPU)


# elsewhere functions do without their operators, so that there is one path
@pytest.mark.parametrize('transform', ['functional_call', 'double backward'])
@pytest.mark.parametrize('spec', EACH)
def test_transforms_of_kernels_are_right(spec, transform, device, launches):
    compare(spec, transform, kernel_dtype(spec, device), device)
    assert launches


@pytest.mark.parametrize('spec', EACH)
def test_transforms_compile_without_a_graph_break(spec):
    args = spec.inputs(smallest(spec), torch.float32, CPU)
    operators = spec.package.OPERATORS

    def ours(x):
        return outputs(operators(x, *args[1:]))[0]

    x = torch.stack([args[0], args[0]])
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(vmap(ours), fullgraph=True, backend='aot_eager')(x), vmap(ours)(x))
    torch._dynamo.reset()


@pytest.mark.parametrize('spec', EACH)
def test_autocast_takes_no_digits_from_transforms(spec):
    args = spec.inputs(smallest(spec), torch.float32, CPU)

    def ours(x):
        return outputs(spec.package.OPERATORS(x, *args[1:]))[0]

    for transform in ('jvp', 'double backward'):
        run = TRANSFORMS[transform]
        expected = run(ours, args[0], direction_of(args[0]))
        with torch.autocast('cpu', torch.bfloat16):
            found = run(ours, args[0], direction_of(args[0]))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('spec', EACH)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
def test_a_traced_call_holds_the_operator(spec):
    args = spec.inputs(spec.cases[0], torch.float32, CPU)

    def ours(x):
        return outputs(spec.package.OPERATORS(x, *args[1:]))[0]

    traced = torch.jit.trace(ours, leaf(args[0]), check_trace=False)
    assert f'{spec.operator.default.namespace}::{spec.name}(' in str(traced.inlined_graph).replace(' ', '')
    torch.testing.assert_close(traced(args[0]), ours(args[0]))


@pytest.mark.parametrize('spec', EACH)
def test_second_derivatives_of_every_argument(spec):
    """Gradients of gradients with respect to all tensors, those in lists too, mixed ones included."""
    args = spec.inputs(smallest(spec), torch.float64, CPU)

    def second(forward):
        leaves = mapped(leaf, args)
        of = list(tensors(leaves))
        first = torch.autograd.grad(outputs(forward(*leaves))[0].square().sum(), of, create_graph=True)
        return torch.autograd.grad(sum((g * direction_of(g)).sum() for g in first), of, allow_unused=True)

    for a, b in zip(second(spec.operator), second(spec.naive.forward), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('spec', EACH)
def test_only_the_first_output_has_a_gradient(spec):
    outs = outputs(spec.operator(*mapped(leaf, spec.inputs(spec.cases[0], torch.float32, CPU))))
    assert outs[0].requires_grad and not any(out.requires_grad for out in outs[1:])


@pytest.mark.parametrize('spec', EACH)
def test_operators_themselves_refuse_transforms(spec):
    """Functions take care of transforms; the operators beneath have no rules, and say so."""
    args = spec.inputs(spec.cases[0], torch.float32, CPU)

    def f(x):
        return outputs(spec.operator(x, *args[1:]))[0]

    with pytest.raises(NotImplementedError, match=f'{spec.name} has no rule for transforms of torch.func'):
        grad(lambda x: f(x).sum())(args[0])
    with pytest.raises(NotImplementedError, match=f'{spec.name} has no forward-mode derivative'):
        dual(f, args[0], args[0])
