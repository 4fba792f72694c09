"""Views against plain transcriptions, one image and one pixel at a time."""

import colorsys
import dataclasses

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from timm_extra.images import input_config
from timm_extra.pretrain.views import (
    BYOL_VIEWS,
    SIMSIAM_VIEWS,
    PlainView,
    RandomView,
    Recipe,
    gaussian_blur,
    resized_crops,
)


def images(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize('size', [(24, 31), (90, 64), (1, 1), (7, 200)])
def test_crops_are_those_of_antialiased_bicubic_resizing(size):
    x = images(4, 3, 50, 70)
    boxes = [(3, 5, 40, 33), (0, 60, 50, 10), (49, 0, 1, 70), (0, 0, 50, 70)]
    flip = torch.tensor([False, True, False, True])
    out = resized_crops(x, *torch.tensor(boxes).unbind(1), size, flip)
    for i, (top, left, height, width) in enumerate(boxes):
        crop = x[i : i + 1, :, top : top + height, left : left + width]
        expected = F.interpolate(crop, size=size, mode='bicubic', antialias=True)[0]
        expected = expected.flip(-1) if flip[i] else expected
        assert (out[i] - expected).abs().max() < 1e-12


def test_blur_is_a_weighted_mean_of_what_is_near():
    x, sigma = images(2, 2, 40, 60), torch.tensor([0.3, 1.7], dtype=torch.float64)
    out = gaussian_blur(x, sigma)
    radius = 2  # a twentieth of the height
    for b in range(2):
        for i, j in ((0, 0), (3, 59), (20, 31)):
            rows, columns = (
                range(max(0, i - radius), min(40, i + radius + 1)),
                range(max(0, j - radius), min(60, j + radius + 1)),
            )
            weights = {
                (r, c): np.exp(-((r - i) ** 2 + (c - j) ** 2) / (2 * float(sigma[b]) ** 2))
                for r in rows
                for c in columns
            }
            mean = sum(w * x[b, :, r, c] for (r, c), w in weights.items()) / sum(weights.values())
            torch.testing.assert_close(out[b, :, i, j], mean, atol=1e-9, rtol=1e-9)


def by_hand(x, draws, i, recipe):
    """BYOL's operations on one image (3, H, W), pixel by pixel in HSV."""

    def in_hsv(x, change):
        pixels = [change(*colorsys.rgb_to_hsv(*p)) for p in x.flatten(1).T.tolist()]
        return torch.tensor([colorsys.hsv_to_rgb(*p) for p in pixels], dtype=x.dtype).T.view_as(x)

    if draws.jitter[i]:
        for kind in draws.order[i].tolist():
            if kind == 0:
                x = x + draws.brightness[i]
            elif kind == 1:
                mean = x.mean((1, 2), keepdim=True)
                x = draws.contrast[i] * (x - mean) + mean
            elif kind == 2:
                x = in_hsv(x, lambda h, s, v: (h, min(1, s * float(draws.saturation[i])), v))
            else:
                x = in_hsv(x, lambda h, s, v: ((h + float(draws.hue[i])) % 1, s, v))
            x = x.clamp(0, 1)
    if draws.grey[i]:
        x = (0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]).expand_as(x)
    if draws.blur[i]:
        x = gaussian_blur(x[None], draws.sigma[i : i + 1])[0]
    if draws.solarize[i]:
        x = torch.where(x < 0.5, x, 1 - x)
    return x


@pytest.mark.parametrize('recipe', [*BYOL_VIEWS, SIMSIAM_VIEWS[0]])
def test_every_image_has_its_own_draws_and_they_are_applied_as_published(recipe):
    recipe = dataclasses.replace(recipe, solarize=recipe.solarize and 0.5)
    x = images(24, 3, 20, 20)
    view = RandomView(recipe, (3, 16, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    draws = view._draw(24, (20, 20), [(7, 0, i, 0) for i in range(24)])
    out = view(x, [(7, 0, i, 0) for i in range(24)])
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.4]], dtype=torch.float64)[..., None, None]
    crops = resized_crops(x, draws.top, draws.left, draws.height, draws.width, (16, 12), draws.flip).clamp(0, 1)
    for i in range(24):
        expected = by_hand(crops[i], draws, i, recipe)
        expected = (expected - mean) / std
        assert (out[i] - expected).abs().max() < 1e-9
    assert len({float(b) for b in draws.brightness}) == 24


def test_draws_are_as_likely_as_the_recipe_says():
    recipe = Recipe(blur=0.1, solarize=0.2)
    n = 4000
    draws = RandomView(recipe, (3, 32, 32))._draw(n, (60, 80), [(0, 0, i, 0) for i in range(n)])
    for name, p in dict(flip=0.5, jitter=0.8, grey=0.2, blur=0.1, solarize=0.2).items():
        assert abs(float(getattr(draws, name).float().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5, name
    for name, low, high in (
        ('brightness', -0.4, 0.4), ('contrast', 0.6, 1.4), ('saturation', 0.8, 1.2), ('hue', -0.1, 0.1),
        ('sigma', 0.1, 2),
    ):  # fmt: skip
        values = getattr(draws, name)
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
    orders = {tuple(o) for o in draws.order.tolist()}
    assert len(orders) == 24  # every order of four
    areas = draws.height * draws.width / (60 * 80)
    ratios = draws.width / draws.height
    assert areas.min() > 0.07 and areas.max() <= 1 and ratios.min() > 0.7 and ratios.max() < 1.42
    assert abs(float(areas.float().mean()) - 0.5) < 0.06
    assert (draws.top >= 0).all() and (draws.top + draws.height <= 60).all()
    assert (draws.left >= 0).all() and (draws.left + draws.width <= 80).all()


@pytest.mark.parametrize('size', [(3, 200), (200, 3), (1, 1)])
def test_images_too_narrow_for_any_crop_give_the_largest(size):
    draws = RandomView(Recipe(scale=(1.0, 1.0)), (3, 8, 8))._draw(50, size, None)
    assert (draws.height <= size[0]).all() and (draws.width <= size[1]).all() and (draws.height > 0).all()
    assert RandomView(BYOL_VIEWS[0], (3, 8, 8))(images(2, 3, *size)).isfinite().all()


def test_the_key_decides_and_nothing_else():
    view = RandomView(BYOL_VIEWS[1], (3, 16, 16))
    x = images(6, 3, 20, 24, dtype=torch.float32)
    keys = [(0, 3, i, 1) for i in range(6)]
    whole = view(x, keys)
    assert torch.equal(whole, view(x, keys))
    torch.manual_seed(5)
    torch.testing.assert_close(view(x[4:], keys[4:]), whole[4:])
    for other in ((1, 3, 0, 1), (0, 4, 0, 1), (0, 3, 9, 1), (0, 3, 0, 0)):
        assert not torch.allclose(view(x[:1], [other]), whole[:1], atol=1e-2)


def test_without_keys_the_random_state_decides():
    view = RandomView(BYOL_VIEWS[0], (3, 16, 16))
    x = images(4, 3, 20, 24, dtype=torch.float32)
    torch.manual_seed(0)
    first = view(x)
    assert not torch.equal(first, view(x))
    torch.manual_seed(0)
    assert torch.equal(first, view(x))


def test_images_of_any_sizes_and_types():
    view = RandomView(BYOL_VIEWS[0], (3, 16, 16))
    sizes = [(20, 30), (16, 16), (90, 11)]
    x = [(images(3, *size, seed=i) * 255).to(torch.uint8) for i, size in enumerate(sizes)]
    keys = [(0, 0, i, 0) for i in range(3)]
    out = view(x, keys)
    assert out.shape == (3, 3, 16, 16) and out.dtype == torch.float32
    for i in range(3):
        torch.testing.assert_close(out[i : i + 1], view(x[i][None].float() / 255, keys[i : i + 1]))


@pytest.mark.parametrize('channels', [1, 2, 5])
def test_other_channels_keep_saturation_and_hue(channels):
    view = RandomView(dataclasses.replace(BYOL_VIEWS[0], grey=1.0), (channels, 16, 16))
    x = images(8, channels, 20, 20, dtype=torch.float32)
    out = view(x)
    assert out.shape == (8, channels, 16, 16)
    if channels > 1:
        assert (out[:, 0] - out[:, 1]).abs().max() > 0.1  # not grey


def test_plain_view_is_the_middle():
    x = images(2, 3, 40, 60)
    out = PlainView((3, 16, 16), mean=(0.5,), std=(0.25,))(x)
    expected = F.interpolate(x[:, :, :, 10:50], size=(16, 16), mode='bicubic', antialias=True).clamp(0, 1)
    torch.testing.assert_close(out, (expected - 0.5) / 0.25, atol=1e-5, rtol=1e-5)
    same = PlainView((3, 40, 60))(x)
    torch.testing.assert_close(same, x, atol=1e-6, rtol=0)
    assert PlainView((3, 16, 16))([x[0], x[1, :, :20]]).shape == (2, 3, 16, 16)


def test_views_name_bad_arguments():
    view = RandomView(BYOL_VIEWS[0], (3, 16, 16))
    with pytest.raises(ValueError, match=r'shape \(B, 3, H, W\), got \(2, 1, 8, 8\)'):
        view(images(2, 1, 8, 8))
    for x, message in (
        (255 * images(2, 3, 8, 8), r'must lie in \[0, 1\], got values from'),
        (images(2, 3, 8, 8) - 0.5, r'must lie in \[0, 1\]'),
        (torch.full((2, 3, 8, 8), torch.nan), r'must lie in \[0, 1\]'),
        (torch.ones(2, 3, 8, 8, dtype=torch.int32), r'uint8, or floating-point in \[0, 1\], got torch.int32'),
    ):
        for one in (view, PlainView((3, 16, 16))):
            with pytest.raises(ValueError, match=message):
                one(x)
    with pytest.raises(ValueError, match='1 keys for 2 images'):
        view(images(2, 3, 8, 8), [(0,)])
    with pytest.raises(ValueError, match='`mean` has 2 values for 3 channels'):
        RandomView(BYOL_VIEWS[0], (3, 16, 16), mean=(0.1, 0.2))
    with pytest.raises(ValueError, match=r'channels, height and width, got \(16, 16\)'):
        RandomView(BYOL_VIEWS[0], (16, 16))
    for kwargs, message in (
        (dict(blur=1.5), '`blur` is a probability, got 1.5'),
        (dict(scale=(0.5, 0.1)), '`scale` must be two positive numbers'),
        (dict(scale=(0.5, 2)), '`scale` must not exceed 1'),
        (dict(hue=0.6), '`hue` must be between 0 and 0.5, got 0.6'),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**kwargs)


def test_input_config_is_the_models():
    model = timm.create_model('test_vit', in_chans=1, img_size=64)
    assert input_config(model)['input_size'] == (1, 64, 64)
    assert len(input_config(model)['mean']) == 1
    model = timm.create_model('test_resnet', in_chans=4)
    assert input_config(model)['input_size'][0] == 4
    assert input_config(model, (4, 32, 32), mean=(0, 0, 0, 0))['mean'] == (0, 0, 0, 0)
    with pytest.raises(ValueError, match='Linear does not say the size of its inputs'):
        input_config(torch.nn.Linear(2, 2))
