"""Optical flow against DeepMind's own numbers and transformers, with weights through the filter."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import timm_extra  # noqa: F401
from tests.models.perceiver.test_golden import block, drawn
from tests.models.perceiver.test_transformers import in_float64, with_tanh  # noqa: F401, a fixture
from tests.reference.perceiver import flow_with_weights_of, neighbourhoods, transformers_flow
from timm_extra.models.perceiver import checkpoint_filter_fn

GOLDEN = json.loads((Path(__file__).with_name('golden_flow.json')).read_text())
SMALL = dict(num_latents=10, latent_dim=32, num_heads=4, block_depth=2)


def published(latents, dim, depth, chs, channels):
    """Names and shapes of a checkpoint of optical flow in the layout of transformers."""
    shapes = dict(block('perceiver.encoder.cross_attention', dim, channels))
    for i in range(depth):
        shapes.update(block(f'perceiver.encoder.self_attends.{i}', dim))
    shapes.update(block('perceiver.decoder.decoder.decoding_cross_attention', channels, dim))
    shapes['perceiver.embeddings.latents'] = (latents, dim)
    for name, shape in {
        'input_preprocessor.conv_after_patches': (chs, 54),
        'decoder.decoder.final_layer': (2, channels),
    }.items():
        shapes[f'perceiver.{name}.weight'], shapes[f'perceiver.{name}.bias'] = shape, shape[:1]
    return shapes


@pytest.mark.parametrize('route', ['separable', 'plain', None])
@pytest.mark.parametrize('case', GOLDEN['cases'], ids=lambda case: case['name'])
def test_deepminds_numbers(case, route):
    height, width = case['size']
    model = timm.create_model(
        'perceiver_io_flow', img_size=(16, 20), max_resolution=(16, 20), num_bands=5, stem_chs=8, cross_route=route,
        dtype=torch.float64, **SMALL,
    ).eval()  # fmt: skip
    given = {k: drawn(k, v) for k, v in published(10, 32, 2, 8, model.stem.out_chans).items()}
    model.load_state_dict(checkpoint_filter_fn(given, model))
    random = np.random.RandomState(zlib.crc32(f'frames {height}x{width}'.encode()))
    frames = torch.from_numpy(random.standard_normal((case['batch'], 2, height, width, 3))).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        flow = model(frames)
    expected = torch.tensor(case['flow'], dtype=torch.float64).permute(0, 3, 1, 2)
    torch.testing.assert_close(flow, expected, rtol=0, atol=1e-8)


def pair(size, **kwargs):
    """transformers' model for a size, and ours with its weights."""
    config = dict(num_latents=10, d_latents=32, num_self_attends_per_block=2, num_self_attention_heads=4)
    other = transformers_flow(size, **config)
    return other, flow_with_weights_of(other, **dict(dict(compat='hf', **SMALL), **kwargs))


@pytest.mark.parametrize('route', ['separable', 'plain', None])
@pytest.mark.parametrize('size', [(16, 24), (13, 1)])
def test_same_flow_and_gradients_as_transformers(size, route, in_float64):  # noqa: F811
    other, ours = pair(size, cross_route=route)
    frames = torch.randn(2, 3, 2, *size)
    ours_frames, others_frames = (frames.clone().requires_grad_() for _ in range(2))
    flow = ours(ours_frames)
    expected = 20 * other(neighbourhoods(others_frames)).logits.permute(0, 3, 1, 2)  # its unit is 20 pixels
    torch.testing.assert_close(flow, expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.05
    grad = torch.randn_like(flow)
    flow.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours_frames.grad, others_frames.grad, rtol=0, atol=1e-5)
    of_names = {k: p.grad for k, p in other.named_parameters()}
    theirs = checkpoint_filter_fn(of_names, ours)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name], rtol=0, atol=1e-5, msg=name)


def test_deepminds_mode_differs_by_the_activation_alone(in_float64):  # noqa: F811
    other, ours = pair((16, 24), compat=None)
    frames = torch.randn(1, 3, 2, 16, 24)
    with torch.no_grad():
        before = 20 * other(neighbourhoods(frames)).logits.permute(0, 3, 1, 2)
        with_tanh(other)
        after = 20 * other(neighbourhoods(frames)).logits.permute(0, 3, 1, 2)
        flow = ours(frames)
    torch.testing.assert_close(flow, after, rtol=0, atol=1e-6)
    assert (flow - before).abs().max() > 1e-5


def test_published_widths():
    with torch.device('meta'):
        model = timm.create_model('perceiver_io_flow')
    assert model.input_size == (3, 2, 368, 496)
    assert model.pretrained_cfg['mean'] == model.pretrained_cfg['std'] == (0.5, 0.5, 0.5)
    given = {k: torch.empty(v, device='meta') for k, v in published(2048, 512, 24, 64, 322).items()}
    converted = checkpoint_filter_fn(given, model)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize('size', [(1, 1), (7, 30), (40, 9)])
def test_any_size_with_the_same_weights(size):
    model = timm.create_model('perceiver_io_flow', num_bands=5, stem_chs=8, **SMALL).eval()
    frames = torch.randn(2, 3, 2, *size)
    assert model(frames).shape == (2, 2, *size)
    assert not model(frames).any()  # DeepMind's output layer begins at zero
    torch.nn.init.normal_(model.head.weight)
    torch.testing.assert_close(torch.jit.script(model)(frames), model(frames))


def test_frames_of_another_shape_are_refused():
    model = timm.create_model('perceiver_io_flow', num_bands=5, stem_chs=8, **SMALL)
    with pytest.raises(AssertionError, match=r'\(batch, channels, frames, height, width\), got 4 dimensions'):
        model(torch.randn(1, 3, 16, 16))
    with pytest.raises(AssertionError, match='Input has 3 frames, model takes 2'):
        model(torch.randn(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="stem='frames' is for images, got an img_size of 1 numbers"):
        timm.create_model('perceiver_io_flow', img_size=(16,))
    with pytest.raises(ValueError, match='num_frames must be at least 1, got 0'):
        timm.create_model('perceiver_io_flow', num_frames=0)


@pytest.mark.parametrize('chans', [4, 6])
def test_other_channels_keep_the_trained_stem(chans):
    other, colours = pair((8, 12))
    ours = flow_with_weights_of(other, in_chans=chans, compat='hf', **SMALL)
    frames = torch.randn(1, chans, 2, 8, 12)
    with torch.no_grad():
        folded = torch.stack([3 / chans * frames[:, i::3].sum(1) for i in range(3)], 1)  # timm repeats colours
        torch.testing.assert_close(ours(frames), colours(folded), rtol=0, atol=1e-5)


def test_sizes_with_and_without_frames():
    model = timm.create_model('perceiver_io_flow', img_size=(2, 8, 12), num_bands=5, **SMALL).eval()
    assert model.input_size == (3, 2, 8, 12)
    model.set_input_size((2, 16, 8))
    assert model.input_size == (3, 2, 16, 8)
    with pytest.raises(ValueError, match='another number of frames than num_frames=2'):
        timm.create_model('perceiver_io_flow', img_size=(3, 8, 12))


@pytest.mark.parametrize('in_chans', [1, 3])
def test_a_single_frame_is_an_image(in_chans):
    options = dict(img_size=(8, 12), stem='frames', num_bands=5, in_chans=in_chans, num_classes=4, **SMALL)
    options['dtype'] = torch.float64
    pairs = timm.create_model('perceiver_io_small', num_frames=2, query_type='inputs', **options).eval()
    model = timm.create_model('perceiver_io_small', num_frames=1, query_type='inputs', **options).eval()
    assert model.input_size == (in_chans, 8, 12)
    torch.nn.init.normal_(pairs.head.weight)
    weights = pairs.state_dict()
    weights['stem.conv.weight'] = weights['stem.conv.weight'][:, :in_chans]
    model.load_state_dict(weights)
    images = torch.randn(2, in_chans, 6, 10).double()
    expected = pairs(torch.stack([images, torch.zeros_like(images)], 2))
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(torch.jit.script(model)(images), expected)
    with pytest.raises(AssertionError, match=r'\(batch, channels, 2 spatial axes\), got 5 dimensions'):
        model(images.unsqueeze(2))


def test_features_alone_and_maps_over_a_batch():
    features = timm.create_model('perceiver_io_flow', img_size=8, num_bands=5, features_only=True, **SMALL)
    assert features(torch.randn(1, 3, 2, 8, 8))[-1].shape == (1, 10, 32)
    model = timm.create_model('perceiver_io_flow', img_size=8, num_bands=5, dtype=torch.float64, **SMALL).eval()
    torch.nn.init.normal_(model.head.weight)
    frames = torch.randn(2, 3, 2, 8, 8, dtype=torch.float64)
    mapped = torch.func.vmap(lambda one: model(one[None])[0])(frames)
    torch.testing.assert_close(mapped, model(frames), rtol=1e-10, atol=1e-10)


def test_grey_frames_from_weights_of_colours():
    other, colours = pair((8, 12))
    grey = flow_with_weights_of(other, in_chans=1, compat='hf', **SMALL)
    frames = torch.randn(1, 1, 2, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(grey(frames), colours(frames.expand(-1, 3, -1, -1, -1)), rtol=0, atol=1e-5)
