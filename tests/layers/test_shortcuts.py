"""Shortcuts stand back where modules are watched or changed, in every family."""

import pytest
import timm
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import timm_extra  # noqa: F401
from timm_extra.layers.shortcuts import may_shortcut
from timm_extra.models.ceit.leff import LeFF
from timm_extra.models.perceiver.cross_attention import CrossAttention, Inputs

FAMILIES = {
    'test_ceit': dict(img_size=32),
    'test_perceiver': dict(img_size=32),
    'test_perceiver learned': dict(
        img_size=12, stem='conv1x1', stem_chs=8, pos_embed='learned', pos_dim=8, pos_proj_dim=8
    ),
    'test_perceiver_io': dict(img_size=32),
    'test_glom': dict(img_size=28),
}


def family(name):
    torch.manual_seed(0)
    model = timm.create_model(name.split()[0], num_classes=5, **FAMILIES[name]).eval()
    nn.init.normal_(model.head.weight, std=0.3)
    return model, torch.randn(3, *(3, FAMILIES[name]['img_size'], FAMILIES[name]['img_size']))


def leaves(model):
    return [m for m in model.modules() if not list(m.children()) and list(m.parameters())]


@pytest.mark.parametrize('name', FAMILIES)
def test_hooks_see_every_item_in_every_module(name):
    model, x = family(name)
    with torch.no_grad():
        expected = model(x)
    seen = {}
    for label, module in model.named_modules():
        if label and not isinstance(module, (nn.ModuleList, CrossAttention)):
            module.register_forward_hook(
                lambda m, args, out, label=label: seen.setdefault(label, []).append((args, out))
            )
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    for label, calls in seen.items():
        for args, out in calls:
            tensors = [t for t in (*args, out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            assert {t.shape[0] for t in tensors} <= {3}, label
    missed = {label for label, m in model.named_modules() if m in leaves(model)} - set(seen)
    assert not missed


@pytest.mark.parametrize('name', FAMILIES)
def test_a_hook_sees_the_same_with_and_without_gradients(name):
    """On each module alone: shapes of what it takes and gives, in a GLOM of every call that has a gradient."""
    model, x = family(name)
    seen = []

    def record(module, args, out):
        seen.append([tuple(t.shape) for t in (*args, out) if isinstance(t, torch.Tensor)])

    for label, module in model.named_modules():
        if not label or isinstance(module, (nn.ModuleList, nn.Dropout)):
            continue
        handle = module.register_forward_hook(record)
        seen.clear()
        model(x)
        with_gradients = list(seen)
        seen.clear()
        with torch.no_grad():
            model(x)
        handle.remove()
        assert seen[: len(with_gradients)] == with_gradients, label
        assert len(seen) == len(with_gradients) or name == 'test_glom', label


@pytest.mark.parametrize('name', FAMILIES)
def test_hooks_on_linear_layers_give_every_item_its_own_gradient(name):
    """As tools for differential privacy have it: outer products of inputs and output gradients, summed over calls."""
    model, x = family(name)
    model, x = model.double(), x.double()
    layers = {label: m for label, m in model.named_modules() if isinstance(m, nn.Linear)}
    inputs, found = {label: [] for label in layers}, {}

    def backward(label, grad_output):
        outer = torch.einsum('b...i,b...o->boi', inputs[label].pop(), grad_output)
        found[label] = found.get(label, 0) + outer

    for label, layer in layers.items():
        layer.register_forward_hook(lambda m, args, out, label=label: inputs[label].append(args[0].detach()))
        layer.register_full_backward_hook(lambda m, gi, go, label=label: backward(label, go[0]))
    model(x).square().sum().backward()
    for i in range(3):
        alone = family(name)[0].double()
        alone(x[i : i + 1]).square().sum().backward()
        for label, layer in alone.named_modules():
            if label in layers:
                torch.testing.assert_close(found[label][i], layer.weight.grad)


@pytest.mark.parametrize('name', FAMILIES)
def test_gradients_of_each_item_by_vmap(name):
    model, x = family(name)
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def loss(parameters, item):
        return functional_call(model, (parameters, buffers), (item[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        expected = grad(loss)(parameters, x[i])
        for key, value in expected.items():
            torch.testing.assert_close(found[key][i], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
def test_forward_mode_is_right(name, frozen):
    model, x = family(name)
    model, x = model.double().requires_grad_(not frozen), x.double()
    v = torch.randn_like(x)
    with torch.no_grad():
        e = 1e-6
        expected = (model(x + e * v) - model(x - e * v)) / (2 * e)
    for context in (torch.no_grad(), torch.enable_grad()):
        with sdpa_kernel(SDPBackend.MATH), context, forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, v))).tangent
        torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-7)


def test_a_counter_of_operations_changes_nothing(monkeypatch):
    """It sets hooks on all modules of the process."""
    model, x = family('test_perceiver')
    routes, folded = [], CrossAttention._folded
    monkeypatch.setattr(CrossAttention, '_folded', lambda self, *args: routes.append(1) or folded(self, *args))
    model(x)
    expected = len(routes)
    with FlopCounterMode(display=False):
        model(x)
    assert expected and len(routes) == 2 * expected


def test_a_replaced_forward_is_called():
    """As Accelerate's hooks replace it, which bring weights from elsewhere."""
    attend = CrossAttention(16, 8, route='folded').eval()
    inputs = Inputs(torch.randn(2, 9, 8), [], None)
    assert attend.choose_route(4, inputs) == 'folded'
    forward, calls = attend.k.forward, []
    attend.k.forward = lambda x: calls.append(1) or forward(x)
    attend(torch.randn(1, 4, 16), inputs)
    assert calls


class Wrapped(torch.Tensor):
    """A tensor subclass, as quantised weights are."""


def test_weights_of_a_subclass_are_not_folded():
    attend = CrossAttention(16, 8, route='folded').eval()
    inputs = Inputs(torch.randn(2, 9, 8), [], None)
    q = torch.randn(1, 4, 16)
    expected = attend(q, inputs)
    attend.v.weight = nn.Parameter(attend.v.weight.detach().as_subclass(Wrapped))
    assert attend.choose_route(4, inputs) == 'plain'
    torch.testing.assert_close(attend(q, inputs).as_subclass(torch.Tensor), expected)


def test_parametrised_weights_are_not_folded():
    attend = CrossAttention(16, 8, route='folded').eval()
    parametrize.register_parametrization(attend.k, 'weight', nn.Identity())
    assert attend.choose_route(4, Inputs(torch.randn(2, 9, 8), [], None)) == 'plain'


def test_hooks_inside_count_and_removed_ones_do_not():
    block = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU()))
    assert may_shortcut(block)
    handle = block[1][0].register_forward_pre_hook(lambda module, args: None)
    assert not may_shortcut(block)
    assert not may_shortcut(nn.Linear(2, 2), block)
    handle.remove()
    assert may_shortcut(block)


def test_a_traced_graph_has_the_tokens_of_the_last_block():
    """timm's extractor of features by torch.fx, and without gradients."""
    model, x = family('test_ceit')
    extractor = timm.models.create_feature_extractor(model, [f'blocks.{len(model.blocks) - 1}'])
    with torch.no_grad():
        (tokens,) = extractor(x).values()
    assert tokens.shape[1] == 1 + model.patch_embed.num_patches


def test_shared_work_is_shared_without_hooks(monkeypatch):
    """Calls by their batch: the first queries of Perceivers, positions, and GLOM's first levels."""
    batches, forward = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: batches.append((self, x.shape[0])) or forward(self, x))
    for name in ('test_perceiver', 'test_perceiver learned', 'test_perceiver_io'):
        model, x = family(name)
        batches.clear()
        model(x)
        assert (model.cross_attends[0].attn.q, 1) in batches
        if name == 'test_perceiver_io':
            assert (model.decoder.attn.q, 1) in batches
        if name == 'test_perceiver learned':
            assert (model.stem.pos_proj, 1) in batches
    model, x = family('test_glom')
    batches.clear()
    model(x)
    assert (model.levels[-1].bottom_up.fc1, 1) in batches


def test_leff_fuses_without_hooks(monkeypatch):
    model, x = family('test_ceit')
    layered, forward = [], LeFF._layer_by_layer
    monkeypatch.setattr(LeFF, '_layer_by_layer', lambda self, *args: layered.append(self) or forward(self, *args))
    with torch.no_grad():
        model(x)
        assert not layered
        model.blocks[0].leff.act2.register_forward_hook(lambda *args: None)
        model(x)
    assert layered == [model.blocks[0].leff]
