"""segmentation-models-pytorch: models as encoders named `tu-…`."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.testing import assert_close

from tests.clients.zoo import SIZES

# DPT takes encoders whose feature maps all have one size; every other decoder refuses these, those of timm too.
# Perceivers have no feature maps: latents are on no grid.
INDICES = {'test_vit': (0, 2, 4, 5), 'test_ceit': (0, 2, 4, 5), 'test_glom': (0, 1, 2, 3)}
OPTIONS = {'test_glom': dict(num_levels=4, patch_size=16, img_size=64)}  # it takes patches of 16 pixels alone


@pytest.mark.parametrize('name', INDICES)
def test_a_decoder_on_the_feature_maps(name):
    torch.manual_seed(0)
    model = smp.DPT(
        encoder_name=f'tu-{name}',
        encoder_weights=None,
        encoder_output_indices=INDICES[name],
        decoder_intermediate_channels=(8, 8, 8, 8),
        decoder_fusion_channels=8,
        decoder_readout='ignore',
        classes=2,
        **OPTIONS.get(name, {}),
    ).eval()
    size = OPTIONS.get(name, {}).get('img_size', SIZES[name])
    x = torch.randn(2, 3, size, size)
    maps, prefixes = model.encoder(x)
    trunk = model.encoder.model
    expected = trunk.forward_intermediates(x, indices=INDICES[name], intermediates_only=True)
    assert_close(maps, expected)
    assert all((prefix is not None) == (trunk.num_prefix_tokens > 0) for prefix in prefixes)
    masks = model(x)
    assert masks.shape == (2, 2, *x.shape[-2:])
    masks.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in trunk.patch_embed.parameters())
