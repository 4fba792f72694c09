"""BYOL and SimSiam against the papers' formulas, and what they promise of any model."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d
from torch import nn

import timm_extra  # noqa: F401
from timm_extra.pretrain.tasks import BYOL, METHODS, Encoder, SimSiam, without_batchnorm

SMALL = dict(
    byol=dict(projection_size=16, projection_hidden_size=32),
    simsiam=dict(projection_size=32, prediction_hidden_size=16),
)
SIZE = (3, 32, 32)


def model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=0, **kwargs)


def make(method, net=None, **kwargs):
    net = model() if net is None else net
    return dict(byol=BYOL, simsiam=SimSiam)[method](net, **{**SMALL[method], 'input_size': SIZE, **kwargs})


def views(n=6, dtype=torch.float64, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(n, *size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def norm(x, layer):
    """Batch norm, in its formula."""
    out = (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt()
    return out if layer.weight is None else out * layer.weight + layer.bias


def linear(x, layer):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def byol_head(x, head):
    """Linear, batch norm, ReLU, linear."""
    return linear(norm(linear(x, head[0]), head[1]).clamp(min=0), head[3])


def simsiam_projector(x, head):
    x = norm(linear(x, head[0]), head[1]).clamp(min=0)
    x = norm(linear(x, head[3]), head[4]).clamp(min=0)
    return norm(linear(x, head[6]), head[7])


def unit(x):
    return x / x.square().sum(1, keepdim=True).sqrt()


def gradients(loss, module):
    return torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True)


def compare(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize('use_momentum', [True, False])
def test_byol_is_the_papers_formula(use_momentum):
    task = make('byol', model().double(), use_momentum=use_momentum)
    if use_momentum:  # a target of its own
        with torch.no_grad():
            for p in task.target.parameters():
                p.add_(0.1 * torch.randn_like(p))
    net = copy.deepcopy(task.trainable_module)
    target = copy.deepcopy(task.target) if use_momentum else None
    v1, v2 = views()

    def project(encoder, projector, x):
        features = encoder.model.forward_head(encoder.model.forward_features(x), pre_logits=True)
        return byol_head(features, projector)

    z1, z2 = (project(net.encoder, net.projector, v) for v in (v1, v2))
    q1, q2 = (byol_head(z, net.predictor) for z in (z1, z2))
    if use_momentum:
        t1, t2 = (project(target['encoder'], target['projector'], v).detach() for v in (v1, v2))
    else:
        t1, t2 = z1.detach(), z2.detach()
    expected = ((unit(q1) - unit(t2)).square().sum(1) + (unit(q2) - unit(t1)).square().sum(1)).mean()

    loss = task((v1, v2))['loss']
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    compare(gradients(loss, task.trainable_module), gradients(expected, net))


def test_simsiam_is_the_papers_formula():
    task = make('simsiam', model().double())
    net = copy.deepcopy(task.trainable_module)
    v1, v2 = views()
    z1, z2 = (simsiam_projector(net.encoder.model(v), net.projector) for v in (v1, v2))
    p1, p2 = (byol_head(z, net.predictor) for z in (z1, z2))
    expected = -((unit(p1) * unit(z2.detach())).sum(1).mean() + (unit(p2) * unit(z1.detach())).sum(1).mean()) / 2
    loss = task((v1, v2))['loss']
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    compare(gradients(loss, task.trainable_module), gradients(expected, net))


def test_heads_are_those_published():
    task = BYOL(model(), input_size=SIZE)
    shapes = {k: tuple(v.shape) for k, v in task.trainable_module.projector.named_parameters()}
    assert shapes == {
        '0.weight': (4096, 96), '0.bias': (4096,), '1.weight': (4096,), '1.bias': (4096,), '3.weight': (256, 4096)
    }  # fmt: skip
    shapes = {
        k: tuple(v.shape) for k, v in SimSiam(model(), input_size=SIZE).trainable_module.predictor.named_parameters()
    }
    assert shapes == {
        '0.weight': (512, 2048), '1.weight': (512,), '1.bias': (512,), '3.weight': (2048, 512), '3.bias': (2048,)
    }  # fmt: skip


@pytest.mark.parametrize('step', [0, 1, 50, 99, 100])
def test_decay_follows_the_cosine(step):
    task = make('byol', decay=0.97, num_steps=100)
    assert task.decay_at(step) == 1 - (1 - 0.97) * (math.cos(math.pi * step / 100) + 1) / 2
    assert make('byol', decay=0.97).decay_at(step) == 0.97
    assert make('byol', decay=lambda k: k / 200).decay_at(step) == step / 200


def test_target_moves_by_the_decay_buffers_included():
    task = make('byol', decay=0.9, num_steps=10)
    task(views(dtype=torch.float32))['loss'].backward()
    with torch.no_grad():
        for p in task.trainable_module.parameters():
            p.add_(torch.randn_like(p))
    before = {k: v.clone() for k, v in task.target.state_dict().items()}
    online = task.trainable_module.state_dict()
    task.update_ema(step=4)
    tau = 1 - 0.1 * (math.cos(math.pi * 0.4) + 1) / 2
    moved = 0
    for name, after in task.target.state_dict().items():
        if after.is_floating_point():
            expected = tau * before[name] + (1 - tau) * online[name]
            torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-5)
            moved += 'running' in name
        else:
            assert torch.equal(after, online[name])
    assert moved
    with pytest.raises(ValueError, match='needs the step'):
        task.update_ema()


def test_every_view_has_its_own_batch_statistics():
    task = make('byol', use_momentum=False)
    v1, v2 = views(dtype=torch.float32)
    v2 = 5 * v2 + 3
    twin = copy.deepcopy(task.model).train()
    task((v1, v2))
    twin(v1)
    twin(v2)
    for (name, a), (_, b) in zip(task.model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_the_target_gets_no_gradient():
    task = make('byol')
    task(views(dtype=torch.float32))['loss'].backward()
    assert all(p.grad is None for p in task.target.parameters())
    assert all(p.grad is not None for p in task.trainable_module.parameters())


@pytest.mark.parametrize('method', ['byol', 'simsiam'])
def test_construction_changes_nothing_in_the_model(method):
    net = model().train()
    net.conv1.eval()
    before = copy.deepcopy(net.state_dict())
    modes = [m.training for m in net.modules()]
    task = make(method, net)
    assert task.model is net
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_hooks for m in net.modules())


FAMILIES = {
    'resnet18': {}, 'convnext_atto': {}, 'vit_tiny_patch16_224': dict(img_size=64),
    'deit_tiny_distilled_patch16_224': dict(img_size=64),
    'swin_tiny_patch4_window7_224': dict(img_size=64, window_size=4),
    'levit_128s': {}, 'hiera_tiny_224': {}, 'fastvit_t8': {}, 'efficientnet_b0': {}, 'mixer_s32_224': dict(img_size=64),
    'test_ceit': {}, 'test_perceiver_io': {},
}  # fmt: skip


@pytest.mark.parametrize('name', FAMILIES)
def test_any_family_takes_a_step(name):
    torch.manual_seed(0)
    net = timm.create_model(name, **FAMILIES[name])
    fixed = net.pretrained_cfg['input_size'][-1] if name in ('levit_128s', 'hiera_tiny_224', 'test_ceit') else 64
    task = make('byol', net, input_size=(3, fixed, fixed), num_steps=10).train()
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), 0.01)
    before = copy.deepcopy(net.state_dict())
    out = task(torch.rand(2, 3, fixed, fixed))
    assert out['output'].shape == (2, net.head_hidden_size)
    out['loss'].backward()
    optimizer.step()
    task.update_ema(0)
    assert out['loss'].isfinite()
    assert any(not torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    classifier = net.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    without = {id(p) for head in heads for p in head.parameters()}
    assert all(p.grad is not None for p in net.parameters() if id(p) not in without)


class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        h = self.body(x)
        return h, self.gate(h)


@pytest.mark.parametrize('hidden_layer', ['layer3', 'layer1.0.conv1', -2, -1])
def test_hidden_layers_by_name_and_index(hidden_layer):
    net = timm.create_model('test_resnet', num_classes=10).eval()
    heard = []
    layer = dict(net.named_modules()).get(hidden_layer) or (list(net.children())[-2] if hidden_layer == -2 else net)
    layer.register_forward_hook(lambda m, a, out: heard.append(out.flatten(1)))
    task = make('byol', net, hidden_layer=hidden_layer).eval()
    x = torch.rand(2, *SIZE)
    heard.clear()
    projection, embedding = task(x, return_embedding=True)
    assert torch.equal(embedding, heard[0])
    assert projection.shape == (2, 16)


def test_other_modules_than_timms():
    task = BYOL(Tuples(), hidden_layer='body', input_size=SIZE, **SMALL['byol'])
    assert task(torch.rand(4, *SIZE))['output'].shape == (4, 8)


def test_byol_and_simsiam_name_bad_arguments():
    with pytest.raises(ValueError, match=r'Tuples has no forward_features and no forward_head.*body, gate'):
        BYOL(Tuples(), input_size=SIZE)
    with pytest.raises(ValueError, match=r'gives a tuple, not a tensor.*body, gate'):
        BYOL(Tuples(), hidden_layer=-1, input_size=SIZE)
    with pytest.raises(ValueError, match=r"has no layer 'avgpool'; its layers are conv1, bn1"):
        make('byol', hidden_layer='avgpool')
    with pytest.raises(ValueError, match='`hidden_layer=40` is out of range'):
        make('byol', hidden_layer=40)
    with pytest.raises(ValueError, match='Tuples does not say the size of its inputs'):
        BYOL(Tuples(), hidden_layer='body')
    with pytest.raises(ValueError, match='Identity has no parameters'):
        SimSiam(nn.Identity(), hidden_layer=-1, input_size=SIZE)
    with pytest.raises(ValueError, match=r'decay must be between 0 and 1, got 1\.5'):
        make('byol', decay=1.5)
    with pytest.raises(ValueError, match="decay must be between 0 and 1, got 'x'"):
        make('byol', decay='x')
    with pytest.raises(ValueError, match="head_norm='group' needs multiples of 16, from 32 on, got 16"):
        make('byol', head_norm='group', projection_hidden_size=16)
    with pytest.raises(ValueError, match="head_norm must be one of batch, group, got 'layer'"):
        make('byol', head_norm='layer')
    for method, name, size in (
        ('byol', 'projection_size', 1.5),
        ('byol', 'projection_hidden_size', 0),
        ('simsiam', 'prediction_hidden_size', True),
    ):
        with pytest.raises(ValueError, match=f'sizes of heads must be positive integers, got {size!r}'):
            make(method, **{name: size})
    with pytest.raises(ValueError, match='one vector each'):
        make('byol', timm.create_model('test_resnet', num_classes=0, global_pool=''))
    with pytest.raises(ValueError, match='VisionTransformer does not take inputs of 3×32×32: '):
        make('byol', timm.create_model('vit_tiny_patch16_224', depth=1))
    with pytest.raises(ValueError, match='a batch of one image'):
        make('byol')(torch.rand(1, *SIZE))
    with pytest.raises(ValueError, match='got 3 tensors'):
        make('byol')([torch.rand(2, *SIZE)] * 3)


def test_views_of_ones_own():
    seen = []

    class Double(nn.Module):
        def forward(self, x):
            seen.append('module')
            return 2 * x

    def flip(x):
        seen.append('function')
        return x.flip(-1)

    task = make('simsiam', view1=Double(), view2=flip)
    x = torch.rand(4, *SIZE)
    torch.testing.assert_close(task(x)['loss'], task((2 * x, x.flip(-1)))['loss'])
    assert seen == ['module', 'function']
    seen.clear()
    make('simsiam', view1=flip)(x)
    assert seen == ['function', 'function']  # the second as the first


def test_std_shows_collapse():
    task = make('simsiam').train()
    x, y = views(32, torch.float32)
    assert 0.5 < task((x, y))['std'] < 1.1
    nn.init.zeros_(task.trainable_module.projector[6].weight)
    assert task((x, y))['std'] < 0.01


@pytest.mark.parametrize('method', ['byol', 'simsiam'])
def test_checkpoints_hold_everything_once(method):
    task = make(method)
    task(views(dtype=torch.float32))
    state = task.get_checkpoint_state()
    timm.create_model('test_resnet', num_classes=0).load_state_dict(state['state_dict'])
    other = make(method, model())
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    for (name, a), (_, b) in zip(task.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    held = list(_leaves(state))
    assert len({t.data_ptr() for t in held if t.numel()}) == sum(1 for t in held if t.numel())
    assert sum(t.numel() for t in held) == sum(t.numel() for t in task.state_dict().values())


def _leaves(state):
    for value in state.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


@pytest.mark.parametrize('method', ['byol', 'simsiam'])
def test_without_batch_statistics(method):
    net = without_batchnorm(model())
    heads = dict(prediction_hidden_size=32) if method == 'simsiam' else {}
    task = make(method, net, head_norm='group', **heads).train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.modules())
    task.double()
    x, y = views(4)
    whole = task.trainable_module(x)[0][2]
    single = torch.cat([task.trainable_module(part)[0][2] for part in x.split(1)])
    torch.testing.assert_close(whole, single, atol=1e-9, rtol=1e-7)  # no image sees another
    assert task((x[:1], y[:1]))['loss'].isfinite()
    with pytest.raises(ValueError, match='has no BatchNorm'):
        without_batchnorm(net)


def test_group_norm_keeps_weights_and_the_original():
    net = model()
    before = copy.deepcopy(net.state_dict())
    converted = without_batchnorm(net, groups=7)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    for name, weight in before.items():
        if 'running' not in name and 'num_batches' not in name:
            assert torch.equal(converted.state_dict()[name], weight), name
    assert converted(torch.rand(2, *SIZE)).shape == net(torch.rand(2, *SIZE)).shape
    for groups in (m for m in converted.modules() if isinstance(m, nn.GroupNorm)):
        assert groups.num_channels % groups.num_groups == 0


def test_convolutions_that_do_not_pad_with_zeros_stay():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect')
    )
    first, _, last = without_batchnorm(net)
    assert type(first) is ScaledStdConv2d and type(last) is nn.Conv2d and last.padding_mode == 'reflect'


def test_an_encoder_is_its_models_pre_logits():
    net = timm.create_model('vit_tiny_patch16_224', img_size=64).eval()
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(Encoder(net)(x), net.forward_head(net.forward_features(x), pre_logits=True))
    assert F.linear(Encoder(net)(x), net.head.weight, net.head.bias).allclose(net(x), atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('method', METHODS)
def test_views_are_made_in_full_precision_within_autocast(method, dtype):
    net = timm.create_model('test_glom', img_size=32, patch_size=8) if method == 'glom' else model()
    task = METHODS[method](net, input_size=SIZE)
    seen = []
    for view in task.views:
        view.register_forward_hook(lambda view, args, out: seen.append(getattr(out, 'images', out)))
    x = torch.rand(4, 3, 40, 40)
    for autocast in (True, False):
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype, enabled=autocast):
            assert task(x)['loss'].isfinite()
    within, without = seen[: len(task.views)], seen[len(task.views) :]
    for a, b in zip(within, without, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32
