"""grad-cam: maps from activations and gradients of an inner layer."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from tests.clients.zoo import MODELS, images, make

# the layer a map is made from, prefix tokens of its output, and the grid of the rest
LAYERS = {
    'test_vit': ('blocks.5.norm1', 1, (10, 10)),
    'test_ceit': ('blocks.5.norm1', 1, (10, 10)),
    'test_perceiver': ('blocks.0.1', 0, (4, 4)),  # latents are on no grid: any shape will do
    'test_perceiver_io': ('blocks.0.1', 0, (4, 4)),
    'test_glom': ('norm', 0, (4, 4)),  # the final tokens
}


def map_by_hand(tokens, gradients, prefix, grid, size):
    """Weighted sum of the features of tokens (1, N, C), above zero, brought to an image's size and to 0 … 1."""
    tokens, gradients = tokens[0, prefix:], gradients[0, prefix:]
    found = (tokens * gradients.mean(0)).sum(-1).clamp_min(0).reshape(1, 1, *grid)
    found = found / (found.max() + 1e-7)
    found = torch.nn.functional.interpolate(found, size=size, mode='bilinear', align_corners=False)
    return (found / found.max().clamp_min(1e-7))[0, 0]


@pytest.mark.parametrize('name', MODELS)
def test_every_image_gets_the_map_of_its_own_tokens(name):
    path, prefix, grid = LAYERS[name]
    model, x = make(name), images(name, 2)
    layer = model.get_submodule(path)

    def on_grid(tokens):
        assert tokens.shape[0] == 2  # of the whole batch
        return tokens[:, prefix:].transpose(1, 2).reshape(2, -1, *grid)

    with GradCAM(model, [layer], reshape_transform=on_grid) as cam:
        found = cam(x, [ClassifierOutputTarget(3)] * 2)
    kept = []
    handle = layer.register_forward_hook(lambda _, args, output: kept.append(output))
    for i in range(2):
        kept.clear()
        score = model(x[i : i + 1])[0, 3]
        tokens = kept[0]  # where a layer is called again, grad-cam takes the first call
        expected = map_by_hand(tokens, torch.autograd.grad(score, tokens)[0], prefix, grid, x.shape[-2:])
        assert np.corrcoef(found[i].ravel(), expected.detach().numpy().ravel())[0, 1] > 0.99
    handle.remove()
    assert np.abs(found[0] - found[1]).max() > 0.05
