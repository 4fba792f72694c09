import copy

import pytest
import torch
from torch import nn

from timm_extra.layers import checkpoint
from timm_extra.models.ceit import LeFF
from timm_extra.models.ceit import leff as leff_module

GRIDS = [(14, 14), (7, 9), (1, 1), (1, 5), (3, 2)]


def nchw_leff(leff: LeFF, tokens: torch.Tensor, grid) -> torch.Tensor:
    """The same layers as three convolutions on contiguous NCHW maps."""
    B, _, C = tokens.shape
    x = tokens.transpose(1, 2).reshape(B, C, *grid).contiguous()
    x = leff.act1(leff.bn1(nn.functional.conv2d(x, leff.fc1.weight[:, :, None, None], leff.fc1.bias)))
    x = leff.act2(leff.bn2(leff.conv(x)))
    x = leff.act3(leff.bn3(nn.functional.conv2d(x, leff.fc2.weight[:, :, None, None], leff.fc2.bias)))
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('use_bn, out_act', [(True, False), (True, True), (False, False)])
def test_equals_the_convolutional_form(grid, kernel_size, use_bn, out_act):
    leff = LeFF(6, 20, kernel_size, use_bn, out_act).eval()
    for bn in (leff.bn1, leff.bn2, leff.bn3):
        if use_bn:
            nn.init.uniform_(bn.running_mean, -1, 1)
            nn.init.uniform_(bn.running_var, 0.5, 2)
    x = torch.randn(3, grid[0] * grid[1], 6)
    torch.testing.assert_close(leff(x, grid), nchw_leff(leff, x, grid), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('grid', [(7, 9), (1, 5)])
def test_training_gradients_and_statistics_equal_the_convolutional_form(grid):
    x = torch.randn(3, grid[0] * grid[1], 6, dtype=torch.float64, requires_grad=True)
    results = []
    for form in (lambda m: m(x, grid), lambda m: nchw_leff(m, x, grid)):
        torch.manual_seed(0)
        leff = LeFF(6, 20).double()
        grads = torch.autograd.grad(form(leff).square().sum(), [x, *leff.parameters()])
        results.append((grads, list(leff.buffers())))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize('out_act', [True, False])
def test_fusing_keeps_the_result(out_act):
    leff = LeFF(6, 20, out_act=out_act)
    x = torch.randn(4, 12, 6)
    leff(x * 3 + 1, (3, 4))  # statistics other than the initial ones
    leff.eval()
    before = leff(x, (3, 4))
    fused = leff.fuse()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert all(p.requires_grad for p in fused.parameters())
    torch.testing.assert_close(fused(x, (3, 4)), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.fuse()(x, (3, 4)), before, rtol=1e-5, atol=1e-5)


def test_no_images_give_no_tokens():
    assert LeFF(6, 20).eval()(torch.randn(0, 12, 6), (3, 4)).shape == (0, 12, 6)


def test_hidden_channels_that_are_none_are_named():
    with pytest.raises(ValueError, match='got 0'):
        LeFF(6, 0)


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('training', [True, False])
def test_fusing_folds_running_statistics_in_any_mode(training, affine):
    leff = LeFF(6, 20)
    if not affine:
        leff.bn1, leff.bn2, leff.bn3 = (nn.BatchNorm2d(c, affine=False) for c in (20, 20, 6))
    x = torch.randn(4, 12, 6)
    leff(x * 3 + 1, (3, 4))  # statistics other than the initial ones
    before = leff.eval()(x, (3, 4))
    fused = leff.train(training).fuse()
    assert fused.training == training
    torch.testing.assert_close(fused.eval()(x, (3, 4)), before, rtol=1e-5, atol=1e-5)


def test_fused_parameters_are_frozen_where_they_were():
    leff = LeFF(6, 20)
    leff.fc1.requires_grad_(False)
    leff.conv.weight.requires_grad_(False)
    frozen = {name for name, p in leff.named_parameters() if not p.requires_grad}
    assert {name for name, p in leff.fuse().named_parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(6, track_running_stats=False), nn.GroupNorm(2, 6)])
def test_norms_without_running_statistics_are_not_fused(norm):
    leff = LeFF(6, 20)
    leff.bn3 = norm
    with pytest.raises(ValueError, match=rf'^LeFF\.bn3, a {type(norm).__name__}, has no running statistics to fold$'):
        leff.fuse()
    assert isinstance(leff.bn1, nn.BatchNorm2d), 'all or nothing'


@pytest.mark.parametrize('kernel_size', [0, 2, -1])
def test_even_kernels_are_named(kernel_size):
    with pytest.raises(ValueError, match=str(kernel_size)):
        LeFF(6, 20, kernel_size)


@pytest.fixture
def calls(monkeypatch):
    """Make LeFF take its operations wherever it can, as on a GPU, and note them."""
    called = []
    monkeypatch.setattr(leff_module, '_fusing_pays', lambda x, fused: True)

    def noted(function):
        def call(*args, **kwargs):
            called.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for function in (leff_module.leff_depthwise, leff_module.leff_depthwise_train):
        monkeypatch.setattr(leff_module, function.__name__, noted(function))
    return called


def pair(**kwargs):
    """Twice the same LeFF, statistics and affines as after some training; the second goes layer by layer."""
    leff = LeFF(6, 20, **kwargs).double()
    for bn in (leff.bn1, leff.bn2):
        for tensor, low in ((bn.running_mean, -1), (bn.running_var, 0.5), (bn.weight, 0.5), (bn.bias, -1)):
            nn.init.uniform_(tensor, low, 2)
    plain = copy.deepcopy(leff)
    plain.act1.register_forward_hook(lambda *args: None)
    return leff, plain


def run(leff, grid=(3, 4), B=2):
    """Output, gradients and buffers."""
    x = torch.randn(B, grid[0] * grid[1], 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    y = leff(x, grid)
    return y, torch.autograd.grad(y.cos().sum(), [x, *leff.parameters()]), list(leff.buffers())


@pytest.mark.parametrize('momentum', [0.1, 1.0, 0.0, None])
def test_training_operation_equals_the_layers(calls, momentum):
    leff, plain = pair()
    for bn in (*(m for m in leff.modules() if isinstance(m, nn.BatchNorm2d)), plain.bn1, plain.bn2, plain.bn3):
        bn.momentum = momentum
    for _ in range(3):  # statistics accumulate
        torch.testing.assert_close(run(leff), run(plain))
    assert calls == ['leff_depthwise_train'] * 3
    assert leff.bn1.num_batches_tracked == 3


def test_frozen_norms_take_the_operation_of_evaluation(calls):
    leff, plain = pair()
    for m in (leff, plain):
        m.bn1.eval()
        m.bn2.eval()
    torch.testing.assert_close(run(leff), run(plain))
    assert calls == ['leff_depthwise']


def test_evaluation_and_fused_operation_equal_the_layers(calls):
    leff, plain = pair()
    torch.testing.assert_close(run(leff.eval()), run(plain.eval()))
    torch.testing.assert_close(run(leff.fuse())[0], run(plain)[0])
    assert calls == ['leff_depthwise'] * 2


def without_statistics(leff):
    leff.bn1 = nn.BatchNorm2d(20, track_running_stats=False, dtype=torch.float64)
    leff.bn1.eval()


@pytest.mark.parametrize(
    'change',
    [
        lambda m: m.bn1.eval(),
        lambda m: setattr(m.bn2, 'eps', 1e-3),
        lambda m: setattr(m, 'act2', nn.ReLU()),
        lambda m: setattr(m, 'act1', nn.GELU('tanh')),
        lambda m: setattr(m, 'bn1', nn.SyncBatchNorm(20, dtype=torch.float64).eval()),
        lambda m: setattr(m, 'bn2', nn.BatchNorm2d(20, affine=False, dtype=torch.float64)),
        lambda m: setattr(m.conv, 'padding_mode', 'circular'),
        lambda m: nn.utils.parametrizations.weight_norm(m.conv),
        without_statistics,
    ],
)
def test_unusual_layers_are_called(calls, change):
    leff, plain = pair()
    for m in (leff, plain):
        change(m)
    torch.testing.assert_close(run(leff)[0], run(plain)[0])
    assert not calls


@pytest.mark.parametrize('name', ['fc1', 'bn1', 'act1', 'conv', 'bn2', 'act2'])
@pytest.mark.parametrize('fused', [False, True])
def test_hooks_are_heard_and_what_they_got_is_left_alone(name, fused):
    leff, seen = LeFF(6, 20).eval(), []
    if fused:
        leff.fuse()
    getattr(leff, name).register_forward_hook(lambda module, args, out: seen.extend((out, out.clone())))
    with torch.no_grad():
        leff(torch.randn(2, 12, 6), (3, 4))
    given, copied = seen
    assert torch.equal(given, copied)


def test_inputs_are_left_alone():
    for leff in (LeFF(6, 20).eval(), LeFF(6, 20).eval().fuse(), LeFF(6, 20, use_bn=False)):
        x = torch.randn(2, 12, 6)
        before = x.clone()
        with torch.no_grad():
            y = leff(x, (3, 4))
        assert torch.equal(x, before)
        torch.testing.assert_close(y, leff(x, (3, 4)), rtol=1e-5, atol=1e-6)  # with gradients nothing is overwritten


def test_one_value_per_channel_is_refused_as_batchnorm_does(calls):
    for leff in pair():
        with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
            run(leff, (1, 1), 1)


def test_checkpointing_counts_each_batch_once(calls):
    leff, plain = pair()
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    grads = []
    for m in (leff, plain):
        y = checkpoint(m, x, (3, 4)) if m is leff else m(x, (3, 4))
        grads.append(torch.autograd.grad(y.cos().sum(), list(m.parameters())))
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(list(leff.buffers()), list(plain.buffers()))
    assert calls == ['leff_depthwise_train'] * 2


@pytest.mark.parametrize('train', [True, False])
def test_operations_compile_whole(monkeypatch, train):
    monkeypatch.setattr(leff_module, '_fusing_pays', lambda x, fused: True)
    leff, plain = pair()
    compiled = torch.compile(leff.train(train), fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    torch.testing.assert_close(compiled(x, (3, 4)), plain.train(train)(x, (3, 4)))
    torch.testing.assert_close(list(leff.buffers()), list(plain.buffers()))


def test_checkpointed_operations_compile(monkeypatch):
    monkeypatch.setattr(leff_module, '_fusing_pays', lambda x, fused: True)
    leff, plain = pair()
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    compiled = torch.compile(lambda x: checkpoint(leff, x, (3, 4)), backend='aot_eager')
    results = []
    for m, y in ((leff, compiled(x)), (plain, plain(x, (3, 4)))):
        results.append((torch.autograd.grad(y.cos().sum(), list(m.parameters())), list(m.buffers())))
    torch.testing.assert_close(results[0], results[1])


def test_evaluation_on_a_cpu_takes_the_operation_without_gradients_only(monkeypatch):
    called = []
    monkeypatch.setattr(
        leff_module, 'leff_depthwise', lambda x, *args, **kwargs: called.append(torch.is_grad_enabled()) or x
    )
    leff, x = LeFF(6, 20).eval(), torch.randn(2, 12, 6)
    leff(x, (3, 4))
    with torch.no_grad():
        leff(x, (3, 4))
    assert called == [False]


def test_transforms_of_torch_func(calls):
    leff, plain = pair()
    x = torch.randn(3, 2, 12, 6, dtype=torch.float64)
    leff.eval(), plain.eval()
    torch.testing.assert_close(
        torch.func.vmap(lambda x: leff(x, (3, 4)))(x), torch.stack([plain(i, (3, 4)) for i in x])
    )


@pytest.mark.parametrize('layer', ['fc1', 'conv'])
@pytest.mark.parametrize('wrap', [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_layers_without_a_plain_weight_are_refused_whole(layer, wrap):
    leff = LeFF(8, 16)
    wrap(getattr(leff, layer))
    with pytest.raises(ValueError, match=f'LeFF.{layer}, a Parametrized.*, has no plain weight'):
        leff.fuse()
    assert isinstance(leff.bn1, nn.BatchNorm2d)
