"""`LatentPool` against Idefics2's resampler of transformers and PyTorch's multihead attention, in float64."""

import pytest
import torch
from timm.layers import LayerNorm
from torch import nn
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler, Idefics2RMSNorm

from timm_extra.layers.latent_pool import LatentAttention, LatentPool, LatentPoolConfig
from timm_extra.models.latent_pool import from_idefics2

BOUND = 1e-10
B, N, C = 3, 37, 48
SHAPES = [
    dict(resampler_n_heads=6, num_key_value_heads=2, resampler_head_dim=8, resampler_n_latents=5, resampler_depth=3),
    dict(resampler_n_heads=4, num_key_value_heads=4, resampler_head_dim=7, resampler_n_latents=1, resampler_depth=1),
    dict(resampler_n_heads=3, num_key_value_heads=1, resampler_head_dim=16, resampler_n_latents=64, resampler_depth=2),
]
GQA = LatentPoolConfig(num_latents=3, depth=2, num_heads=4, num_kv_heads=2, head_dim=5, pool_type='')


@pytest.fixture(params=['folded', 'projected'])
def route(request, monkeypatch):
    monkeypatch.setattr(LatentAttention, '_folds', lambda *args: request.param == 'folded')
    return request.param


def random_(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * (0.3 if p.ndim > 1 else 1.0)
    return module


def inputs(mask, dim=C):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, N, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    kept = torch.rand(B, N, generator=generator) < 0.6 if mask else None
    return x, kept


def exact_norm(self, x):
    """The module's own lines in the dtype of x: theirs are in float32, beside which no bound of float64 can stand."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def largest(a, b):
    return float((a - b).detach().abs().max())


def largest_of_gradients(ours, theirs, name_of):
    """Over the gradients of all weights, which both must have."""
    own = dict(ours.named_parameters())
    pairs = [(own.pop(name_of(name)).grad, p.grad) for name, p in theirs.named_parameters()]
    assert not own
    return max(largest(a, b) / max(1.0, float(b.detach().abs().max())) for a, b in pairs)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_it_is_the_resampler_of_idefics2(shape, masked, route, monkeypatch):
    monkeypatch.setattr(Idefics2RMSNorm, 'forward', exact_norm)
    config = Idefics2PerceiverConfig(hidden_size=C, attn_implementation='sdpa', **shape)  # eager: softmax in float32
    theirs = random_(Idefics2PerceiverResampler(config).double()).eval()
    ours = from_idefics2(theirs.state_dict(), head_dim=shape['resampler_head_dim'])
    (x, kept), (y, _) = inputs(masked), inputs(masked)
    attention_mask = torch.ones(B, N, dtype=torch.long) if kept is None else kept.long()
    expected = theirs(context=y, attention_mask=attention_mask)
    found = ours(x, kept)
    assert found.shape == (B, shape['resampler_n_latents'], C)
    assert largest(found, expected) <= BOUND
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert largest(x.grad, y.grad) <= BOUND * max(1.0, float(y.grad.abs().max()))
    renamed = dict(zip(_names(theirs), _names(ours), strict=True))
    assert largest_of_gradients(ours, theirs, renamed.__getitem__) <= BOUND


def _names(module):
    """Names of parameters in an order that both modules have."""
    words = dict(gate_proj='fc1_g', up_proj='fc1_x', down_proj='fc2', input_latents_norm='norm1')
    words.update(input_context_norm='norm_context', post_attention_layernorm='norm2', self_attn='attn', layers='blocks')
    words.update(q_proj='q', k_proj='k', v_proj='v', o_proj='proj')

    def ours(name):
        return '.'.join(words.get(part, part) for part in name.split('.'))

    return sorted((name for name, _ in module.named_parameters()), key=ours)


def test_as_transformers_computes_it_in_float32():
    config = Idefics2PerceiverConfig(hidden_size=C, **SHAPES[0])
    theirs = random_(Idefics2PerceiverResampler(config)).eval()
    state = {f'model.connector.perceiver_resampler.{k}': v for k, v in theirs.state_dict().items()}
    ours = from_idefics2({**state, 'lm_head.weight': torch.zeros(2)}, head_dim=8)
    x, kept = inputs(True)
    expected = theirs(context=x.float(), attention_mask=kept.long())
    torch.testing.assert_close(ours(x.float(), kept), expected, atol=2e-4, rtol=2e-4)


def test_what_is_no_resampler_is_refused():
    state = Idefics2PerceiverResampler(Idefics2PerceiverConfig(hidden_size=C, **SHAPES[0])).state_dict()
    with pytest.raises(ValueError, match='no resampler of Idefics2: latents is missing'):
        from_idefics2({'weight': torch.zeros(2)})
    with pytest.raises(ValueError, match='`head_dim=96` does not divide the 48 and 16 channels'):
        from_idefics2(state)
    with pytest.raises(ValueError, match=r'alone: head\.weight does not fit'):
        from_idefics2({**state, 'head.weight': torch.zeros(2)}, head_dim=8)


@pytest.mark.parametrize('num_latents', [1, 6])
@pytest.mark.parametrize('masked', [False, True])
def test_one_layer_is_multihead_attention_of_learned_queries(masked, num_latents, route):
    """PyTorch's module, pre-norm: latents + MHA(norm(latents), norm(x)), then an MLP, then the mean."""
    pool = random_(LatentPool(C, LatentPoolConfig(num_latents=num_latents), dtype=torch.float64))
    blk, x, kept = pool.blocks[0], *inputs(masked)
    mha = nn.MultiheadAttention(C, 8, batch_first=True, dtype=torch.float64)
    mha.in_proj_weight.data = torch.cat([blk.attn.q.weight, blk.attn.k.weight, blk.attn.v.weight]).detach()
    mha.in_proj_bias.data = torch.cat([blk.attn.q.bias, blk.attn.k.bias, blk.attn.v.bias]).detach()
    mha.out_proj.load_state_dict(blk.attn.proj.state_dict())
    y = x.detach().clone().requires_grad_()
    latents = pool.latents.expand(B, -1, -1)
    context = blk.norm_context(y)
    ignored = None if kept is None else ~kept
    latents = latents + mha(blk.norm1(latents), context, context, key_padding_mask=ignored, need_weights=False)[0]
    latents = latents + blk.mlp(blk.norm2(latents))
    expected = pool.norm(latents).mean(1)
    found = pool(x, kept)
    assert largest(found, expected) <= BOUND
    found.square().sum().backward()
    expected.square().sum().backward()
    assert largest(x.grad, y.grad) <= BOUND


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('config', [GQA, LatentPoolConfig(latent_dim=20), LatentPoolConfig(num_latents=9, mlp_ratio=0)])
def test_both_routes_agree_on_weights_and_inputs(config, masked, monkeypatch):
    results = []
    for folded in (True, False):
        monkeypatch.setattr(LatentAttention, '_folds', lambda *args, folded=folded: folded)
        pool = random_(LatentPool(C, config, dtype=torch.float64))
        x, kept = inputs(masked)
        out = pool(x, kept)
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in pool.parameters())])
    for a, b in zip(*results, strict=True):
        assert largest(a, b) <= BOUND * max(1.0, float(b.detach().abs().max()))


def test_few_latents_of_many_tokens_fold_and_many_do_not():
    one = LatentPool(C).blocks[0].attn
    q, x = torch.zeros(1, 8, 1, 6), torch.zeros(2, 500, C)
    assert one._folds(q, x) and not one._folds(torch.zeros(1, 8, 64, 6), x)
    one.k.register_forward_hook(lambda *args: None)
    assert not one._folds(q, x)


def test_hooks_see_keys_and_values():
    pool, seen = LatentPool(C), []
    pool.blocks[0].attn.k.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    pool(torch.randn(2, 30, C))
    assert seen == [(2, 30, C)]


@pytest.mark.parametrize('attend_latents', [False, True])
def test_tokens_left_out_have_no_influence(attend_latents, route):
    pool = random_(LatentPool(C, LatentPoolConfig(num_latents=2, depth=2, attend_latents=attend_latents)).double())
    x, _ = inputs(False)
    kept = torch.ones(B, N, dtype=torch.bool)
    kept[0, 20:] = False
    kept[1] = False
    y = x.detach().masked_fill(~kept[..., None], float('nan')).requires_grad_()
    out = pool(y, kept)
    assert out.isfinite().all()
    assert largest(out[0], pool(x[:1, :20])[0]) <= BOUND
    assert largest(out[2], pool(x[2:])[0]) <= BOUND
    out.sum().backward()
    assert y.grad.isfinite().all() and not y.grad[~kept].any() and y.grad[2].abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in pool.parameters())


def test_pooling_types_and_widths():
    x = torch.randn(2, 11, C)
    for pool_type, shape in (('avg', (2, 20)), ('token', (2, 20)), ('', (2, 4, 20))):
        pool = LatentPool(C, LatentPoolConfig(num_latents=4, latent_dim=20, pool_type=pool_type))
        assert pool(x).shape == shape and pool.num_features == 20
    latents = pool(x)
    pool.pool_type = 'avg'
    torch.testing.assert_close(pool(x), latents.mean(1))
    pool.pool_type = 'token'
    torch.testing.assert_close(pool(x), latents[:, 0])


@pytest.mark.parametrize('dim, num_heads', [(1, 1), (7, 3), (5, 8), (112, 8)])
def test_any_width_is_taken(dim, num_heads):
    config = LatentPoolConfig(num_latents=3, num_heads=num_heads)
    assert LatentPool(dim, config)(torch.randn(1, 1, dim)).shape == (1, dim)


@pytest.mark.parametrize('name', ['norm_layer', 'mlp_layer'])
def test_checkpointed_gradients_are_equal(name):
    config = LatentPoolConfig(num_latents=2, depth=3, **{name: dict(norm_layer='rmsnorm', mlp_layer='swiglu')[name]})
    pool = random_(LatentPool(C, config, dtype=torch.float64)).train()
    gradients = []
    for enable in (False, True):
        pool.set_grad_checkpointing(enable)
        pool.zero_grad()
        x, kept = inputs(True)
        pool(x, kept).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in pool.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compiled_exported_and_in_autocast():
    pool = random_(LatentPool(C, LatentPoolConfig(num_latents=2))).eval()
    x = torch.randn(2, 29, C)
    kept = torch.rand(2, 29) < 0.5
    expected = pool(x, kept)
    compiled = torch.compile(pool, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x, kept), expected, atol=1e-5, rtol=1e-5)
    sizes = {0: torch.export.Dim('B', min=2, max=64), 1: torch.export.Dim('N', min=2, max=900)}
    program = torch.export.export(pool, (x, kept), dynamic_shapes=(sizes, sizes)).module()
    torch.testing.assert_close(program(x, kept), expected, atol=1e-5, rtol=1e-5)
    y, others = torch.randn(5, 800, C), torch.rand(5, 800) < 0.5
    torch.testing.assert_close(program(y, others), pool(y, others), atol=1e-5, rtol=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(pool(x, kept).float(), expected, atol=0.2, rtol=0.1)


def test_weights_on_the_meta_device_are_initialised_later():
    pool = LatentPool(C, GQA, device='meta', dtype=torch.float64).to_empty(device='cpu')
    pool.init_weights()
    assert pool(torch.randn(1, 4, C, dtype=torch.float64)).isfinite().all() and pool.latents.abs().max() > 0
    assert isinstance(pool.norm, LayerNorm) and (pool.norm.weight == 1).all()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_latents=0), '`num_latents` must be a positive integer, got 0'),
        (dict(num_heads=2.5), '`num_heads` must be a positive integer, got 2.5'),
        (dict(num_heads=6, num_kv_heads=4), '`num_heads` must be a multiple of `num_kv_heads`, got 6 and 4'),
        (dict(mlp_ratio=-1), '`mlp_ratio` must be a finite number, 0 or more, got -1'),
        (dict(norm_layer='batchnorm'), "`norm_layer` must be one of 'layernorm', 'rmsnorm', got 'batchnorm'"),
        (dict(mlp_layer='conv'), "`mlp_layer` must be one of 'mlp', 'swiglu', got 'conv'"),
        (dict(pool_type='max'), "`pool_type` must be one of 'avg', 'token', '', got 'max'"),
        (dict(attend_latents=True, latent_dim=8), 'got `latent_dim=8` for 48'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LatentPool(C, LatentPoolConfig(**options))


@pytest.mark.parametrize('config', [LatentPoolConfig(), LatentPoolConfig(num_latents=4, depth=2, attend_latents=True)])
def test_a_batch_may_be_empty(config):
    pool, x = LatentPool(64, config), torch.randn(0, 10, 64, requires_grad=True)
    out = pool(x, torch.ones(0, 10, dtype=torch.bool))
    assert out.shape == pool(x).shape == (0, 64)
    out.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    'x, mask, message',
    [
        (torch.zeros(3, 8), None, r'takes tokens \(B, N, C\), got \(3, 8\)'),
        (torch.zeros(2, 3, 8), torch.ones(2, 3), 'mask must be boolean, got torch.float32'),
        (torch.zeros(2, 3, 8), torch.ones(2, 3).long(), 'mask must be boolean, got torch.int64'),
        (torch.zeros(2, 3, 8), torch.ones(2, 4).bool(), r'as the tokens \(2, 3, 8\), got \(2, 4\)'),
        (torch.zeros(2, 3, 8), torch.ones(3).bool(), r'as the tokens \(2, 3, 8\), got \(3,\)'),
    ],
)
def test_tokens_and_masks_that_do_not_fit_are_refused(x, mask, message):
    with pytest.raises(ValueError, match=message):
        LatentPool(8)(x, mask)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(mlp_ratio=float('nan')), 'mlp_ratio` must be a finite number, 0 or more, got nan'),
        (dict(mlp_ratio='4'), "mlp_ratio` must be a finite number, 0 or more, got '4'"),
        (dict(num_latents=True), 'num_latents` must be a positive integer, got True'),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LatentPool(64, LatentPoolConfig(**options))
