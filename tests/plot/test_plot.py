import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.decomposition import PCA

from timm_extra import plot
from timm_extra.models.glom.islands import adjusted_rand_index, island_labels, neighbour_cosine
from timm_extra.models.perceiver.cross_attention import tokens_alone

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3)


def test_lca_attention_is_what_the_layer_uses():
    model = timm.create_model('test_ceit', **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    inputs = []
    hook = model.lca.attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    expected = model(x)
    tokens = inputs[0]
    q, k, _ = model.lca.attn.qkv(tokens).reshape(2, 5, 3, 3, 8).unbind(2)
    scores = torch.einsum('bhd,blhd->bhl', q[:, -1], k) / 8**0.5
    fused = model.lca.attn.fused_attn
    weights = plot.lca_attention(model, x)
    torch.testing.assert_close(weights, scores.softmax(-1))
    hook.remove()
    assert model.lca.attn.fused_attn == fused
    assert not model.lca.attn.attn_drop._forward_pre_hooks
    torch.testing.assert_close(model(x), expected)


def test_the_backend_of_the_caller_stays(tmp_path):
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use('svg')
    try:
        plot.learning_curve([dict(train_loss=1.0, top1=50.0)] * 2, tmp_path / 'curve.png')
        assert matplotlib.get_backend() == 'svg'
    finally:
        matplotlib.use(before)


def test_a_model_in_training_is_refused_and_left_alone():
    model = timm.create_model('test_ceit', **SMALL).train()
    with pytest.raises(ValueError, match='eval'):
        plot.lca_attention(model, torch.randn(2, 3, 32, 32))
    assert model.patch_embed.bn.num_batches_tracked == 0


def test_a_model_without_lca_has_none_to_show():
    with pytest.raises(ValueError, match='no layer-wise'):
        plot.lca_attention(timm.create_model('test_ceit', use_lca=False, **SMALL), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('chans, count', [(1, 1), (3, 4)])
def test_sheets_are_drawn(chans, count, tmp_path):
    path = plot.prediction_sheet(
        torch.rand(count, chans, 8, 8),
        [0] * count,
        torch.randn(count, 2),
        torch.rand(count, 3, 5).softmax(-1),
        tmp_path / 'sheet.png',
        class_names=['left', 'right'],
    )
    assert path.stat().st_size > 3000


PERCEIVER = dict(num_bands=4, num_latents=9, latent_dim=32, cross_num_heads=3, cross_head_dim=5)


@pytest.mark.parametrize('name', ['test_perceiver', 'test_perceiver_io'])
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(unique_cross_attends=1),
        dict(unique_cross_attends=3),
        dict(stem='conv1x1', pos_embed='learned', img_size=(7, 11)),
    ],
)
def test_latent_attention_is_what_the_layer_uses(name, kwargs):
    if name.endswith('io'):
        kwargs = dict(kwargs, unique_cross_attends=1)
    model = timm.create_model(name, **PERCEIVER, **kwargs).eval()
    x = torch.randn(2, 3, 7, 11)
    for block in range(model.num_cross_attends):
        weights = plot.latent_attention(model, x, [4, 0], block)
        assert weights.shape == (2, 3, 2, 7, 11)
        torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 3, 2))
        used = min(block, len(model.cross_attends) - 1)
        attn = model.cross_attends[used].attn
        calls = []
        hook = attn.register_forward_hook(lambda module, args, output, calls=calls: calls.append((args, output)))
        model(x)
        hook.remove()
        (_, inputs), output = calls[block - used]
        values = attn._keys_values(inputs)[1]
        gathered = (weights.flatten(-2) @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attn.proj(gathered), output[:, [4, 0]], rtol=0, atol=1e-5)
    assert torch.equal(plot.latent_attention(model, x, [1], -1), plot.latent_attention(model, x, [1], block))
    assert not attn._forward_pre_hooks


def test_decoder_attention_is_what_the_layer_uses():
    torch.manual_seed(0)
    model = timm.create_model('test_perceiver_io', num_queries=2).eval()
    with torch.no_grad():
        model.query.normal_()
    x = torch.randn(3, 3, 16, 16)
    weights = plot.decoder_attention(model, x)
    assert weights.shape == (3, 1, 2, 16)
    attn, z = model.decoder.attn, model.forward_features(x)
    values = attn.v(attn.norm_kv(z))[:, None]  # one head
    expected = attn.proj((weights @ values)[:, 0])
    torch.testing.assert_close(attn(model.decoder.norm1(model.query[None]), tokens_alone(z)), expected)
    own = torch.randn(5, model.head_hidden_size)
    assert plot.decoder_attention(model, x, queries=own).shape == (3, 1, 5, 16)
    with pytest.raises(ValueError, match='no decoder'):
        plot.decoder_attention(timm.create_model('test_perceiver').eval(), x)
    with pytest.raises(ValueError, match='eval'):
        plot.decoder_attention(model.train(), x)


def test_latent_attention_of_learned_positions_masks_and_points():
    learned = dict(stem='conv1x1', pos_embed='learned', img_size=(6, 8))
    model = timm.create_model('test_perceiver_io', **PERCEIVER, **learned).eval()
    mask = torch.rand(1, 6, 8) > 0.4
    maps = plot.latent_attention(model, torch.randn(1, 3, 6, 8), [0], mask=mask)
    assert maps.shape == (1, 3, 1, 6, 8)
    assert (maps[..., ~mask[0]] == 0).all()
    tokens = dict(stem='tokens', in_chans=9, img_size=30, pos_embed='learned')
    model = timm.create_model('test_perceiver', **PERCEIVER, **tokens).eval()
    assert plot.latent_attention(model, torch.randn(2, 30, 9), [0]).shape == (2, 3, 1, 30)
    model = timm.create_model('test_perceiver', pos_embed='none', **{**PERCEIVER, 'cross_head_dim': 5}).eval()
    assert plot.latent_attention(model, torch.randn(2, 3, 6, 8), [0]).shape == (2, 3, 1, 6, 8)
    points = timm.create_model('perceiver_pointcloud', num_heads=4, **PERCEIVER).eval()
    assert plot.latent_attention(points, torch.randn(2, 20, 3), [0, 1]).shape == (2, 3, 2, 20)


def test_maps_that_do_not_exist_are_named():
    model = timm.create_model('test_perceiver_io', **PERCEIVER).eval()
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match='blocks with a cross-attend are 0 to 0, got 1'):
        plot.latent_attention(model, x, [0], block=1)
    with pytest.raises(ValueError, match='latents are 0 to 8, got 9'):
        plot.latent_attention(model, x, [9])
    with pytest.raises(ValueError, match='eval'):
        plot.latent_attention(model.train(), x, [0])


def test_latent_sheets_are_drawn(tmp_path):
    path = plot.latent_sheet(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 4, 8, 8), tmp_path / 'latents.png')
    assert path.stat().st_size > 3000


def test_sheets_without_attention_are_drawn(tmp_path):
    sheet = plot.prediction_sheet(torch.rand(2, 1, 8, 8), [0, 1], torch.randn(2, 2), None, tmp_path / 'sheet.png')
    assert sheet.stat().st_size > 3000


def test_colours_are_principal_components_of_what_sets_columns_apart():
    state = torch.randn(3, 8, 2, 6) * torch.tensor([1.0, 5.0, 1.0, 3.0, 2.0, 0.5])
    state += 10 * torch.randn(3, 1, 1, 6)  # moves over iterations, the same for all columns
    colours = plot.pca_rgb(state, (2, 4))
    assert colours.shape == (3, 2, 2, 4, 3)
    assert colours.min() == 0 and colours.max() == 1
    for level in range(2):
        x = state[:, :, level]
        fitted = PCA(3).fit((x - x.mean(1, keepdim=True)).flatten(0, 1))
        expected = x.flatten(0, 1).numpy() @ fitted.components_.T
        for channel in range(3):
            found = colours[:, level, ..., channel].flatten().numpy()
            assert abs(np.corrcoef(found, expected[:, channel])[0, 1]) == pytest.approx(1, abs=1e-4)
            assert (found.min(), found.max()) == (0, 1)


def test_colours_mean_the_same_in_all_iterations():
    state = torch.randn(2, 6, 1, 4)
    state[1, 0] = state[0, 5]
    colours = plot.pca_rgb(state, (2, 3))
    torch.testing.assert_close(colours[1, 0, 0, 0], colours[0, 0, 1, 2])
    torch.testing.assert_close(plot.pca_rgb(state.flip(0), (2, 3)).flip(0), colours)


def test_signs_of_colours_do_not_depend_on_chance():
    state = torch.randn(1, 12, 1, 3) * torch.tensor([1.0, 100.0, 10.0])  # components are close to the axes
    colours = plot.pca_rgb(state, (3, 4))[0, 0].flatten(0, 1)
    for channel, axis in enumerate([1, 2, 0]):
        values = state[0, :, 0, axis].numpy()
        assert np.corrcoef(values, colours[:, channel].numpy())[0, 1] > 0.5


@pytest.mark.parametrize('shape, varying', [((2, 6, 1, 1), 1), ((2, 6, 1, 2), 2), ((1, 2, 1, 9), 1), ((1, 3, 1, 9), 2)])
def test_missing_components_are_grey(shape, varying):
    colours = plot.pca_rgb(torch.randn(shape), (shape[1], 1))
    for channel in range(3):
        part = colours[..., channel]
        assert (part.min(), part.max()) == ((0, 1) if channel < varying else (0.5, 0.5))


@pytest.mark.parametrize('scale', [0, 1e-4, 1, 1e4])
def test_equal_columns_are_grey(scale):
    state = scale * torch.randn(2, 5).repeat(3, 12, 1, 1) * (1 + 1e-7 * torch.randn(3, 12, 2, 5))
    assert (plot.pca_rgb(state, (3, 4)) == 0.5).all()


def test_half_precision_states_have_colours():
    state = torch.randn(2, 12, 3, 4).bfloat16()
    torch.testing.assert_close(plot.pca_rgb(state, (3, 4)), plot.pca_rgb(state.float(), (3, 4)))


def test_states_without_colours_are_named():
    with pytest.raises(ValueError, match=r'of a grid \(3, 5\), got \(2, 12, 1, 4\)'):
        plot.pca_rgb(torch.randn(2, 12, 1, 4), (3, 5))
    with pytest.raises(ValueError, match='not finite'):
        plot.pca_rgb(torch.full((2, 12, 1, 4), float('nan')), (3, 4))


def test_borders_are_between_islands():
    axis = plot.new_figure(1, 1).subplots()
    plot.islands._draw_islands(axis, torch.rand(2, 3, 3), torch.tensor([[0, 0, 1], [2, 0, 1]]), 1.0)
    (lines,) = axis.collections
    found = {tuple(map(tuple, line.tolist())) for line in lines.get_segments()}
    assert found == {
        ((1.5, -0.5), (1.5, 0.5)),
        ((0.5, 0.5), (0.5, 1.5)),
        ((1.5, 0.5), (1.5, 1.5)),
        ((-0.5, 0.5), (0.5, 0.5)),
    }


@pytest.mark.parametrize(
    'chans, shape, grid, iterations',
    [
        (3, (13, 16, 5, 8), (4, 4), None),
        (1, (2, 24, 2, 2), (3, 8), [1]),
        (3, (1, 7, 1, 3), (7, 1), [0]),
        (1, (4, 4, 8, 4), (2, 2), [3, 0]),
    ],
)
def test_island_sheets_are_drawn(chans, shape, grid, iterations, tmp_path):
    states = torch.randn(shape, requires_grad=True)
    path = plot.island_sheet(torch.rand(chans, 8, 12), states, grid, tmp_path / 'islands.png', iterations)
    picture = Image.open(path)
    assert min(picture.size) > 400
    assert np.asarray(picture).std() > 20


def test_island_sheets_show_the_iterations_asked_for(tmp_path):
    image, states = torch.rand(3, 8, 8), torch.randn(4, 16, 1, 4)

    def drawn(name, *args, **kwargs):
        return plot.island_sheet(image, states, (4, 4), tmp_path / name, *args, **kwargs).read_bytes()

    assert drawn('a.png') == drawn('b.png', [0, 1, 2, 3])
    assert drawn('a.png') != drawn('b.png', [0, 1, 2])
    assert drawn('a.png') != drawn('b.png', threshold=0.2)
    for unfit, named in (([0, 4], '4'), ([-1], '-1'), ([], 'none')):
        with pytest.raises(ValueError, match=f'iterations are 0 to 3, got {named}'):
            drawn('c.png', unfit)
    assert not (tmp_path / 'c.png').exists()


@pytest.fixture
def scene(tmp_path):
    """An image file, its pixels and the numbers of its segments (height, width)."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    pixels[:, 40:] = 200
    segments = np.zeros((64, 80), np.uint8)
    segments[20:, 30:] = 1
    segments[50:] = 7
    Image.fromarray(pixels).save(tmp_path / 'scene.png')
    return tmp_path / 'scene.png', pixels, segments


@pytest.fixture
def undrawn(monkeypatch):
    """Measure only: drawing takes a second."""
    monkeypatch.setattr(plot, 'island_sheet', lambda *args, **kwargs: None)


def glom(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_glom', **kwargs).eval()


MIDDLE = slice(4, 60), slice(12, 68)  # what timm's evaluation shows the model of a scene: 56 of 64 rows


@pytest.mark.parametrize('iters', [None, 1, 4])
def test_islands_are_those_of_the_image(iters, scene, tmp_path):
    image, pixels, segments = scene
    Image.fromarray(segments).save(tmp_path / 'mask.png')
    model = glom()
    output = tmp_path / 'islands.png'
    found = plot.plot_islands(model, image, output, iters=iters, threshold=0.8, mask=tmp_path / 'mask.png')
    assert output.stat().st_size > 10_000

    mean, std = (torch.tensor(model.pretrained_cfg[name]) for name in ('mean', 'std'))
    x = ((torch.from_numpy(pixels[MIDDLE]) / 255 - mean) / std).permute(2, 0, 1)
    with torch.no_grad():
        state = model.forward_state(x[None], iters=iters)[0]
    labels = island_labels(state, (4, 4), 0.8)
    assert [level.level for level in found] == [0, 1, 2]
    assert [level.islands for level in found] == (labels.amax((1, 2)) + 1).tolist()
    assert [level.cosine for level in found] == pytest.approx(neighbour_cosine(state, (4, 4)).tolist(), abs=1e-5)
    expected = adjusted_rand_index(labels, torch.from_numpy(segments[MIDDLE].copy())).tolist()
    assert [level.rand_index for level in found] == pytest.approx(expected)
    assert len({level.rand_index for level in found}) > 1
    without = plot.plot_islands(model, image, output, iters=iters, threshold=0.8)
    assert [level.rand_index for level in without] == [None] * 3
    assert [level.islands for level in without] == [level.islands for level in found]


def test_islands_of_a_grey_model_and_another_size(scene, tmp_path, undrawn):
    image, *_ = scene
    model = glom(in_chans=1, img_size=(28, 70))
    plain = plot.plot_islands(model, image, tmp_path / 'islands.png')
    Image.open(image).convert('L').save(tmp_path / 'grey.png')
    assert plot.plot_islands(model, tmp_path / 'grey.png', tmp_path / 'islands.png') == plain
    darker = plot.plot_islands(model, image, tmp_path / 'islands.png', mean=[0.9], std=[0.1])
    assert [level.cosine for level in darker] != [level.cosine for level in plain]


@pytest.mark.parametrize('mode', ['L', 'P', 'I', 'I;16'])
def test_masks_of_all_kinds_of_numbers(mode, scene, tmp_path, undrawn):
    image, _, segments = scene
    model = glom()
    Image.fromarray(segments).save(tmp_path / 'mask.png')
    if mode == 'P':
        mask = Image.fromarray(segments)
        mask.putpalette([5, 5, 5] * 256)  # all the same to the eye
    elif mode == 'L':
        mask = Image.fromarray(30 * segments)
    else:
        mask = Image.fromarray(256 * segments.astype(np.uint16 if mode == 'I;16' else np.int32))
    assert mask.mode == mode
    mask.save(tmp_path / 'other.tiff')
    expected, found = (
        plot.plot_islands(model, image, tmp_path / 'islands.png', mask=tmp_path / name, threshold=0.8)
        for name in ('mask.png', 'other.tiff')
    )
    assert found == expected


def test_masks_are_resized_without_mixing_segments(tmp_path, undrawn):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (100, 130, 3), dtype=np.uint8)).save(tmp_path / 'scene.png')
    segments = generator.integers(0, 4, (100, 130))
    agreement = []
    for numbers in ([0, 1, 2, 3], [200, 3, 90, 7]):
        Image.fromarray(np.array(numbers, np.uint8)[segments]).save(tmp_path / 'mask.png')
        files = tmp_path / 'scene.png', tmp_path / 'islands.png'
        found = plot.plot_islands(glom(), *files, mask=tmp_path / 'mask.png', threshold=0.8)
        agreement.append([level.rand_index for level in found])
    assert agreement[0] == agreement[1]


def test_masks_that_do_not_fit_are_named(scene, tmp_path):
    image, _, segments = scene
    mask, output = tmp_path / 'mask.png', tmp_path / 'islands.png'
    with pytest.raises(ValueError, match=r'scene.png are RGB'):
        plot.plot_islands(glom(), image, output, mask=image)
    Image.fromarray(segments[:-1]).save(mask)
    with pytest.raises(ValueError, match='the mask is 80 × 63 pixels, the image 80 × 64'):
        plot.plot_islands(glom(), image, output, mask=mask)
    with pytest.raises(ValueError, match=r'nosuch.png cannot be read: .*No such file'):
        plot.plot_islands(glom(), image, output, mask=tmp_path / 'nosuch.png')
    assert not output.exists()


def test_what_has_no_islands_is_named(scene, tmp_path):
    image, output = scene[0], tmp_path / 'islands.png'
    with pytest.raises(ValueError, match='only GLOM has islands, got CeiT'):
        plot.plot_islands(timm.create_model('test_ceit').eval(), image, output)
    with pytest.raises(ValueError, match='eval'):
        plot.plot_islands(glom().train(), image, output)
    with pytest.raises(ValueError, match='iters must be at least 1, got 0'):
        plot.plot_islands(glom(), image, output, iters=0)
    with pytest.raises(ValueError, match='1 or 3 channels, the model takes 2'):
        plot.plot_islands(glom(in_chans=2), image, output)
    (tmp_path / 'broken.png').write_bytes(image.read_bytes()[:200])
    with pytest.raises(ValueError, match=r'broken.png cannot be read: '):
        plot.plot_islands(glom(), tmp_path / 'broken.png', output)
    assert not output.exists()
