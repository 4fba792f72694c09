"""What the kernels of `grid_query_attention` do on inputs and launches that the gates of all operations leave out."""

import math

import pytest
import torch
from gates import BY_NAME, check, kernel_dtype, limit

from timm_extra_kernels import _pieces, grid_query_attention
from timm_extra_kernels._cases import Case
from timm_extra_kernels._dispatch import arguments, unsupported
from timm_extra_kernels._launch import Tiles
from timm_extra_kernels._target import describe
from timm_extra_kernels.grid_query_attention import cases, eager, kernel, prepare
from timm_extra_kernels.grid_query_attention.naive import forward as naive
from timm_extra_kernels.grid_query_attention.tiles import CHANNELS, VALUES, config

SPEC = BY_NAME['grid_query_attention']
SMALL = Case('small', dict(B=2, H=2, M=5, c=3, S=(5, 3), F=4, D=6))
LAUNCHED = {f'_grid_query_{name}_kernel' for name in ('fwd', 'bwd_k', 'bwd_v', 'bwd_q')}


@pytest.fixture
def dtype(device):
    """The first that the kernels take here."""
    return kernel_dtype(SPEC, device)


def close(ours, exact, dtype):
    """Equal but for rounding of products and results to the dtype."""
    for a, b in zip(ours, exact, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 8 * max(torch.finfo(dtype).eps, 1e-6) * b.abs().max()


def with_gradients(function, k, v, content, axes, bias, mask=None):
    """The output for a mask, and the gradients of all inputs."""
    given = [t.detach().clone().requires_grad_() for t in (k, v, content, bias, *axes)]
    out = function(*given[:3], given[4:], bias=given[3], scale=0.3, mask=mask)
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    return out, *torch.autograd.grad(out, given, grad.to(out.dtype))


def exactly(k, v, content, axes, bias, scale, mask):
    """The naive form in float64, of the same keys."""
    wide = [t.double() for t in axes]
    return naive(*prepare(k.double(), v.double(), content.double(), wide, bias.double(), scale, 1e-5, mask))


@pytest.mark.parametrize('value', [0.0, math.nan])
def test_keys_that_take_no_part_have_no_influence(value, dtype, device, launches):
    """By the mask, whatever they hold, and by a bias of −inf; an item or a head without keys gives zeros."""
    k, v, content, axes, bias, *_ = cases.inputs(SMALL, dtype, device)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5], device=device)
    bias[0, 0, 0], bias[0, 1] = -math.inf, -math.inf
    k, v = (t.masked_fill(~mask[:, None, :, None], value) for t in (k, v))
    ours = with_gradients(grid_query_attention, k, v, content, axes, bias, mask)
    close(ours, with_gradients(exactly, k, v, content, axes, bias, mask), dtype)
    out, of_k, of_v, _, of_bias, *_ = ours
    assert not out[1].any() and not out[0, 1].any() and out[0, 0].any()
    for gradient in (of_k, of_v, of_bias):
        assert not gradient[1].any() and not gradient[0, 1].any() and not gradient[0, 0, [0, 1, 4]].any()
    assert set(launches) == LAUNCHED


def test_the_log_sum_exp_is_that_of_the_eager_form(dtype, device, launches):
    args = list(cases.inputs(SMALL, dtype, device))
    args[4][0, 1] = -1e20
    (_, ours), (_, theirs) = SPEC.operator(*args), eager.forward(*args)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.isposinf(ours[0, 1]).all() and launches == ['_grid_query_fwd_kernel']


@pytest.mark.parametrize('processors', [1, 64])
def test_splits_of_the_loops(processors, dtype, device, launches, guarded, monkeypatch):
    """One program walks over all positions, or every block of them has its own."""
    monkeypatch.setattr(_pieces, '_processors', lambda device: processors)
    sizes = dict(B=1, H=2, M=19, c=3, S=(3, 41), F=4, D=6)
    check(SPEC, Case('long', sizes), dtype, device, guarded)
    assert set(launches) == LAUNCHED


@pytest.mark.parametrize(
    'tiles',
    [Tiles((64,), 16, 16, 1, 4), Tiles((32, 16, 16), 32, 16, 1, 4), Tiles((64, 32), 16, 32, 1, 8)],
    ids=['one piece', 'three pieces', 'pieces beyond the channels'],
)
def test_values_in_pieces(tiles, dtype, device, launches, guarded, monkeypatch):
    monkeypatch.setattr(kernel, 'config', lambda *args: tiles)
    check(SPEC, Case('pieces', dict(B=2, M=35, c=17, S=(5, 11), F=4, D=51)), dtype, device, guarded)
    assert set(launches) == LAUNCHED


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_an_offset_costs_no_digits_of_16_bits(dtype, device, launches):
    def shifted(t):
        return t + 30

    k, v, content, axes, *rest = cases.inputs(SMALL, dtype, device)
    moved = Case('moved', SMALL.sizes)
    given = (k, v, shifted(content), list(map(shifted, axes)), *rest)

    class Moved:
        """The operation on these inputs."""

        operator, naive, outputs = SPEC.operator, SPEC.naive, SPEC.outputs

        def inputs(self, *_):
            return given

    check(Moved(), moved, dtype, device, lambda t: t)
    assert set(launches) == LAUNCHED


@pytest.mark.parametrize('change', [dict(content=torch.float32), dict(axes=torch.float32, bias=torch.float32)])
def test_dtypes_may_differ(change, device, launches):
    """Tables and biases may be finer; where content is, products are in float32."""
    names = 'k', 'v', 'content', 'axes', 'bias', 'scale', 'eps'
    given = dict(zip(names, cases.inputs(SMALL, torch.bfloat16, device), strict=True))
    for name, dtype in change.items():
        value = given[name]
        given[name] = [t.to(dtype) for t in value] if name == 'axes' else value.to(dtype)
    args = list(given.values())
    if (reason := limit(SPEC, 'forward', args)) is not None:
        pytest.skip(reason)
    k, v, content, axes, bias, *_ = args
    ours = with_gradients(grid_query_attention, k, v, content, axes, bias)
    close(ours, with_gradients(exactly, k, v, content, axes, bias), torch.bfloat16)
    assert [t.dtype for t in ours] == [t.dtype for t in (v, k, v, content, bias, *axes)]
    assert set(launches) == LAUNCHED


def test_strides_of_any_order(dtype, device, launches):
    args = cases.inputs(SMALL, dtype, device)
    k, v, content, axes, bias, *_ = args
    expected = with_gradients(grid_query_attention, k, v, content, axes, bias)
    k, v, bias = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v, bias))
    content, axes = content.to(memory_format=torch.channels_last), [t.T.contiguous().T for t in axes]
    for a, b in zip(with_gradients(grid_query_attention, k, v, content, axes, bias), expected, strict=True):
        assert torch.equal(a, b)
    assert set(launches) == LAUNCHED


def test_large_scores_do_not_overflow(dtype, device, launches):
    k, v, content, axes, bias, *_ = cases.inputs(SMALL, dtype, device)
    close(
        with_gradients(grid_query_attention, 200 * k, v, content, axes, bias)[:1],
        with_gradients(exactly, 200 * k, v, content, axes, bias)[:1],
        dtype,
    )
    assert launches


@pytest.mark.parametrize('common', [1e4, -1e18])
def test_a_bias_that_all_keys_have_changes_nothing(common, dtype, device, launches):
    k, v, content, axes, bias, *_ = cases.inputs(SMALL, dtype, device)
    wide = torch.zeros_like(bias, dtype=torch.float32)
    found = [with_gradients(grid_query_attention, k, v, content, axes, b) for b in (wide, wide + common)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert set(launches) == LAUNCHED


@pytest.mark.parametrize('wanted, not_launched', [('k', 'bwd_q'), ('content', 'bwd_v')])
def test_gradients_that_are_not_needed_are_left_out(wanted, not_launched, dtype, device, launches):
    k, v, content, axes, bias, *_ = cases.inputs(SMALL, dtype, device)
    found = []
    for function in (grid_query_attention, exactly):
        given = dict(k=k.clone(), v=v, content=content.clone(), axes=axes, bias=bias)
        leaf = given[wanted].requires_grad_()
        found.append(torch.autograd.grad(function(**given, scale=0.3, mask=None).square().sum(), leaf))
    close(*found, dtype)
    assert set(launches) == LAUNCHED - {f'_grid_query_{not_launched}_kernel'}


@pytest.mark.parametrize(
    'sizes, direction, reason',
    [
        (dict(c=CHANNELS + 1), 'forward', '129 content channels are more than 128'),
        (dict(D=VALUES + 1), 'forward', '513 channels of values are more than 512'),
        (
            dict(S=(1 << 22,), M=17),
            'forward',
            'the tables of 1 × 4194304 positions and 128 keys have more than',
        ),
        (dict(S=(2048, 2048), M=512), 'backward', 'gradients of 2048 × 2048 positions and 1024 keys take more than'),
    ],
)
def test_what_the_kernels_cannot_do_is_named(sizes, direction, reason):
    case = Case('', {**SMALL.sizes, 'B': 1, **sizes})
    args = cases.inputs(case, torch.bfloat16, torch.device('meta'))
    if direction == 'backward':
        assert limit(SPEC, 'forward', args) is None
        outs = SPEC.package.OPERATORS.fake(*args)
        args = SPEC.backward_args(outs[0], args, outs)
    named = dict(zip(arguments(getattr(eager, direction)), args, strict=True))
    assert unsupported(SPEC.limits, named).startswith(reason)


@pytest.mark.parametrize('target', ['sm_80', 'sm_86', 'sm_90', 'sm_100', 'gfx942'])
@pytest.mark.parametrize('name', ['fwd', 'bwd_q', 'bwd_k', 'bwd_v'])
def test_tiles_hold_all_that_the_limits_allow(name, target):
    for values in range(16, VALUES + 1, 16):
        for channels in (0, 16, 32, 64, CHANNELS):
            tiles = config(name, describe(target), values, channels)
            assert sum(tiles.widths) >= values and tiles.rows >= 16 and tiles.keys >= 16
