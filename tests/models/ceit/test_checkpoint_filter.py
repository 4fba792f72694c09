"""Foreign CeiT checkpoints: the logits they give, and what is refused."""

import pytest
import timm
import torch

import timm_extra  # noqa: F401
from tests.reference.ceit import ArticleCeiT, OfficialCeiT, randomize

SMALL = dict(embed_dim=24, depth=3, num_heads=3)
PLAIN_SMALL = dict(dim=24, heads=3, depth=3)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def load(name, file, overlay=None, **kwargs):
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(file=str(file), **(overlay or {})), **kwargs
    ).eval()


def saved(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    return tmp_path / 'x.pth'


def assert_equal_logits(ours, plain):
    size = ours.pretrained_cfg['input_size'][-1]
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.fuse()(x), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.05, 'logits too small to compare'


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('ceit_tiny', dict(dim=192, heads=3)),
        ('ceit_small', dict(dim=384, heads=6)),
        ('ceit_base', dict(dim=768, heads=12)),
        ('ceit_tiny_384', dict(dim=192, heads=3, img_size=384)),
        ('ceit_small_384', dict(dim=384, heads=6, img_size=384)),
    ],
)
def test_official_layout(name, kwargs, tmp_path):
    plain = randomize(OfficialCeiT(**kwargs))
    assert_equal_logits(load(name, saved(tmp_path, {'model': plain.state_dict(), 'epoch': 3})), plain)


@pytest.mark.parametrize(
    'kwargs, ours',
    [
        ({}, {}),
        (dict(with_lca=False), dict(use_lca=False)),
        (dict(with_lca=False, pool='mean'), dict(use_lca=False, global_pool='avg')),
        (dict(heads=1, dim_head=192), dict(num_heads=1, head_dim=192)),
        (dict(dim_head=32), dict(head_dim=32)),
    ],
)
def test_article_layout(kwargs, ours, tmp_path):
    plain = randomize(ArticleCeiT(**kwargs))
    assert_equal_logits(load('ceit_tiny_article', saved(tmp_path, plain.state_dict()), **ours), plain)


def test_native_state_dicts_pass_untouched(tmp_path):
    from timm_extra.models.ceit import checkpoint_filter_fn

    model = timm.create_model('test_ceit')
    state = model.state_dict()
    assert checkpoint_filter_fn(state, model) is state
    again = load('test_ceit', saved(tmp_path, state))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), state.values(), strict=True))


def test_plain_patches_and_other_channels_round_trip(tmp_path):
    kwargs = dict(conv_stem=False, in_chans=6, num_classes=4)
    model = timm.create_model('test_ceit', **kwargs).eval()
    overlay = dict(input_size=(6, 160, 160), num_classes=4)
    again = load('test_ceit', saved(tmp_path, model.state_dict()), overlay, **kwargs)
    x = torch.randn(1, 6, 160, 160)
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize('img_size, grid', [(128, (8, 8)), ((96, 32), (6, 2))])
def test_another_resolution(img_size, grid, tmp_path):
    plain = randomize(OfficialCeiT(**PLAIN_SMALL, img_size=64))
    file = saved(tmp_path, plain.state_dict())
    model = load('ceit_tiny', file, img_size=img_size, **SMALL)
    assert model.pos_embed.shape[1] == 1 + grid[0] * grid[1]
    same = load('ceit_tiny', file, img_size=64, **SMALL)
    same.set_input_size(img_size)
    torch.testing.assert_close(model.pos_embed, same.pos_embed)


def test_a_grid_that_is_not_square_is_taken_from_the_config(tmp_path):
    model = timm.create_model('test_ceit', img_size=(64, 32))
    file = saved(tmp_path, model.state_dict())
    again = load('test_ceit', file, dict(input_size=(3, 64, 32)), img_size=(32, 64))
    model.set_input_size((32, 64))
    torch.testing.assert_close(again.pos_embed, model.pos_embed)
    with pytest.raises(ValueError, match='8 position embeddings form no square'):
        load('test_ceit', file, img_size=(48, 64))


@pytest.mark.parametrize('in_chans', [1, 4])
def test_another_number_of_channels(in_chans, tmp_path):
    plain = randomize(OfficialCeiT(**PLAIN_SMALL, img_size=64))
    model = load('ceit_tiny', saved(tmp_path, plain.state_dict()), img_size=64, in_chans=in_chans, **SMALL)
    if in_chans == 1:
        gray = torch.randn(2, 1, 64, 64)
        torch.testing.assert_close(model(gray), plain(gray.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4)
    assert model(torch.randn(2, in_chans, 64, 64)).shape == (2, 1000)


def test_a_file_of_ten_classes_loads_its_head(tmp_path):
    plain = randomize(OfficialCeiT(**PLAIN_SMALL, img_size=64, num_classes=10))
    file = saved(tmp_path, plain.state_dict())
    model = load('ceit_tiny', file, dict(num_classes=10), img_size=64, num_classes=10, **SMALL)
    assert torch.equal(model.head.weight, plain.head.weight)
    with pytest.warns(UserWarning, match='num_classes=10'):
        load('ceit_tiny', file, img_size=64, num_classes=10, **SMALL)
    with pytest.raises(ValueError, match=r'head\.weight.*num_classes=k'):
        load('ceit_tiny', file, img_size=64, **SMALL)
    features = load('ceit_tiny', file, img_size=64, features_only=True, out_indices=(1,), **SMALL)
    torch.testing.assert_close(features.model.blocks[1].norm1.weight, plain.blocks[1].norm1.weight)


def test_the_norm_follows_where_the_model_has_it(tmp_path):
    plain = randomize(OfficialCeiT(**PLAIN_SMALL, img_size=64))
    model = load('ceit_tiny', saved(tmp_path, plain.state_dict()), img_size=64, fc_norm=True, **SMALL)
    assert torch.equal(model.fc_norm.weight, plain.norm.weight)


def state(**kwargs):
    return randomize(OfficialCeiT(**{**PLAIN_SMALL, 'img_size': 64, **kwargs})).state_dict()


def without(part):
    return {k: v for k, v in state().items() if part not in k}


@pytest.mark.parametrize(
    'content, message',
    [
        ({'encoder.weight': torch.zeros(3), 'b': torch.zeros(1)}, 'not a CeiT checkpoint.*encoder.weight'),
        ({}, 'not a CeiT checkpoint: 0 keys'),
        ([torch.zeros(3)], 'x.pth'),
        ({'epoch': 3, 'loss': 0.1}, 'not a CeiT checkpoint.*epoch'),
        (without('blocks.2.attn.proj'), 'missing: blocks.2.attn.proj.weight'),
        (without('backbone.conv'), r'patch_embed\.conv\.weight missing'),
        (without('lca'), 'missing: lca'),
        (state(depth=4), 'unexpected: blocks.3'),
        (state(dim=48), r'cls_token \(1, 1, 48\) for \(1, 1, 24\)'),
        (dict(state(), extra=torch.zeros(1)), 'unexpected: extra'),
    ],
)
def test_misfits_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load('ceit_tiny', saved(tmp_path, content), img_size=64, **SMALL)


def test_a_new_head_does_not_let_misfits_through(tmp_path):
    with pytest.raises(ValueError, match='missing: lca'):
        load('ceit_tiny', saved(tmp_path, without('lca')), img_size=64, num_classes=5, **SMALL)


def test_the_article_without_lca_does_not_fit_a_model_with_it(tmp_path):
    plain = ArticleCeiT(with_lca=False)
    with pytest.raises(ValueError, match='missing: lca'):
        load('ceit_tiny_article', saved(tmp_path, plain.state_dict()))


def test_an_article_file_does_not_fit_a_model_that_behaves_otherwise(tmp_path):
    file = saved(tmp_path, ArticleCeiT(depth=2).state_dict())
    shapes = dict(depth=2, stem_chs=32, stem_bias=True, lca_num_heads=4, lca_head_dim=48, lca_mlp_ratio=2.0)
    with pytest.raises(ValueError, match=r'cls_bypass=True, not False.*leff_out_act=True.*stem_padding'):
        load('ceit_tiny', file, **shapes)
    with pytest.raises(ValueError, match='conv_stem=True, not False'):
        load('ceit_tiny_article', file, depth=2, conv_stem=False)
    official = saved(tmp_path, OfficialCeiT(**PLAIN_SMALL, img_size=64).state_dict())
    with pytest.raises(ValueError, match='cls_bypass=False, not True'):
        load('ceit_tiny', official, img_size=64, cls_bypass=True, **SMALL)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'conv.0.weight': None}, r'patch_embed\.conv\.weight missing'),
        ({'to_patch_embedding.1.weight': torch.zeros(192, 513)}, r'patch_embed\.proj\.weight \(192, 513\)'),
        ({'transformer.layers.0.0.fn.fn.to_out.0.weight': None}, r'missing: blocks\.0\.attn\.proj\.weight'),
    ],
)
def test_article_misfits_are_named(change, message, tmp_path):
    content = {**ArticleCeiT(depth=2).state_dict(), **change}
    file = saved(tmp_path, {k: v for k, v in content.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        load('ceit_tiny_article', file, depth=2)


def test_native_average_pooling_does_not_move_its_norm(tmp_path):
    file = saved(tmp_path, timm.create_model('test_ceit', global_pool='avg').state_dict())
    with pytest.raises(ValueError, match=r'missing: fc_norm\.weight'):
        load('test_ceit', file, global_pool='avg', fc_norm=True)


def test_python_objects_are_refused_and_named(tmp_path):
    import numpy as np

    file = saved(tmp_path, {'model': state(), 'best': np.float64(3)})
    with pytest.raises(ValueError, match=r'x\.pth.*never executed.*numpy'):
        load('ceit_tiny', file, img_size=64, **SMALL)


def test_errors_of_construction_do_not_blame_the_file(tmp_path):
    with pytest.raises(RuntimeError, match='nosuchdevice'):
        load('ceit_tiny', saved(tmp_path, state()), img_size=64, device='nosuchdevice', **SMALL)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nosuch\.pth'):
        load('ceit_tiny', tmp_path / 'nosuch.pth')


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_truncated_file_is_named(suffix, tmp_path):
    import safetensors.torch

    file = tmp_path / f'x.{suffix}'
    if suffix == 'pth':
        torch.save(state(), file)
    else:
        safetensors.torch.save_file(state(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f'cannot load .*x.{suffix}'):
        load('ceit_tiny', file, img_size=64, **SMALL)


def test_text_is_not_a_checkpoint(tmp_path):
    (tmp_path / 'x.pth').write_text('hello')
    with pytest.raises(ValueError, match=r'cannot load .*x\.pth'):
        load('ceit_tiny', tmp_path / 'x.pth')
