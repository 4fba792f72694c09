"""torch.func: transforms of a model as a function of its parameters and its input."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from tests.clients.zoo import CLASSES, MODELS, images, make


@pytest.mark.parametrize('name', MODELS)
def test_functional_call_with_other_parameters(name):
    model, other, x = make(name), make(name), images(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    assert_close(functional_call(model, dict(other.named_parameters()), (x,)), other(x))


@pytest.mark.parametrize('name', MODELS)
def test_gradients_per_sample_are_those_of_a_loop(name):
    model, x = make(name).double(), images(name, 3).double()
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def loss(parameters, image):
        return functional_call(model, parameters, (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        model.zero_grad()
        model(x[i : i + 1]).square().sum().backward()
        expected = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}
        assert_close({k: v[i] for k, v in found.items()}, expected)


@pytest.mark.parametrize('name', MODELS)
def test_jacobian_has_the_gradient_of_every_class(name):
    model, x = make(name).double(), images(name, 1).double()
    found = jacrev(model)(x)
    assert found.shape == (1, CLASSES, *x.shape)
    for i in range(CLASSES):
        point = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(point)[0, i], point)
        assert_close(found[0, i], expected)


@pytest.mark.parametrize('name', MODELS)
def test_directional_derivative_is_the_gradients_product(name):
    model, x = make(name).double(), images(name, 2).double()
    direction = images(name, 2, seed=2).double()
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no forward-mode derivative
        output, found = jvp(model, (x,), (direction,))
    assert_close(output, model(x))
    for i in range(CLASSES):
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(point)[:, i].sum(), point)
        assert_close(found[:, i], (gradient * direction).flatten(1).sum(1))
