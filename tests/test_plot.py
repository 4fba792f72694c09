import pytest
import timm
import torch

from timm_extra import plot

TOY = dict(img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3)


def test_lca_attention_is_what_the_layer_uses():
    model = timm.create_model('test_ceit', **TOY).eval()
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
    model = timm.create_model('test_ceit', **TOY).train()
    with pytest.raises(ValueError, match='eval'):
        plot.lca_attention(model, torch.randn(2, 3, 32, 32))
    assert model.patch_embed.bn.num_batches_tracked == 0


def test_a_model_without_lca_has_none_to_show():
    with pytest.raises(ValueError, match='no layer-wise'):
        plot.lca_attention(timm.create_model('test_ceit', use_lca=False, **TOY), torch.randn(1, 3, 32, 32))


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
        (_, content, axes, _, content_proj), output = calls[block - used]
        values = attn._keys_values(content, axes, content_proj)[1]
        gathered = (weights.flatten(-2) @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attn.proj(gathered), output[:, [4, 0]], rtol=0, atol=1e-5)
    assert torch.equal(plot.latent_attention(model, x, [1], -1), plot.latent_attention(model, x, [1], block))
    assert not attn._forward_pre_hooks


def test_latent_attention_of_learned_positions_masks_and_points():
    learned = dict(stem='conv1x1', pos_embed='learned', img_size=(6, 8))
    model = timm.create_model('test_perceiver_io', **PERCEIVER, **learned).eval()
    mask = torch.rand(1, 6, 8) > 0.4
    maps = plot.latent_attention(model, torch.randn(1, 3, 6, 8), [0], mask=mask)
    assert maps.shape == (1, 3, 1, 6, 8)
    assert (maps[..., ~mask[0]] == 0).all()
    tokens = dict(stem='tokens', in_chans=9, input_shape=(30,), pos_embed='learned')
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
