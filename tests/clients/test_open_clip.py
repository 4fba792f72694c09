"""open_clip: models as image towers."""

import pytest
import torch
from open_clip.model import CLIP
from torch.testing import assert_close

from tests.clients.zoo import MODELS, images, stir

TEXT = dict(context_length=8, vocab_size=64, width=32, heads=2, layers=1)


@pytest.mark.parametrize('name', MODELS)
def test_the_image_tower_is_the_model_and_a_projection(name):
    torch.manual_seed(0)
    x = images(name)
    vision = dict(timm_model_name=name, timm_model_pretrained=False, image_size=x.shape[-1])
    clip = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT).eval()
    trunk = stir(clip.visual.trunk)
    tokens = trunk.forward_features(x)[:, trunk.num_prefix_tokens :]
    pooled = trunk.fc_norm(tokens.mean(1)) if name in ('test_vit', 'test_glom') else tokens.mean(1)
    if name == 'test_perceiver':
        pooled = trunk.head_norm(pooled)
    found = clip.encode_image(x)
    assert_close(found, pooled @ clip.visual.head.proj.weight.T, rtol=1e-4, atol=1e-5)

    x.requires_grad_()
    image, text, _ = clip.train()(x, torch.randint(1, 64, (2, 8)))
    (image @ text.T).square().sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
