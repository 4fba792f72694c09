"""`compat='lucidrains'` against perceiver-pytorch: equal outputs from checkpoints of 0.11, and of 0.8.8 and before."""

import re

import pytest
import timm
import torch
from perceiver_pytorch import Perceiver as OtherPerceiver
from perceiver_pytorch import PerceiverIO as OtherPerceiverIO

import timm_extra  # noqa: F401
from timm_extra.models.perceiver import Perceiver, PerceiverIO, checkpoint_filter_fn

SMALL = dict(num_latents=10, latent_dim=24, cross_heads=1, latent_heads=3, cross_dim_head=8, latent_dim_head=6)
OURS = dict(num_latents=10, latent_dim=24, num_heads=3, head_dim=6, cross_num_heads=1, cross_head_dim=8)
OURS.update(mlp_ratio=4.0, compat='lucidrains')


def as_in_0_8_8(state_dict):
    """Names that perceiver-pytorch gave before 0.11."""
    io = any(k.startswith('cross_attend_block') for k in state_dict)

    def old(key):
        key = key.replace('cross_attend_block.cross_attn.', 'cross_attend_blocks.0.')
        key = key.replace('cross_attend_block.cross_ff.', 'cross_attend_blocks.1.')
        key = re.sub(r'(layers\.\d+)\.cross_attn', r'\1.0', key)
        key = re.sub(r'(layers\.\d+)\.cross_ff', r'\1.1', key)
        return re.sub(r'(layers\.\d+)\.self_attns\.0', r'\1', key) if io else key.replace('self_attns', '2')

    return {old(k): v for k, v in state_dict.items()}


def randomized(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
            if p.ndim == 1:
                p.add_(0.5)
    return model.eval()


def counts(depth, tied, per_block=2):
    unique = 2 if tied else depth
    return dict(num_blocks=depth, block_depth=per_block, unique_blocks=unique, unique_cross_attends=unique)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('names', [dict, as_in_0_8_8])
@pytest.mark.parametrize('axes, shape', [(1, (17,)), (2, (9, 7)), (3, (3, 5, 4))])
def test_perceiver(tied, names, axes, shape):
    other = randomized(
        OtherPerceiver(
            input_channels=2,
            input_axis=axes,
            num_freq_bands=4,
            max_freq=10.0,
            depth=3,
            num_classes=5,
            weight_tie_layers=tied,
            self_per_cross_attn=2,
            **SMALL,
        )
    )
    ours = Perceiver(
        img_size=shape, in_chans=2, num_bands=4, max_resolution=10.0, num_classes=5, **counts(3, tied), **OURS
    ).eval()
    ours.load_state_dict(checkpoint_filter_fn(names(other.state_dict()), ours))
    x = torch.randn(2, 2, *shape)
    mask = torch.rand(2, *shape) > 0.3
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x.movedim(1, -1)), rtol=0, atol=1e-4)
        torch.testing.assert_close(ours(x, mask), other(x.movedim(1, -1), mask=mask), rtol=0, atol=1e-4)
        embeddings = other(x.movedim(1, -1), return_embeddings=True)
        torch.testing.assert_close(ours.forward_features(x), embeddings, rtol=0, atol=1e-4)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('names', [dict, as_in_0_8_8])
@pytest.mark.parametrize('decoder_ff', [False, True])
def test_perceiver_io(tied, names, decoder_ff):
    other = randomized(
        OtherPerceiverIO(
            dim=12, queries_dim=16, logits_dim=7, depth=3, weight_tie_layers=tied, decoder_ff=decoder_ff, **SMALL
        )
    )
    ours = PerceiverIO(
        img_size=20,
        in_chans=12,
        stem='tokens',
        pos_embed='none',
        num_classes=7,
        num_blocks=3,
        block_depth=1,
        unique_blocks=1 if tied else 3,
        num_queries=0,
        query_dim=16,
        decoder_mlp=decoder_ff,
        **OURS,
    ).eval()
    ours.load_state_dict(checkpoint_filter_fn(names(other.state_dict()), ours))
    x, queries, mask = torch.randn(2, 20, 12), torch.randn(9, 16), torch.rand(2, 20) > 0.3
    with torch.no_grad():
        torch.testing.assert_close(ours(x, queries=queries), other(x, queries=queries), rtol=0, atol=1e-4)
        masked = other(x, queries=queries, mask=mask)
        torch.testing.assert_close(ours(x, mask, queries.expand(2, -1, -1)), masked, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.forward_features(x), other(x), rtol=0, atol=1e-4)
    with pytest.raises(AssertionError, match='no learned queries'):
        ours(x)


@pytest.mark.parametrize('tied', [False, True])
def test_the_example_of_its_readme(tied, tmp_path):
    """docs/coming-from-perceiver-pytorch.md shows both sides."""
    torch.manual_seed(0)
    other = OtherPerceiver(
        input_channels=3,
        input_axis=2,
        num_freq_bands=6,
        max_freq=10.0,
        depth=6,
        num_latents=256,
        latent_dim=512,
        cross_heads=1,
        latent_heads=8,
        cross_dim_head=64,
        latent_dim_head=64,
        num_classes=1000,
        attn_dropout=0.0,
        ff_dropout=0.0,
        weight_tie_layers=tied,
        fourier_encode_data=True,
        self_per_cross_attn=2,
    ).eval()
    torch.save(other.state_dict(), tmp_path / 'perceiver.pth')
    ours = timm.create_model(
        'perceiver_small',
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'perceiver.pth')),
        compat='lucidrains',
        num_bands=6,
        max_resolution=10,
        num_blocks=6,
        block_depth=2,
        head_dim=64,
        cross_head_dim=64,
        mlp_ratio=4,
        unique_blocks=2 if tied else 6,
        unique_cross_attends=2 if tied else 6,
    ).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in other.parameters())
    img = torch.randn(1, 224, 224, 3)
    with torch.no_grad():
        torch.testing.assert_close(ours(img.permute(0, 3, 1, 2)), other(img), rtol=0, atol=1e-4)


def test_without_a_classifier():
    other = randomized(
        OtherPerceiver(
            num_freq_bands=4, max_freq=10.0, depth=2, self_per_cross_attn=2, final_classifier_head=False, **SMALL
        )
    )
    ours = Perceiver(num_bands=4, max_resolution=10.0, num_classes=0, global_pool='', **counts(2, False), **OURS).eval()
    ours.load_state_dict(checkpoint_filter_fn(other.state_dict(), ours))
    x = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(ours(x), other(x.movedim(1, -1)), rtol=0, atol=1e-4)
    ours.reset_classifier(5, 'avg')
    assert isinstance(ours.head_norm, torch.nn.LayerNorm)
    assert ours(x).shape == (2, 5)


def test_untied_weights_do_not_go_into_a_tied_model():
    other = OtherPerceiver(num_freq_bands=4, max_freq=10.0, depth=3, num_classes=5, self_per_cross_attn=2, **SMALL)
    tied = Perceiver(num_bands=4, max_resolution=10.0, num_classes=5, **counts(3, True), **OURS)
    with pytest.raises(
        ValueError, match=r'weights of its own in layer 2 .* unique_blocks and unique_cross_attends of 3'
    ):
        checkpoint_filter_fn(other.state_dict(), tied)


def test_the_mode_must_be_asked_for():
    other = OtherPerceiver(num_freq_bands=4, max_freq=10.0, depth=3, **SMALL)
    with pytest.raises(ValueError, match="needs a model with compat='lucidrains', this one has compat=None"):
        checkpoint_filter_fn(other.state_dict(), timm.create_model('test_perceiver'))


def test_what_has_no_counterpart_is_refused():
    other = OtherPerceiver(
        num_freq_bands=4, max_freq=10.0, depth=2, num_classes=5, self_per_cross_attn=2, attn_residual=True, **SMALL
    )
    ours = Perceiver(num_bands=4, max_resolution=10.0, num_classes=5, **counts(2, False), **OURS)
    with pytest.raises(ValueError, match=r'unexpected: attn_residuals\.0'):
        checkpoint_filter_fn(other.state_dict(), ours)
