"""Perceiver and Perceiver IO: what timm's own suite does not ask."""

import copy
import json
import warnings

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import timm_extra  # noqa: F401
from timm_extra import hub
from timm_extra.models.perceiver import Inputs, Perceiver, PerceiverIO
from timm_extra_kernels import _dispatch

MODELS = ['test_perceiver', 'test_perceiver_io']
LEARNED = dict(stem='conv1x1', stem_chs=12, pos_embed='learned', pos_dim=10, pos_proj_dim=12, img_size=24)
CONV = dict(stem='conv', stem_chs=8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_model(name='test_perceiver_io', **kwargs):
    """A test model in which every parameter shows in the logits."""
    model = timm.create_model(name, **{'num_classes': 11, **kwargs}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.ndim > 1 else 0.3))
    return model


@pytest.mark.parametrize(
    'name, params',
    [
        ('perceiver_io_base', 48_440_627),
        ('perceiver_io_base_learned', 62_255_848),
        ('perceiver_io_base_conv', 48_646_522),
        ('perceiver_base', 44_912_254),  # the paper says 44.9M
    ],
)
def test_parameter_counts(name, params):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params


def test_without_sharing_it_is_as_large_as_the_paper_says():
    with torch.device('meta'):
        model = timm.create_model('perceiver_base', unique_blocks=8, unique_cross_attends=8)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 326


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kwargs', [{}, CONV, dict(cross_num_heads=3, cross_head_dim=5)])
@pytest.mark.parametrize('masked', [False, True])
def test_all_routes_compute_the_same(name, kwargs, masked):
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.rand(2, *((5, 6) if 'stem' in kwargs else (20, 24))) > 0.5
    reference = small_model(name, dtype=torch.float64, cross_route='plain', **kwargs)
    expected = reference(x, mask)
    expected.square().sum().backward()
    for route in ('folded', 'separable', None):
        model = timm.create_model(name, num_classes=11, dtype=torch.float64, cross_route=route, **kwargs).eval()
        model.load_state_dict(reference.state_dict())
        logits = model(x, mask)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        logits.square().sum().backward()
        for (key, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-9, msg=key)


def route_of(model, size, batch=1):
    with torch.device('meta'):
        inputs, _ = model.stem(torch.empty(batch, model.in_chans, *size))
    return model.cross_attends[0].attn.choose_route(model.latents.shape[0], inputs)


def test_the_route_is_chosen_by_cost():
    with torch.device('meta'):
        fourier = timm.create_model('perceiver_io_base')
        assert route_of(fourier, (224, 224)) == 'separable'
        assert route_of(timm.create_model('perceiver_io_base_conv'), (224, 224)) == 'separable'
        assert route_of(timm.create_model('perceiver_io_base_learned'), (224, 224)) == 'folded'
        many_narrow_heads = timm.create_model(
            'perceiver_io_base_learned', cross_num_heads=8, cross_head_dim=8, num_latents=64
        )
        assert route_of(many_narrow_heads, (224, 224)) == 'plain'
        decoder = fourier.decoder.attn
        assert decoder.choose_route(1, Inputs(torch.empty(1, 512, 1024), [], None)) == 'folded'


@pytest.mark.parametrize(
    'name, dtype, on_gpu, without_kernels',
    [
        ('perceiver_io_base', torch.bfloat16, 'separable', 'plain'),
        ('perceiver_io_base', torch.float16, 'separable', 'plain'),
        ('perceiver_io_base', torch.float32, 'separable', 'separable'),
        ('perceiver_io_base', torch.float64, 'separable', 'separable'),
        ('perceiver_io_base_conv', torch.bfloat16, 'separable', 'plain'),
        ('perceiver_io_base_conv', torch.float16, 'folded', 'plain'),  # more channels than the kernel takes
        ('perceiver_io_base_learned', torch.bfloat16, 'folded', 'plain'),
        ('perceiver_io_base_learned', torch.float32, 'folded', 'folded'),
    ],
)
def test_on_a_gpu_the_cost_is_that_of_its_kernels_or_of_pytorch(name, dtype, on_gpu, without_kernels, monkeypatch):
    """PyTorch does what has no kernel in float32, score by score through memory."""
    with torch.device('meta'):
        model = timm.create_model(name)
        inputs, _ = model.stem(torch.empty(1, 3, 224, 224))
    attn = model.cross_attends[0].attn
    with FakeTensorMode():  # of a GPU that is not there
        content = torch.empty(inputs.content.shape, device='cuda')
        axes = [torch.empty(table.shape, device='cuda') for table in inputs.axes]
        inputs = Inputs(content, axes, None)
        monkeypatch.delenv('TIMM_EXTRA_FUSED', raising=False)
        assert attn.choose_route(512, inputs, dtype) == on_gpu
        with monkeypatch.context() as off:
            off.setenv('TIMM_EXTRA_FUSED', '0')
            assert attn.choose_route(512, inputs, dtype) == without_kernels
        monkeypatch.setattr(_dispatch, 'no_triton', lambda: 'triton is not installed')
        assert attn.choose_route(512, inputs, dtype) == without_kernels


def test_attention_dropout_takes_the_plain_route_in_training():
    model = timm.create_model('test_perceiver', attn_drop_rate=0.1, cross_route='separable')
    assert route_of(model.train(), (64, 64)) == 'plain'
    assert route_of(model.eval(), (64, 64)) == 'separable'
    x = torch.randn(1, 3, 32, 32)
    model.train()
    with torch.no_grad():
        assert not torch.equal(model.forward_features(x), model.forward_features(x))


class Adapter(nn.Linear):
    """A linear layer whose weight is not all it does, as adapters are."""

    def forward(self, x):
        return super().forward(x) * 2


def test_projections_that_do_more_than_their_weight_says_are_called():
    model = small_model('test_perceiver')
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    attn = model.cross_attends[0].attn
    adapter = Adapter(attn.v.in_features, attn.v.out_features)
    adapter.load_state_dict(attn.v.state_dict())
    attn.v = adapter
    assert route_of(model, (32, 32)) == 'plain'
    assert not torch.allclose(model(x), before, atol=1e-3)

    model = small_model('test_perceiver')
    before = model(x)
    for part in ('k', 'norm_kv'):
        module = getattr(model.cross_attends[1].attn, part)
        handle = module.register_forward_hook(lambda module, args, output: output * 0)
        assert not torch.allclose(model(x), before, atol=1e-3)
        handle.remove()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kwargs', [dict(max_resolution=224), dict(max_resolution=56, **CONV)])
def test_any_resolution_with_the_same_weights(name, kwargs):
    model = small_model(name, **kwargs)
    for size in ((64, 64), (33, 70), (1, 5), (224, 224)):
        x = torch.randn(1, 3, *size)
        of_that_size = timm.create_model(name, num_classes=11, img_size=size, **kwargs).eval()
        of_that_size.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(x), of_that_size(x))


def test_learned_positions_need_their_size():
    model = small_model(**LEARNED)
    assert model(torch.randn(1, 3, 24, 24)).shape == (1, 11)
    with pytest.raises(AssertionError, match=r'grid of \[24, 32\], learned positions are for \[24, 24\]: use dynamic'):
        model(torch.randn(1, 3, 24, 32))


def test_learned_positions_are_resampled():
    model = small_model(dynamic_img_size=True, **LEARNED)
    x = torch.randn(1, 3, 24, 32)
    logits = model(x)
    model.stem.pos_embed.requires_grad_(False)
    model.set_input_size((24, 32))
    assert model.stem.pos_embed.shape == (24 * 32, 10)
    assert not model.stem.pos_embed.requires_grad
    torch.testing.assert_close(model(x), logits)
    with pytest.raises(ValueError, match=r'img_size must be positive whole numbers, got \(0, 32\)'):
        model.set_input_size((0, 32))
    assert model.stem.grid_size == (24, 32)


@pytest.mark.parametrize('kwargs', [{}, LEARNED, dict(cross_route='plain'), dict(cross_route='folded')])
@pytest.mark.parametrize('name', MODELS)
def test_masked_inputs_do_not_matter(name, kwargs):
    model = small_model(name, **kwargs)
    x, mask = torch.randn(2, 3, 24, 24), torch.rand(2, 24, 24) > 0.3
    changed = torch.where(mask[:, None], x, torch.randn_like(x) * 9)
    torch.testing.assert_close(model(x, mask), model(changed, mask), rtol=0, atol=1e-5)
    assert not torch.allclose(model(x, mask), model(x), atol=1e-3)
    torch.testing.assert_close(model(x, torch.ones_like(mask)), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize('route', ['plain', 'folded', 'separable'])
def test_a_mask_without_any_input_is_no_special_case(route):
    model = small_model('test_perceiver', cross_route=route)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[1] = False
    x = torch.randn(2, 3, 8, 8)
    logits = model(x, mask)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(logits[0], model(x)[0])
    torch.testing.assert_close(logits[1], model(x * 3, mask)[1])  # it depends on nothing any more
    assert logits[1].isfinite().all()


def test_masks_that_do_not_fit():
    model = small_model()
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(AssertionError, match=r'Mask must be boolean, .* got torch.float32'):
        model(x, torch.ones(2, 8, 8))
    with pytest.raises(AssertionError, match=r'Mask must be \[2, 8, 8\], as the inputs are, got \[2, 7, 7\]'):
        model(x, torch.ones(2, 7, 7, dtype=torch.bool))
    wide = torch.randn(2, 3, 4, 16)
    for name, kwargs in (('test_perceiver', {}), ('test_perceiver_io', dict(LEARNED, img_size=(4, 16)))):
        with pytest.raises(AssertionError, match=r'Mask must be \[2, 4, 16\], as the inputs are, got \[2, 16, 4\]'):
            small_model(name, **kwargs)(wide, torch.ones(2, 16, 4, dtype=torch.bool))


def test_inputs_that_do_not_fit():
    model = small_model()
    with pytest.raises(AssertionError, match='Input has 4 channels, model takes 3'):
        model(torch.randn(1, 4, 8, 8))
    with pytest.raises(AssertionError, match=r'\(batch, channels, 2 spatial axes\), got 3 dimensions'):
        model(torch.randn(3, 8, 8))
    with pytest.raises(AssertionError, match='Input has an empty spatial axis'):
        model(torch.randn(1, 3, 0, 8))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_blocks=0), 'num_blocks must be at least 1, got 0'),
        (dict(num_latents=0), 'num_latents must be at least 1, got 0'),
        (dict(unique_blocks=4), '4 different blocks do not fit into 3'),
        (dict(num_cross_attends=4), '4 cross-attends .* do not fit into 3'),
        (dict(compat='jax'), "compat must be one of .* got 'jax'"),
        (dict(cross_route='fast'), "must be one of .* got 'fast'"),
        (dict(cross_num_heads=2), r'kv_dim \(37\) must be divisible by the cross-attention heads \(2\)'),
        (dict(stem='resnet'), "stem must be one of .* got 'resnet'"),
        (dict(pos_embed='rotary'), "pos_embed must be one of .* got 'rotary'"),
        (dict(img_size=(8, -1)), r'positive whole numbers, got \(8, -1\)'),
        (dict(img_size=(2, 3, 4, 5)), 'img_size must have 1 to 3 numbers, got 4'),
        (dict(img_size=()), 'img_size must have 1 to 3 numbers, got 0'),
        (dict(img_size=224.0), r'positive whole numbers, got \(224.0, 224.0\)'),
        (dict(stem='conv', img_size=(8,)), "stem='conv' is for images, got an img_size of 1 numbers"),
        (
            dict(stem='tokens', pos_embed='none', img_size=(8, 8)),
            "stem='tokens' needs .* of one number, got 2",
        ),
        (dict(stem='tokens', img_size=8), "stem='tokens' takes pos_embed='learned' or 'none', got 'fourier'"),
        (
            dict(stem='points', pos_embed='learned', img_size=8),
            "stem='points' takes pos_embed='fourier', got 'learned'",
        ),
        (dict(stem='points', in_chans=2, img_size=8), "stem='points' needs 3 coordinates among in_chans, got 2"),
        (dict(patch_size=4), "stem='pixels' takes no patch_size, got 4"),
        (dict(stem_chs=8), "stem='pixels' takes no stem_chs, got 8"),
        (dict(stem='conv', patch_size=(4, 4)), r"stem='conv' takes no patch_size, got \(4, 4\)"),
        (dict(stem='patches', patch_size=4, stem_chs=8), "stem='patches' takes no stem_chs, got 8"),
        (dict(stem='points', img_size=8, in_chans=1, grey_chans=3), "stem='points' takes no grey_chans, got 3"),
        (dict(stem='tokens', img_size=8, in_chans=1, grey_chans=3), "stem='tokens' takes no grey_chans, got 3"),
        (dict(stem='patches'), r"one positive whole number for each of 2 axes with stem='patches', got \(\)"),
        (
            dict(stem='patches', patch_size=(4, 4, 4)),
            r'one positive whole number for each of 2 axes .* got \(4, 4, 4\)',
        ),
        (dict(stem='patches', patch_size=0), 'one positive whole number for each of 2 axes .* got 0'),
        (dict(stem='patches', patch_size=(3, 3)), r'multiples of patch_size \(3, 3\), got \(224, 224\)'),
        (dict(max_resolution=(1, 2, 3)), r'max_resolution must be positive, one number or 2, got \(1, 2, 3\)'),
        (dict(num_bands=0), 'num_bands must be at least 1, got 0'),
        (dict(img_size=(True, 8)), r'positive whole numbers, got \(True, 8\)'),
        (dict(in_chans=0), 'in_chans must be at least 1, got 0'),
        (dict(in_chans=2, grey_chans=3), 'grey_chans repeats one channel'),
        (dict(global_pool='max'), "global_pool must be '' or 'avg', got 'max'"),
    ],
)
def test_arguments_that_do_not_fit(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('test_perceiver', **kwargs)


def test_unknown_arguments_are_not_swallowed():
    for cls in (Perceiver, PerceiverIO):
        with pytest.raises(TypeError, match='num_latentz'):
            cls(num_latentz=3)
    with pytest.raises(TypeError, match='input_shape'):
        timm.create_model('test_perceiver', input_shape=(8, 8))


def test_perceiver_io_alone_has_a_decoder():
    for name in ('decoder', 'num_queries', 'query_dim', 'decoder_residual', 'decoder_mlp'):
        with pytest.raises(TypeError, match=name):
            timm.create_model('test_perceiver', **{name: 1})
    with pytest.raises(TypeError, match='decoder'):
        timm.create_model('test_perceiver_io', decoder=True)
    with pytest.raises(ValueError, match='num_queries must not be negative, got -1'):
        timm.create_model('test_perceiver_io', num_queries=-1)
    model = timm.create_model('test_perceiver')
    assert not hasattr(model, 'decoder') and not hasattr(model, 'query')
    with pytest.raises(TypeError, match='queries'):
        model(torch.randn(1, 3, 8, 8), queries=torch.randn(2, 64))


def test_a_stem_of_ones_own_leaves_the_named_stems_arguments():
    model = timm.create_model('perceiver_io_base_learned', stem='pixels', img_size=8, num_blocks=1, block_depth=1)
    assert model.stem.kind == 'pixels'
    assert model.stem.out_chans == 3 + 256


@pytest.mark.parametrize('name', MODELS)
def test_pooling_and_heads(name):
    model = small_model(name, drop_rate=0.1)
    x = torch.randn(2, 3, 16, 16)
    z = model.forward_features(x)
    assert z.shape == (2, 16, 64)
    torch.testing.assert_close(model.forward_head(z), model(x))
    assert model.forward_head(z, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), z)
    with pytest.raises(ValueError, match='global_pool must be'):
        model.reset_classifier(0, 'max')


def test_several_queries_and_queries_of_ones_own():
    model = small_model(num_queries=3, query_dim=20)
    x = torch.randn(2, 3, 16, 16)
    assert model(x).shape == (2, 3, 11)
    given = torch.randn(7, 20)
    torch.testing.assert_close(model(x, queries=given), model(x, queries=given.expand(2, -1, -1)))
    assert model(x, queries=given).shape == (2, 7, 11)
    torch.testing.assert_close(model(x, queries=model.query), model(x))
    assert small_model()(x, queries=torch.randn(1, 64)).shape == (2, 1, 11)


@pytest.mark.parametrize('name', MODELS)
def test_intermediates(name):
    model = small_model(name)
    x = torch.randn(2, 3, 16, 16)
    z, taps = model.forward_intermediates(x)
    assert len(taps) == len(model.feature_info) == 3
    torch.testing.assert_close(z, taps[-1])
    torch.testing.assert_close(z, model.forward_features(x))
    (second,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(second, taps[1])
    with pytest.raises(AssertionError, match='Output format must be NLC'):
        model.forward_intermediates(x, output_fmt='NCHW')

    features = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    assert [f.shape for f in features(x)] == [(2, 16, 64)] * 2
    assert features.feature_info.channels() == [64, 64]


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('unique', [1, 2, 3])
@pytest.mark.parametrize('index', [0, 1, 2])
def test_pruning_leaves_nothing_unused(name, unique, index):
    kwargs = dict(unique_blocks=unique)
    model = small_model(name, **kwargs)
    x = torch.randn(2, 3, 16, 16)
    expected = model.forward_intermediates(x, [index], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([index]) == [index]
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kwargs', [{}, CONV, LEARNED, dict(stem='patches', patch_size=4)])
def test_gradient_checkpointing_changes_nothing(name, kwargs):
    model = small_model(name, **kwargs).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = torch.randn(2, 3, 24, 24)
    for m in (model, other):
        m(x).square().sum().backward()
    for (key, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None, key
        torch.testing.assert_close(a.grad, b.grad, msg=key)


@pytest.mark.parametrize('name', MODELS)
def test_hooks_on_blocks_see_them_under_checkpointing(name):
    model, seen = small_model(name).train(), []
    model.set_grad_checkpointing()
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    model(torch.randn(2, 3, 16, 16))
    assert len(seen) == model.num_blocks


@pytest.mark.parametrize('name', MODELS)
def test_every_stage_is_a_module_of_its_own(name):
    model = small_model(name, num_blocks=3)
    names = [info['module'] for info in model.feature_info]
    assert len(set(names)) == 3
    x = torch.randn(2, 3, 16, 16)
    expected = model.forward_intermediates(x, intermediates_only=True)
    seen = []
    for label in names:
        model.get_submodule(label).register_forward_hook(lambda module, args, out: seen.append(out))
    model(x)
    for found, latents in zip(seen, expected, strict=True):
        assert torch.equal(found, latents)


@pytest.mark.parametrize('name', MODELS)
def test_features_by_hooks_are_those_by_the_getter(name):
    found = []
    for feature_cls in ('getter', 'hook'):
        torch.manual_seed(3)
        options = dict(features_only=True, out_indices=(0, 2), num_blocks=3)
        backbone = timm.create_model(name, feature_cls=feature_cls, **options).eval()
        assert len(set(backbone.feature_info.module_name())) == 2
        found.append(backbone(torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)))
    assert not torch.equal(found[0][0], found[0][1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_without_fused_attention_maps_are_formed_and_seen(name, masked):
    torch.manual_seed(5)
    fused = small_model(name)
    try:
        timm.layers.set_fused_attn(False)
        torch.manual_seed(5)
        model = small_model(name)
    finally:
        timm.layers.set_fused_attn(True)
    x = torch.randn(2, 3, 16, 16)
    mask = torch.rand(2, 16, 16) < 0.7 if masked else None
    if masked:
        mask[1] = False
    torch.testing.assert_close(model(x, mask), fused(x, mask), rtol=1e-4, atol=1e-5)
    maps = {}
    for label, module in model.named_modules():
        if label.endswith('attn_drop'):
            module.register_forward_hook(lambda module, args, out, label=label: maps.setdefault(label, out))
    model(x, mask)
    assert maps['cross_attends.0.attn.attn_drop'].shape == (2, 1, 16, 256)
    assert ('decoder.attn.attn_drop' in maps) == (name == 'test_perceiver_io')
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_without_fused_attention_there_are_second_derivatives():
    try:
        timm.layers.set_fused_attn(False)
        model = small_model().double()
    finally:
        timm.layers.set_fused_attn(True)
    x, v = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x)[0]

    found = torch.autograd.functional.hvp(lambda x: model(x).square().sum(), x, v)[1]
    expected = (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kwargs', [{}, dict(query_dim=20), dict(num_queries=3), dict(compat='lucidrains')])
@pytest.mark.parametrize('pool', ['', 'avg'])
def test_perceiver_io_that_pools_its_latents_has_no_decoder(pool, kwargs, tmp_path):
    x = torch.randn(2, 3, 16, 16)
    built = small_model(global_pool=pool, **kwargs)
    reset = small_model(**kwargs)
    reset.reset_classifier(11, pool)
    for model in (built, reset):
        assert model.decoder is None and model.query is None
        z = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(z, pre_logits=True), z.mean(1) if pool else z)
        model(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        with pytest.raises(ValueError, match="'token' needs the decoder, which went with"):
            model.reset_classifier(11, 'token')
        with pytest.raises(AssertionError, match='has no decoder'):
            model(x, queries=torch.randn(2, model.head_hidden_size))
        hub.save(model, tmp_path / 'saved')
        again = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
        assert torch.equal(again(x), model(x))


def test_weights_with_a_decoder_load_into_a_model_without():
    trained = small_model()
    overlay = dict(state_dict=trained.state_dict(), num_classes=11)
    model = timm.create_model(
        'test_perceiver_io', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, global_pool='avg'
    ).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x), trained.forward_features(x).mean(1))


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize(
    'kwargs',
    [{}, CONV, LEARNED, dict(unique_blocks=2, num_cross_attends=2), dict(compat='lucidrains'), dict(img_size=(16, 40))],
)
def test_saved_and_loaded(name, kwargs, tmp_path):
    model = small_model(name, **kwargs)
    hub.save(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize('kwargs', [{}, LEARNED, dict(LEARNED, img_size=(24, 24)), dict(img_size=(16, 16))])
def test_saved_at_another_size(kwargs, tmp_path):
    model = small_model(**kwargs)
    model.set_input_size((40, 32))
    hub.save(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert again.stem.img_size == (40, 32)
    x = torch.randn(1, 3, 40, 32)
    assert torch.equal(again(x), model(x))


def test_frequencies_that_came_from_the_size_survive_another(tmp_path):
    model = PerceiverIO(img_size=24, num_latents=8, latent_dim=32, num_blocks=2, block_depth=1, num_bands=4)
    resolution = model.stem.max_resolution
    assert resolution == [24.0, 24.0]
    model.set_input_size(40)
    assert model.stem.max_resolution == resolution

    video = timm.create_model('test_perceiver', img_size=(4, 8, 8), num_classes=3).eval()
    video.set_input_size((6, 10, 12))
    hub.save(video, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert again.stem.max_resolution == [4.0, 8.0, 8.0]
    x = torch.randn(1, 3, 6, 10, 12)
    assert torch.equal(again(x), video(x))
    with pytest.raises(ValueError, match=r'the input has 3 axes, got sizes \(6, 10\)'):
        video.set_input_size((6, 10))


def in_words_of_older_versions(folder, architecture, **model_args):
    """Change what a folder says; arguments with None go."""
    file = folder / 'config.json'
    config = json.loads(file.read_text())
    args = {**config['model_args'], **model_args}
    config.update(architecture=architecture, model_args={k: v for k, v in args.items() if v is not None})
    file.write_text(json.dumps(config))


OLD_FOLDERS = {
    'video': ('test_perceiver', dict(img_size=(4, 8, 8)), dict(img_size=None, input_shape=[4, 8, 8])),
    'images': ('test_perceiver', dict(img_size=(8, 12)), dict(input_shape=[8, 12])),
    'audio': (
        'perceiver_audio',
        dict(img_size=(640,), patch_size=16, num_latents=8, latent_dim=32, num_blocks=1, block_depth=1, num_bands=4),
        dict(img_size=None, input_shape=[640], patch_size=[16]),
    ),
    'points': (
        'perceiver_pointcloud',
        dict(img_size=30, num_latents=8, latent_dim=32, block_depth=1, num_bands=4),
        dict(img_size=None, input_shape=[30]),
    ),
    'learned video': (  # timm gave images' size to a model that is for a fixed one
        'test_perceiver_io',
        dict(LEARNED, img_size=(4, 6, 8)),
        dict(img_size=[224, 224], input_shape=[4, 6, 8]),
    ),
    'decoder': (  # of a model with the Perceiver's name, where all blocks have a cross-attend
        'test_perceiver_io',
        dict(img_size=8, num_cross_attends=3),
        dict(decoder=True, num_cross_attends=None),
    ),
    'unused': ('test_perceiver', dict(img_size=8), dict(num_queries=3, decoder=False, stem_chs=9)),
}


@pytest.mark.parametrize('kind', list(OLD_FOLDERS))
def test_folders_of_older_versions_load(kind, tmp_path):
    name, kwargs, old = OLD_FOLDERS[kind]
    model = small_model(name, **kwargs)
    hub.save(model, tmp_path / 'old')
    in_words_of_older_versions(tmp_path / 'old', 'test_perceiver' if kind == 'decoder' else name, **old)
    x = torch.randn(2, *model.input_size)
    again = timm.create_model(f'local-dir:{tmp_path}/old', pretrained=True).eval()
    assert type(again) is type(model)
    assert again.input_size == model.input_size
    assert again.stem.max_resolution == model.stem.max_resolution
    assert torch.equal(again(x), model(x))
    again.set_input_size([2 * n for n in again.stem.img_size])
    hub.save(again, tmp_path / 'new')
    larger = timm.create_model(f'local-dir:{tmp_path}/new', pretrained=True).eval()
    assert larger.input_size == again.input_size
    x = torch.randn(2, *larger.input_size)
    assert torch.equal(larger(x), again(x))


def test_a_size_of_ones_own_goes_before_that_of_an_older_folder(tmp_path):
    hub.save(small_model('test_perceiver', img_size=(4, 8, 8)), tmp_path)
    in_words_of_older_versions(tmp_path, 'test_perceiver', img_size=None, input_shape=[4, 8, 8])
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=(2, 6, 6))
    assert model.input_size == (3, 2, 6, 6)
    with pytest.raises(TypeError, match='input_shape'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, input_shape=(2, 6, 6))


def test_shared_weights_are_registered_once():
    model = timm.create_model('test_perceiver')
    tensors = list(model.state_dict().values())
    assert len({t.data_ptr() for t in tensors}) == len(tensors)
    assert {k.split('.')[1] for k in model.state_dict() if k.startswith('blocks.')} == {'0'}
    assert {k.split('.')[1] for k in model.state_dict() if k.startswith('cross_attends.')} == {'0', '1'}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kwargs', [{}, CONV, dict(cross_route='folded'), dict(cross_route='plain')])
def test_half_precision(dtype, kwargs):
    """Positions are exact whatever the dtype: at 224 pixels, bfloat16 could not even tell neighbours apart."""
    model = small_model(num_bands=64, **kwargs)
    x = torch.randn(1, 3, 224, 224)
    expected = model(x)
    inputs, _ = model.to(dtype).stem(x.to(dtype))
    assert {t.dtype for t in inputs.axes} == {torch.float32}
    ours = model(x.to(dtype))
    assert ours.dtype == dtype
    assert (ours.float() - expected).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.01) * expected.abs().max()


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('route', [None, 'separable', 'folded', 'plain'])
@pytest.mark.parametrize('kwargs', [{}, CONV, LEARNED])
def test_autocast(name, dtype, route, kwargs):
    model = small_model(name, cross_route=route, **kwargs)
    x = torch.randn(2, 3, 24, 24)
    expected = model(x)
    with torch.autocast('cpu', dtype=dtype):
        ours = model(x)
        assert (ours.float() - expected).abs().max() < 0.05 * expected.abs().max()
        ours.float().square().mean().backward()  # inside too, as some loops do
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('route', ['separable', 'folded', 'plain'])
def test_norms_kept_in_float32(route):
    model = small_model('test_perceiver', cross_route=route)
    x = torch.randn(1, 3, 24, 24)
    expected = model(x)
    model.bfloat16()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    assert (model(x.bfloat16()).float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_per_sample_gradients():
    model = small_model('test_perceiver')
    x = torch.randn(3, 3, 12, 12)
    params = dict(model.named_parameters())

    def loss(params, image):
        return torch.func.functional_call(model, params, (image[None],)).square().sum()

    ours = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for i in range(3):
        model.zero_grad()
        model(x[i : i + 1]).square().sum().backward()
        for name in ('latents', 'cross_attends.0.attn.v.weight', 'blocks.0.1.mlp.fc1.weight'):
            torch.testing.assert_close(ours[name][i], model.get_parameter(name).grad, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kwargs', [{}, CONV, LEARNED])
def test_compiled_scripted_traced_exported(name, kwargs):
    model = small_model(name, **kwargs)
    x = torch.randn(2, 3, 24, 24)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='aot_eager')(x), expected)
    dynamic = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
    torch.testing.assert_close(dynamic(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.testing.assert_close(torch.jit.script(model)(x), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected, rtol=0, atol=1e-4)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), expected)


def test_tables_kept_from_inference_serve_training():
    model = small_model('test_perceiver', num_bands=5)
    x = torch.randn(1, 3, 29, 31)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()


@pytest.mark.parametrize('route', ['folded', 'plain'])
def test_exported_with_dynamic_sizes(route):
    model = small_model('test_perceiver_io', cross_route=route)
    sizes = {axis: torch.export.Dim(name, min=1, max=512) for axis, name in ((0, 'b'), (2, 'h'), (3, 'w'))}
    exported = torch.export.export(model, (torch.randn(2, 3, 32, 40),), dynamic_shapes=(sizes,))
    x = torch.randn(3, 3, 50, 21)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize('kwargs', [CONV, {}])
def test_compiled_training_of_channels_last(kwargs):
    model = small_model('test_perceiver', **kwargs).to(memory_format=torch.channels_last).train()
    x = torch.randn(2, 3, 24, 24).to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    model(x).square().sum().backward()
    torch.compile(other, backend='aot_eager')(x).square().sum().backward()
    for (key, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=key)


def test_made_on_the_meta_device():
    with torch.device('meta'):
        model = timm.create_model('test_perceiver_io', **LEARNED)
    model.to_empty(device='cpu')
    model.init_weights()
    fresh = timm.create_model('test_perceiver_io', **LEARNED)
    for (key, a), b in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert a.isfinite().all(), key
        torch.testing.assert_close(a.std(), b[1].std(), rtol=0.5, atol=1e-3, msg=key)
    assert timm.create_model('test_perceiver', device='meta', dtype=torch.bfloat16).latents.dtype == torch.bfloat16


def test_layer_decay():
    model = timm.create_model('test_perceiver_io')
    optimizer = create_optimizer_v2(model, 'adamw', lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    order = [model.latents, model.cross_attends[0].attn.q.weight, model.blocks[0][0].attn.qkv.weight]
    order += [model.blocks[0][1].attn.qkv.weight, model.decoder.attn.q.weight]
    scales = [scale[id(p)] for p in order]
    assert scales == sorted(scales)
    assert len(set(scales)) == 5
    undecayed = [p for g in optimizer.param_groups if g['weight_decay'] == 0 for p in g['params']]
    assert any(p is model.latents for p in undecayed)
    assert all(getattr(model, n, None) is not None for n in ('latents', 'query'))


def test_an_empty_batch():
    for name in MODELS:
        assert small_model(name)(torch.randn(0, 3, 16, 16)).shape == (0, 11)


def test_deep_copies_and_pickles(tmp_path):
    model = small_model()
    x = torch.randn(1, 3, 16, 16)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch.save(model, tmp_path / 'm.pt')
    assert torch.equal(torch.load(tmp_path / 'm.pt', weights_only=False)(x), expected)
