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
