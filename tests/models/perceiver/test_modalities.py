"""Perceivers on audio, video, points and tokens. timm's own suite knows images alone."""

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_extra  # noqa: F401
from tests.samples import audio, clip, shapes
from timm_extra.models.info import model_info
from timm_extra.models.perceiver import Perceiver, PerceiverIO

SMALL = dict(num_bands=6, num_latents=12, latent_dim=32, num_blocks=2, block_depth=1, num_heads=4)


def test_the_papers_audio_model_hears_a_recording():
    samples, rate = audio()
    assert rate > 8000
    x = F.interpolate(samples[None, None], size=61440, mode='linear')
    model = timm.create_model('perceiver_audio', num_blocks=1, block_depth=1).eval()
    model.reset_classifier(0)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (1, 1024)
        torch.testing.assert_close(model(x[:, :, None]), logits)  # (B, 1, 1, samples), as timm's configuration has it
        assert not torch.allclose(model(x.flip(-1)), logits, atol=1e-2)
        (content, (table,), _), _ = model.stem(x)
    assert content.shape == (1, 128, 480)
    assert table.shape == (480, 385)
    torch.testing.assert_close(content[0, :, 7], x[0, 0, 7 * 128 : 8 * 128])


def test_audio_of_another_length():
    samples, _ = audio()
    model = timm.create_model('perceiver_audio', patch_size=(16,), num_classes=7, **{**SMALL, 'num_blocks': 1}).eval()
    assert model(samples[: 16 * 300].view(1, 1, -1)).shape == (1, 7)
    with pytest.raises(AssertionError, match=r'Input size \(100\) should be divisible by patch \(16\)'):
        model(samples[:100].view(1, 1, -1))


@pytest.mark.parametrize('kwargs', [{}, dict(stem='patches', patch_size=(2, 4, 4)), dict(stem='conv1x1', stem_chs=8)])
def test_video(kwargs):
    x = clip(8, 32)[None]
    assert x.shape == (1, 3, 8, 32, 32)
    model = timm.create_model('test_perceiver', img_size=(8, 32, 32), num_classes=5, **SMALL, **kwargs).eval()
    z = model.forward_features(x)
    assert z.shape == (1, 12, 32)
    assert not torch.allclose(model.forward_features(x.flip(2)), z, atol=1e-3)  # time runs one way
    plain = timm.create_model(
        'test_perceiver', img_size=(8, 32, 32), num_classes=5, cross_route='plain', **SMALL, **kwargs
    ).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.forward_features(x), z, rtol=0, atol=1e-4)


def test_patches_of_a_video_are_blocks_of_it():
    model = timm.create_model('test_perceiver', img_size=(8, 32, 32), stem='patches', patch_size=(2, 4, 4), **SMALL)
    x = clip(8, 32)[None]
    (content, axes, _), grid = model.stem(x)
    assert grid == [4, 8, 8]
    assert content.shape == (1, 96, 4, 8, 8)
    assert [t.shape[0] for t in axes] == [4, 8, 8]
    block = x[0, :, 2:4, 4:8, 8:12]
    torch.testing.assert_close(content[0, :, 1, 1, 2], block.permute(1, 2, 3, 0).flatten())


def test_the_base_model_takes_a_video_by_name():
    with torch.device('meta'):
        model = timm.create_model('perceiver_base', img_size=(16, 224, 224))
        assert model.stem.max_resolution == [16.0, 224.0, 224.0]
        assert model(torch.empty(1, 3, 16, 224, 224)).shape == (1, 1000)
    assert model.cross_attends[0].attn.k.in_features == 3 + 3 * 129


def test_the_papers_point_cloud_model():
    clouds, _ = shapes(1, 2048)
    model = timm.create_model('perceiver_pointcloud', block_depth=1).eval()
    z = model.forward_features(clouds)
    assert z.shape == (3, 512, 1024)
    torch.testing.assert_close(model.forward_features(clouds[:, None]), z)  # as timm's configuration has it
    shuffled = clouds[:, torch.randperm(2048)]
    torch.testing.assert_close(model.forward_features(shuffled), z, rtol=0, atol=1e-3)  # points have no order
    assert model.forward_features(clouds[:, :100]).shape == (3, 512, 1024)


def test_points_with_features():
    model = timm.create_model('perceiver_pointcloud', in_chans=5, num_classes=3, **SMALL).eval()
    x = torch.randn(2, 40, 5)
    z = model.forward_features(x)
    other = x.clone()
    other[..., 3:] += 1
    assert not torch.allclose(model.forward_features(other), z, atol=1e-3)
    with pytest.raises(AssertionError, match='Input has 3 channels, model takes 5'):
        model(x[..., :3])
    with pytest.raises(AssertionError, match='Input has nothing in it to attend to'):
        model(x[:, :0])
    with pytest.raises(ValueError, match='needs max_resolution'):
        Perceiver(img_size=10, stem='points')


def test_points_can_be_distinguished():
    """Spheres, cubes and cylinders, turned at random: 3 classes, so that guessing gives a third."""
    torch.manual_seed(0)
    clouds, labels = shapes(100, 200)
    model = timm.create_model('perceiver_pointcloud', num_classes=3, **{**SMALL, 'max_resolution': 10})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        batch = torch.arange(step * 30, step * 30 + 30) % 240
        F.cross_entropy(model(clouds[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        right = (model.eval()(clouds[240:]).argmax(1) == labels[240:]).float().mean()
    assert right > 0.8


def test_padded_tokens():
    model = PerceiverIO(
        img_size=30, in_chans=9, stem='tokens', pos_embed='none', num_queries=4, num_classes=6, **SMALL
    ).eval()
    x, mask = torch.randn(2, 30, 9), torch.ones(2, 30, dtype=torch.bool)
    mask[1, 20:] = False
    logits = model(x, mask)
    assert logits.shape == (2, 4, 6)
    torch.testing.assert_close(logits[1:], model(x[1:, :20]), rtol=0, atol=1e-5)


def test_learned_positions_of_tokens_and_audio():
    torch.manual_seed(0)
    for kwargs in (
        dict(stem='tokens', in_chans=9, img_size=30),
        dict(stem='conv1x1', in_chans=1, img_size=(30,)),
    ):
        model = PerceiverIO(pos_embed='learned', pos_dim=8, num_classes=6, **SMALL, **kwargs).eval()
        x = torch.randn(2, 30, 9) if kwargs['stem'] == 'tokens' else torch.randn(2, 1, 30)
        axis = 1 if kwargs['stem'] == 'tokens' else 2
        with torch.no_grad():
            model.stem.pos_embed.mul_(30)
            assert not torch.allclose(model(x), model(x.flip(axis)), atol=1e-4)
        with pytest.raises(AssertionError, match=r'grid of \[20\], learned positions are for \[30\]'):
            model(x[:, :20] if axis == 1 else x[:, :, :20])


@pytest.mark.parametrize('name, size', [('perceiver_audio', (1, 61440)), ('perceiver_pointcloud', (2048, 3))])
def test_they_are_counted_as_the_others_are(name, size):
    info = model_info(name)
    assert info.input_size == size
    assert info.gmacs > 10


@pytest.mark.parametrize('name', ['perceiver_audio', 'perceiver_pointcloud'])
def test_gradients_and_scripts(name):
    model = timm.create_model(name, num_classes=3, **SMALL)
    with torch.no_grad():
        model.head.weight.normal_()
    x = torch.randn(2, *model.pretrained_cfg['input_size'])[..., :640, :] if name.endswith('cloud') else None
    x = torch.randn(2, 1, 1280) if x is None else x
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=0, atol=1e-4)
