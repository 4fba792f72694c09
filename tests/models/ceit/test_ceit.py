"""CeiT: equality with straightforward implementations, and the promises of timm's interface."""

import warnings

import pytest
import timm
import torch
from torch import nn

import timm_extra  # noqa: F401
from tests.reference.ceit import OfficialCeiT, randomize
from timm_extra.models.ceit.leff import LeFF

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=7)


def small_model(**kwargs) -> nn.Module:
    return timm.create_model('test_ceit', **{**SMALL, **kwargs})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    'name, count',
    [
        ('ceit_tiny', 6_356_904),
        ('ceit_small', 24_204_840),
        ('ceit_base', 94_405_416),
        ('ceit_tiny_384', 6_429_864),
    ],
)
def test_parameter_counts(name, count):
    with torch.device('meta'):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == count


@pytest.mark.parametrize(
    'old, new',
    [(f'ceit_{s}_patch16_224', f'ceit_{s}') for s in ('tiny', 'small', 'base')]
    + [(f'ceit_{s}_patch16_384', f'ceit_{s}_384') for s in ('tiny', 'small')],
)
def test_official_names_are_deprecated_aliases(old, new):
    assert old not in timm.list_models('*ceit*')
    with torch.device('meta'), pytest.warns(UserWarning, match=f'{old} to current {new}'):
        model = timm.create_model(old)
    assert model.pretrained_cfg['architecture'] == new


def test_training_equals_the_straightforward_implementation():
    plain = randomize(OfficialCeiT(dim=24, heads=3, depth=3, img_size=64, num_classes=7)).double().train()
    ours = timm.create_model(
        'ceit_tiny',
        pretrained=True,
        img_size=64,
        embed_dim=24,
        depth=3,
        num_heads=3,
        num_classes=7,
        pretrained_cfg_overlay=dict(state_dict=plain.state_dict(), num_classes=7, input_size=(3, 64, 64)),
    )
    ours = ours.double().train()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    grads, statistics = [], []
    for model in (plain, ours):
        images = x.clone().requires_grad_()
        out = model(images)
        out.square().sum().backward()
        grads.append((out, images.grad, model.cls_token.grad, model.pos_embed.grad, model.head.weight.grad))
        statistics.append([b for n, b in model.named_buffers() if 'running' in n])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(statistics[0], statistics[1])
    torch.testing.assert_close(plain.pos_layer_embed.grad, ours.lca.layer_embed.grad)
    torch.testing.assert_close(plain.blocks[1].leff.conv2.weight.grad, ours.blocks[1].leff.conv.weight.grad)


def test_first_token_is_the_normed_layerwise_class_token():
    model = small_model().eval()
    x = torch.randn(2, 3, 32, 32)
    seen = []
    model.lca.register_forward_hook(lambda module, args, out: seen.append(out))
    features = model.forward_features(x)
    assert features.shape == (2, 1 + 16, 24)
    torch.testing.assert_close(features[:, :1], model.norm(seen[0]))


@pytest.mark.parametrize('kwargs', [{}, dict(cls_bypass=True), dict(use_lca=False), dict(depth=1)])
def test_logits_skip_the_last_leff_and_stay_equal(kwargs, monkeypatch):
    model = small_model(**kwargs).eval()
    x = torch.randn(2, 3, 32, 32)
    calls, forward = [], LeFF.forward
    monkeypatch.setattr(LeFF, 'forward', lambda self, *args: calls.append(self) or forward(self, *args))
    expected = model(x)
    assert model.blocks[-1].leff in calls, 'with gradients every parameter must take part'
    calls.clear()
    with torch.no_grad():
        logits = model(x)
        assert model.blocks[-1].leff not in calls, 'logits alone do not need it'
        torch.testing.assert_close(logits, model.forward_head(model.forward_features(x)))
    torch.testing.assert_close(logits, expected)


def test_every_block_is_called_as_a_module():
    """What wraps blocks (hooks, FSDP, compile) must see each of them, with and without gradients."""
    model = small_model().eval()
    calls = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: calls.append(i))
    x = torch.randn(1, 3, 32, 32)
    model(x)
    with torch.no_grad():
        model(x)
    assert calls == [0, 1, 2, 0, 1, 2]


def test_average_pooling_needs_the_last_leff():
    model = small_model(global_pool='avg').eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x)))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(use_lca=False),
        dict(leff_kernel_size=1),
        dict(leff_kernel_size=5),
        dict(leff_bn=False),
        dict(conv_stem=False),
        dict(cls_bypass=True, leff_out_act=True, head_dim=5, lca_num_heads=2, lca_head_dim=9, lca_mlp_ratio=2.0),
        dict(in_chans=5),
        dict(img_size=(24, 40)),
        dict(drop_rate=0.1, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1),
    ],
)
def test_every_switch_trains(kwargs):
    model = small_model(**kwargs)
    height, width = model.patch_embed.img_size
    logits = model(torch.randn(2, model.in_chans, height, width))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_images_of_a_batch_do_not_mix():
    model = small_model().eval()
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(x), torch.cat([model(i[None]) for i in x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(32, 32), (64, 64), (24, 56), (8, 8)])
def test_dynamic_sizes(size):
    model = small_model(dynamic_img_size=True).eval()
    x = torch.randn(2, 3, *size)
    assert model.forward_features(x).shape == (2, 1 + size[0] * size[1] // 64, 24)
    if size == (32, 32):
        fixed = small_model().eval()
        fixed.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(x), fixed(x))


def test_set_input_size_equals_dynamic():
    dynamic, model = small_model(dynamic_img_size=True).eval(), small_model().eval()
    model.load_state_dict(dynamic.state_dict())
    model.set_input_size((48, 24))
    x = torch.randn(2, 3, 48, 24)
    torch.testing.assert_close(model(x), dynamic(x))
    assert model.patch_embed.grid_size == (6, 3)


@pytest.mark.parametrize(
    'shape, message',
    [((1, 1, 32, 32), '1 channels'), ((1, 3, 40, 32), r'height \(40\)'), ((1, 3, 32, 31), r'width \(31\)')],
)
def test_unfit_images_are_named(shape, message):
    with pytest.raises(AssertionError, match=message):
        small_model()(torch.randn(shape))


def test_unfit_dynamic_images_are_named():
    with pytest.raises(AssertionError, match=r'height \(36\)'):
        small_model(dynamic_img_size=True)(torch.randn(1, 3, 36, 32))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(img_size=225), '225'),
        (dict(img_size=225, conv_stem=False), '225'),
        (dict(img_size=0), '0'),
        (dict(img_size=32.0), '32.0'),
        (dict(mlp_ratio=0.01), 'mlp_ratio.* got 0'),
        (dict(patch_size=6, img_size=36), '6'),
        (dict(patch_size=(8, 8)), r'\(8, 8\)'),
        (dict(num_heads=0), 'num_heads .* 0'),
        (dict(global_pool='median'), 'median'),
        (dict(depth=0), '0'),
        (dict(leff_kernel_size=4), '4'),
        (dict(num_heads=5), '5'),
    ],
)
def test_unfit_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_model(**kwargs)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='embed_dims'):
        small_model(embed_dims=24)


@pytest.mark.parametrize('kwargs', [{}, dict(conv_stem=False)])
def test_a_refused_size_changes_nothing(kwargs):
    model = small_model(**kwargs).eval()
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    with pytest.raises(ValueError, match='50×50'):
        model.set_input_size(50)
    assert torch.equal(model(x), expected)


def test_wrong_pooling_keeps_the_classifier():
    model = small_model()
    with pytest.raises(ValueError, match='max'):
        model.reset_classifier(3, 'max')
    assert model.global_pool == 'token'


def test_fuse_keeps_logits_and_returns_the_model():
    model = small_model()
    model(torch.randn(8, 3, 32, 32) * 2 + 1)  # statistics other than the initial ones
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    expected, reparameterized = model(x), timm.utils.reparameterize_model(model)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()), 'the original is left alone'
    torch.testing.assert_close(reparameterized(x), expected, rtol=1e-4, atol=1e-5)
    assert model.fuse() is model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_fuse_in_training_changes_nothing():
    model = small_model().train()
    keys = list(model.state_dict())
    with pytest.raises(RuntimeError, match='eval'):
        model.fuse()
    assert list(model.state_dict()) == keys


def test_grad_checkpointing_trains_the_same_model():
    x = torch.randn(4, 3, 32, 32)
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = small_model().train()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    torch.testing.assert_close(results[0], results[1])


def test_init_weights_after_to_empty():
    with torch.device('meta'):
        model = small_model()
    model = model.to_empty(device='cpu')
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else 99)
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    fresh = small_model()
    for (name, given), expected in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        if expected.unique().numel() == 1:  # constants: biases, norms, statistics, layer embedding
            assert torch.equal(given, expected), name
        elif expected.numel() > 200:
            assert 0.7 < given.std() / expected.std() < 1.4, name
    assert model.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_initialisation_is_the_official_one():
    model = timm.create_model('ceit_tiny', depth=2)
    block, uniform = model.blocks[1], 1 / 3**0.5
    spreads = {
        0.02: [block.attn.qkv, block.attn.proj, model.lca.mlp.fc1, model.head],
        uniform / 192**0.5: [block.leff.fc1],
        uniform / 768**0.5: [block.leff.fc2],
        uniform / 9**0.5: [block.leff.conv],
        uniform / 147**0.5: [model.patch_embed.conv],
    }
    for expected, layers in spreads.items():
        for layer in layers:
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.lca.layer_embed.any()
    assert not block.attn.qkv.bias.any()


@pytest.mark.parametrize('prune_head', [True, False])
@pytest.mark.parametrize('indices', [[0], [1], [0, 2], 2])
def test_pruning_keeps_intermediates_and_uses_every_parameter(indices, prune_head):
    model = small_model()
    x = torch.randn(2, 3, 32, 32)
    expected = model.eval().forward_intermediates(x, indices=indices, intermediates_only=True)
    taken = model.prune_intermediate_layers(indices, prune_norm=prune_head, prune_head=prune_head)
    got = model.forward_intermediates(x, indices=taken, intermediates_only=True)
    torch.testing.assert_close(got, expected)
    if prune_head:
        sum(f.sum() for f in model.train().forward_intermediates(x, indices=taken, intermediates_only=True)).backward()
    else:
        logits = model.train()(x)
        assert logits.shape == (2, 7)
        logits.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_intermediates():
    model = small_model().eval()
    x = torch.randn(2, 3, 32, 32)
    out, maps = model.forward_intermediates(x)
    torch.testing.assert_close(out, model.forward_features(x))
    assert [m.shape for m in maps] == [(2, 24, 4, 4)] * 3
    tokens = model.forward_intermediates(x, output_fmt='NLC', intermediates_only=True)
    torch.testing.assert_close(tokens[1].transpose(1, 2).reshape(2, 24, 4, 4), maps[1])
    calls = []
    model.blocks[2].register_forward_hook(lambda *args: calls.append(1))
    pairs = model.forward_intermediates(
        x, indices=[1], return_prefix_tokens=True, stop_early=True, intermediates_only=True
    )
    assert not calls
    assert pairs[0][1].shape == (2, 1, 24)
    torch.testing.assert_close(pairs[0][0], maps[1])


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize(
    'kwargs', [{}, dict(dynamic_img_size=True), dict(conv_stem=False, use_lca=False, global_pool='avg')]
)
def test_torchscript(kwargs):
    with timm.layers.set_scriptable(True):
        model = small_model(**kwargs).eval()
    x = torch.randn(2, 3, 32, 32)
    script = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(script(x), model(x))
    torch.testing.assert_close(script(x), model(x))


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore::torch.jit.TracerWarning')
def test_traces():
    model = small_model().eval()
    x = torch.randn(2, 3, 32, 32)
    trace = torch.jit.trace(model, x)  # checks itself without gradients
    torch.testing.assert_close(trace(x), model(x))


def test_checkpointing_compiles():
    x = torch.randn(4, 3, 32, 32)
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = small_model(depth=1).train()
        model.set_grad_checkpointing(enable)
        torch.compile(model, backend='aot_eager')(x).square().sum().backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    torch.testing.assert_close(results[0], results[1])


def test_no_images_give_no_logits():
    model = small_model().eval()
    with torch.no_grad():
        assert model(torch.randn(0, 3, 32, 32)).shape == (0, 7)


def test_compiles_without_graph_breaks():
    model = small_model().eval()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_exports():
    model = small_model().eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=8)},))
    y = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(exported.module()(y), model(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kwargs', [{}, dict(conv_stem=False)])
def test_dtype_and_device_reach_every_tensor(kwargs):
    model = small_model(device='meta', dtype=torch.float64, **kwargs)
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {'meta'}
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}


def test_bfloat16():
    model = small_model(dtype=torch.bfloat16).eval()
    assert model(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model = small_model().train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(torch.randn(2, 3, 32, 32)).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_optimizer_groups():
    from timm.optim import param_groups_layer_decay

    model = small_model()
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    assert len({g['lr_scale'] for g in groups}) == 3 + 2  # stem, three blocks, head
    undecayed = [p for g in groups if g['weight_decay'] == 0 for p in g['params']]
    assert any(p is model.pos_embed for p in undecayed)


def test_no_hosted_weights_is_said_plainly():
    with pytest.raises(RuntimeError, match='ceit_small has no hosted weights'):
        timm.create_model('ceit_small', pretrained=True)


def test_creating_a_model_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        small_model()
