"""Perceiver IO against transformers: equal logits with `compat='hf'`, and known differences without."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.perceiver import modeling_perceiver

from tests.reference.perceiver import CLASSIFIERS, transformers_classifier, with_weights_of

pytestmark = pytest.mark.slow

# the published widths of the inputs, on few and narrow latents
SMALL = dict(num_latents=24, latent_dim=64, num_heads=4, num_blocks=2, block_depth=2, num_classes=20)
SMALL_CONFIG = dict(
    num_latents=24, d_latents=64, num_self_attention_heads=4, num_blocks=2, num_self_attends_per_block=2, num_labels=20
)


@pytest.fixture
def in_float64(monkeypatch):
    """Make transformers compute positions in float64; it does so in float32 whatever the dtype of the model."""

    def positions(index_dims, output_range=(-1.0, 1.0), device=None):
        ranges = [torch.linspace(*output_range, n, dtype=torch.float64, device=device) for n in index_dims]
        return torch.stack(torch.meshgrid(*ranges, indexing='ij'), dim=-1)

    monkeypatch.setattr(modeling_perceiver, 'build_linear_positions', positions)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('name', list(CLASSIFIERS))
def test_equal_logits_at_full_size(name):
    other = transformers_classifier(name)
    ours = with_weights_of(other, name, compat='hf')
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = other(x).logits
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.5
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in other.parameters())


@pytest.mark.parametrize('name', list(CLASSIFIERS))
@pytest.mark.parametrize('route', ['folded', 'plain', None])
def test_equal_logits_in_float64(name, route, in_float64):
    other = transformers_classifier(name, **SMALL_CONFIG)
    ours = with_weights_of(other, name, compat='hf', cross_route=route, **SMALL)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x).logits, rtol=0, atol=1e-6)


def with_tanh(model):
    for module in model.modules():
        if isinstance(module, modeling_perceiver.PerceiverMLP):
            module.intermediate_act_fn = torch.nn.GELU(approximate='tanh')


def without_residual(model):
    model.perceiver.decoder.decoder.decoding_cross_attention.attention.use_query_residual = False


def with_same_convolution(model):
    conv = model.perceiver.input_preprocessor.convnet.conv
    conv.forward = lambda x: F.conv2d(F.pad(x, (2, 3, 2, 3)), conv.weight, stride=2)  # of 224 pixels


def with_same_pooling(model):
    pool = model.perceiver.input_preprocessor.convnet.max_pool
    pool.forward = lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float('inf')), 3, 2)  # of 112


DIFFERENCES = {
    'perceiver_io_base': [with_tanh],
    'perceiver_io_base_learned': [with_tanh, without_residual],
    'perceiver_io_base_conv': [with_tanh, with_same_convolution, with_same_pooling],
}


@pytest.mark.parametrize('name', list(CLASSIFIERS))
def test_the_documented_differences_are_what_separates_the_modes(name, in_float64):
    x = torch.randn(1, 3, 224, 224)
    changes = DIFFERENCES[name]
    for left_out in [None, *changes]:
        other = transformers_classifier(name, **SMALL_CONFIG)
        ours = with_weights_of(other, name, **SMALL)  # DeepMind's behaviour
        for change in changes:
            if change is not left_out:
                change(other)
        with torch.no_grad():
            difference = (ours(x) - other(x).logits).abs().max()
        if left_out is None:
            assert difference <= 1e-6
        else:
            assert difference > 1e-5, f'{left_out.__name__} makes no difference'


def test_at_another_size(in_float64):
    other = transformers_classifier('perceiver_io_base', **SMALL_CONFIG)
    ours = with_weights_of(other, 'perceiver_io_base', compat='hf', **SMALL)
    for size in ((64, 80), (97, 53)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), other(x).logits, rtol=0, atol=1e-6)


def test_gradients(in_float64):
    other = transformers_classifier('perceiver_io_base', **SMALL_CONFIG)
    ours = with_weights_of(other, 'perceiver_io_base', compat='hf', **SMALL)
    x = torch.randn(1, 3, 64, 64)
    ours(x).square().sum().backward()
    other(x).logits.square().sum().backward()
    encoder = other.perceiver.encoder
    cross, decoder = encoder.cross_attention, other.perceiver.decoder.decoder.decoding_cross_attention
    for a, b in (
        (ours.latents, other.perceiver.embeddings.latents),
        (ours.cross_attends[0].attn.q.weight, cross.attention.self.query.weight),
        (ours.cross_attends[0].norm1.weight, cross.attention.self.layernorm1.weight),
        (ours.cross_attends[0].attn.v.bias, cross.attention.self.value.bias),
        (ours.cross_attends[0].attn.norm_kv.bias[:3], cross.attention.self.layernorm2.bias[:3]),  # content
        (ours.cross_attends[0].attn.k.weight[:, :3], cross.attention.self.key.weight[:, :3]),
        (ours.blocks[0][1].mlp.fc1.weight, encoder.self_attends[1].mlp.dense1.weight),
        (ours.decoder.attn.v.weight, decoder.attention.self.value.weight),
    ):
        a, b = gradient(ours, a), gradient(other, b)
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
        assert b.abs().max() > 1e-4


def gradient(model, part):
    """Gradient of a parameter, or of the part of it that a slice of it shows."""
    for p in model.parameters():
        if p.data_ptr() == part.data_ptr():
            return p.grad if p.shape == part.shape else p.grad[tuple(slice(n) for n in part.shape)]
    raise AssertionError('no such parameter')
