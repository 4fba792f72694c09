"""captum: attributions to pixels and to inner layers."""

import pytest
import torch
from captum.attr import IntegratedGradients, LayerActivation, LayerIntegratedGradients, Saliency
from torch.testing import assert_close

from tests.clients.zoo import MODELS, images, make

LAST = {  # a module every model has that sees the batch last
    'test_vit': 'blocks.5',
    'test_ceit': 'blocks.5',
    'test_perceiver': 'blocks.0.1',
    'test_perceiver_io': 'blocks.0.1',
    'test_glom': 'levels.2',
}


@pytest.mark.parametrize('name', MODELS)
def test_saliency_is_the_gradient(name):
    model, x = make(name), images(name).requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, 3].sum(), x)
    assert_close(Saliency(model).attribute(images(name), target=3), expected.abs())


@pytest.mark.parametrize('name', MODELS)
def test_integrated_gradients_are_the_mean_along_the_way(name):
    model, x = make(name), images(name)
    found, delta = IntegratedGradients(model).attribute(
        x, target=3, n_steps=8, method='riemann_middle', return_convergence_delta=True
    )
    way = []
    for i in range(8):
        point = (x * (i + 0.5) / 8).requires_grad_()
        way.append(torch.autograd.grad(model(point)[:, 3].sum(), point)[0])
    expected = torch.stack(way).mean(0) * x
    assert_close(found, expected, rtol=1e-3, atol=1e-5)
    gap = expected.flatten(1).sum(1) - (model(x) - model(torch.zeros_like(x)))[:, 3].detach()
    assert_close(delta.float(), gap, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('grad', (False, True), ids=('inference', 'grad'))
@pytest.mark.parametrize('name', MODELS)
def test_activations_of_a_layer_are_those_of_each_image(name, grad):
    model, x = make(name), images(name, 3)
    layer = model.get_submodule(LAST[name])
    with torch.set_grad_enabled(grad):
        found = LayerActivation(model, layer).attribute(x)
        alone = [LayerActivation(model, layer).attribute(x[i : i + 1]) for i in range(3)]
    assert found.shape[0] == 3
    assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
    if name in ('test_vit', 'test_ceit'):  # the last block's tokens, all of them
        assert found.shape[1] == 101
    assert (found[0] - found[1]).abs().max() > 1e-4


@pytest.mark.parametrize('name', MODELS)
def test_attributions_to_a_layer_sum_to_the_change_of_the_output(name):
    model, x = make(name), images(name, 2)
    layer = model.get_submodule(LAST[name])
    found = LayerIntegratedGradients(model, layer).attribute(x, target=3, n_steps=64)
    change = (model(x) - model(torch.zeros_like(x)))[:, 3]
    assert_close(found.flatten(1).sum(1).float(), change, rtol=0.02, atol=0.02)
