"""peft: low-rank adapters on every linear layer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from tests.clients.zoo import MODELS, idle, images, layers, make


def adapted(name):
    """A model with adapters that change what it computes, and the names of its adapted layers."""
    model = make(name)
    names = layers(model, nn.Linear)
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=names, init_lora_weights=False))
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if 'lora_' in key:
                parameter.normal_(std=0.1)
    return peft.eval(), names


@pytest.mark.parametrize('grad', (False, True), ids=('inference', 'grad'))
@pytest.mark.parametrize('name', MODELS)
def test_adapters_change_the_weights_as_stated(name, grad):
    peft, names = adapted(name)
    expected = make(name)
    before = expected(images(name))
    with torch.no_grad():
        for key in names:
            layer = peft.base_model.model.get_submodule(key)
            a, b = layer.lora_A['default'].weight, layer.lora_B['default'].weight
            expected.get_submodule(key).weight += 2.0 * b @ a
    with torch.set_grad_enabled(grad):
        found = peft(images(name))
    assert_close(found, expected(images(name)), rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 1e-2
    merged = peft.merge_and_unload()
    with torch.set_grad_enabled(grad):
        assert_close(merged(images(name)), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', MODELS)
def test_adapters_alone_are_trained(name):
    peft, names = adapted(name)
    peft.train()(images(name)).square().mean().backward()
    gradients = {key: p.grad for key, p in peft.named_parameters() if p.grad is not None}
    assert set(gradients) == {key for key, _ in peft.named_parameters() if 'lora_' in key}
    assert len(gradients) == 2 * len(names)
    without = {key for key, gradient in gradients.items() if not gradient.any()}
    assert without == {key for key in gradients if idle(name, key)}
