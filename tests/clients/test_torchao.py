"""torchao: linear layers whose weights are tensor subclasses, or that quantise what they get."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerAxis
from torchao.quantization.qat import QATConfig

from tests.clients.zoo import MODELS, idle, images, layers, make


def dequantized(model):
    """A copy of a quantised model with the floating-point weights that its weights stand for."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.Linear) and type(module.weight.data) is not torch.Tensor:
            module.weight = nn.Parameter(module.weight.dequantize())
    return plain


@pytest.mark.parametrize('grad', (False, True), ids=('inference', 'grad'))
@pytest.mark.parametrize('config', (Int8WeightOnlyConfig, Float8WeightOnlyConfig))
@pytest.mark.parametrize('name', MODELS)
def test_quantised_weights(name, config, grad):
    model = make(name)
    before = model(images(name))
    quantize_(model, config())
    assert all(type(model.get_submodule(key).weight.data) is not torch.Tensor for key in layers(model, nn.Linear))
    with torch.set_grad_enabled(grad):
        found = model(images(name))
    assert_close(found, dequantized(model)(images(name)), rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, before)


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_quantised_activations(name):
    model = make(name)
    expected = model(images(name))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    found = model(images(name))
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize('name', MODELS)
def test_quantisation_aware_training(name):
    base = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    model = make(name)
    expected = model(images(name)).detach()
    quantize_(model, QATConfig(base, step='prepare'))
    prepared = model(images(name))
    assert 0 < (prepared - expected).norm() / expected.norm() < 0.05
    prepared.square().mean().backward()
    names = layers(model, nn.Linear)
    without = {f'{key}.weight' for key in names if not model.get_submodule(key).weight.grad.any()}
    assert without == {f'{key}.weight' for key in names if idle(name, f'{key}.weight')}
    quantize_(model, QATConfig(base, step='convert'))
    with torch.no_grad():
        assert (model(images(name)) - prepared).norm() / expected.norm() < 0.05
