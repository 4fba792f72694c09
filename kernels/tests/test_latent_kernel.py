"""What the kernels of `latent_cross_attention` do on inputs and launches that the gates of all operations leave out."""

import pytest
import torch
from gates import BY_NAME, check, limit

from timm_extra_kernels import _pieces, latent_cross_attention
from timm_extra_kernels._cases import Case
from timm_extra_kernels._launch import Tiles, cover
from timm_extra_kernels._target import describe
from timm_extra_kernels.latent_cross_attention import cases, kernel
from timm_extra_kernels.latent_cross_attention.naive import forward as naive
from timm_extra_kernels.latent_cross_attention.tiles import config

SPEC = BY_NAME['latent_cross_attention']
SMALL = Case('small', dict(B=2, M=5, C=21, N=50))


@pytest.fixture
def in_float32(device):
    """The kernels take float32, as in the interpreter; GPUs leave it to PyTorch."""
    if (reason := limit(SPEC, 'forward', cases.inputs(SMALL, torch.float32, device))) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('needs', ['q', 'x'])
def test_an_item_without_inputs_gives_zeros(needs, shared, device, in_float32, launches, guarded):
    q, x, scale, eps, _ = cases.inputs(SMALL, torch.float32, device)
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
    mask[1], mask[0, ::3] = False, False
    q, x, mask = guarded(q[:1] if shared else q), guarded(x), guarded(mask)
    wanted = {'q': q, 'x': x}[needs].requires_grad_()
    out = latent_cross_attention(q, x, scale=scale, mask=mask)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    (grad,) = torch.autograd.grad(out.square().sum(), wanted)
    expected = naive(q, x, scale, eps, mask)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), wanted)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert ('_latent_attention_bwd_x_kernel' in launches) == (needs == 'x')
    _, lse = torch.ops.timm_extra.latent_cross_attention(q, x, scale, eps, mask)
    assert torch.isposinf(lse[1]).all() and lse[0].isfinite().all()


@pytest.mark.parametrize('eps', [1e-5, None])
@pytest.mark.parametrize('processors', [1, 64])
def test_splits_of_the_loops(processors, eps, device, in_float32, launches, guarded, monkeypatch):
    """One program does it all, or every step has its own: over keys forward and for q, over rows for x."""
    monkeypatch.setattr(_pieces, '_processors', lambda device: processors)
    check(SPEC, Case('long', dict(B=1, Q=1, H=2, M=41, C=19, N=150, eps=eps)), torch.float32, device, guarded)
    assert ('_latent_combine_fwd_kernel' in launches) == (processors > 1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'tiles',
    [
        Tiles((64,), 16, 16, 1, 4),
        Tiles((64, 32), 16, 16, 1, 8),
        Tiles((32, 16, 16), 32, 16, 1, 4),
    ],
    ids=['one piece', 'pieces beyond the channels', 'three pieces'],
)
def test_channels_in_pieces(tiles, dtype, device, launches, guarded, monkeypatch, request):
    if dtype == torch.float32:
        request.getfixturevalue('in_float32')
    monkeypatch.setattr(kernel, 'config', lambda *args: tiles)
    check(SPEC, Case('pieces', dict(B=2, M=5, C=51, N=37, mask=True)), dtype, device, guarded)


@pytest.mark.parametrize('q_dtype, x_dtype', [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_dtypes_may_differ(q_dtype, x_dtype, device, launches, guarded, request):
    """As under autocast, with inputs that are kept in float32: products are those of the dtype of q."""
    if q_dtype == torch.float32:
        request.getfixturevalue('in_float32')
    q, x, scale, eps, _ = cases.inputs(SMALL, torch.float32, device)
    q, x = guarded(q.to(q_dtype)).requires_grad_(), guarded(x.to(x_dtype)).requires_grad_()
    out = latent_cross_attention(q, x, scale=scale)
    assert out.dtype == q_dtype
    exact = naive(q.double(), x.double(), scale, eps, None)
    eps = torch.finfo(q_dtype).eps
    assert (out - exact).abs().max() <= 4 * eps * exact.abs().max()
    given = torch.autograd.grad(out.float().square().sum(), (q, x))
    for grad, theirs in zip(given, torch.autograd.grad(exact.square().sum(), (q, x)), strict=True):
        assert grad.dtype == theirs.dtype
        worst = 4 * max(eps, torch.finfo(grad.dtype).eps) * theirs.abs().max()
        assert (grad.double() - theirs.double()).abs().max() <= worst
    assert launches


def test_strides_of_any_order(device, in_float32, launches):
    q, x, scale, eps, _ = cases.inputs(SMALL, torch.float32, device)
    expected = latent_cross_attention(q, x, scale=scale)
    x = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    q = q.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (x, x.clone()[:1].expand(2, -1, -1)):
        for e in (eps, None):
            torch.testing.assert_close(
                latent_cross_attention(q, other, scale=scale, eps=e), naive(q, other, scale, e, None)
            )
    assert torch.equal(latent_cross_attention(q, x, scale=scale), expected)
    assert launches


def test_an_offset_costs_no_digits(device, in_float32, launches):
    q, x, scale, eps, _ = cases.inputs(SMALL, torch.float32, device)
    x = x + 100
    exact = naive(q.double(), x.double(), scale, eps, None)
    error = (naive(q, x, scale, eps, None) - exact).abs().max()
    assert (latent_cross_attention(q, x, scale=scale) - exact).abs().max() <= 2 * error
    assert launches


@pytest.mark.parametrize('increasing', [False, True])
def test_scores_that_grow_from_tile_to_tile(increasing, device, in_float32, launches):
    x = torch.linspace(0, 400, 64) if increasing else torch.linspace(400, 0, 64)
    x = torch.stack([x, torch.linspace(-1, 1, 64)], -1)[None].to(device)
    q = torch.ones(1, 1, 20, 2, device=device)
    expected = naive(q.double(), x.double(), 1.0, None, None).float()
    torch.testing.assert_close(latent_cross_attention(q, x, scale=1.0, eps=None), expected, rtol=1e-5, atol=1e-4)
    assert launches


def test_nan_stays_where_it_is(device, in_float32, launches):
    q, x, scale, *_ = cases.inputs(SMALL, torch.float32, device)
    x[1, 7, 3] = float('nan')
    q[0, 0, 2, 1] = float('inf')
    out = latent_cross_attention(q, x, scale=scale)
    assert out[1].isnan().all()
    assert torch.equal(out[0, 0].isnan().any(-1), torch.arange(5, device=device) == 2)
    assert launches


NAMES = ['sm_80', 'sm_86', 'sm_87', 'sm_89', 'sm_90', 'sm_100', 'sm_103', 'sm_110', 'sm_120', 'sm_121']
NAMES += ['gfx90a', 'gfx942', 'gfx950', 'sm_150', 'gfx955', 'interpreter']


@pytest.mark.parametrize('name', NAMES)
def test_every_size_has_tiles_that_fit(name):
    """What is read of x̂ and of the queries at once is part of what a block may hold."""
    target = describe(name)
    for kernel_name in ('fwd', 'bwd_q', 'bwd_x'):
        for CP in range(16, (1024 if kernel_name == 'fwd' else 512) + 1, 16):
            tiles = config(kernel_name, target, CP)
            assert sum(tiles.widths) >= CP
            assert all(width & (width - 1) == 0 and 16 <= width <= 256 for width in tiles.widths)
            assert kernel.KEYS % tiles.keys == 0
            if target.unit in ('wgmma', 'tcgen05', 'mma.sync'):
                assert tiles.keys * CP * 2 <= target.shared * 1024


@pytest.mark.parametrize(
    'name, unit, shared',
    [
        ('sm_80', 'mma.sync', 163),
        ('sm_86', 'mma.sync', 99),
        ('sm_120', 'mma.sync', 99),
        ('sm_103', 'tcgen05', 227),
        ('sm_150', 'mma.sync', 99),
        ('gfx950', 'mfma', 160),
        ('gfx1100', '', 64),
    ],
)
def test_targets_are_described_by_what_they_have(name, unit, shared):
    assert describe(name)[1:3] == (unit, shared)


@pytest.mark.parametrize(
    'name, C, dtype, expected',
    [
        ('sm_90', 261, torch.bfloat16, None),
        ('gfx90a', 261, torch.float16, None),
        ('sm_120', 1024, torch.bfloat16, None),
        ('sm_90', 261, torch.float32, 'products in float32 take PyTorch less work'),
        ('gfx942', 261, torch.float32, 'products in float32 take PyTorch less work'),
        ('gfx1100', 261, torch.bfloat16, 'gfx1100 has no matrix cores that the kernels use'),
        ('sm_90', 1025, torch.bfloat16, '1025 channels are more than 1024'),
    ],
)
def test_what_takes_pytorch_is_named(name, C, dtype, expected, monkeypatch):
    monkeypatch.setattr(SPEC.package, 'target', lambda device: name)
    args = cases.inputs(Case('meta', dict(B=2, M=32, C=C, N=640)), dtype, torch.device('meta'))
    assert limit(SPEC, 'forward', args) == expected


def test_gradients_of_many_channels_take_pytorch(device, in_float32, launches, guarded):
    check(SPEC, Case('wide', dict(B=1, M=3, C=530, N=21)), torch.float32, device, guarded)
    assert '_latent_attention_fwd_kernel' in launches
    assert not [name for name in launches if 'bwd' in name]


@pytest.mark.parametrize(
    'channels, smallest, expected',
    [(16, 16, (16,)), (272, 16, (256, 16)), (336, 16, (256, 64, 16)), (272, 64, (256, 64)), (464, 16, (256, 256))],
)
def test_pieces_cover_the_channels(channels, smallest, expected):
    assert cover(channels, smallest) == expected


def test_more_channels_than_kernels_hold(device, launches):
    q, x = torch.zeros(1, 1, 2, 1025, device=device), torch.zeros(1, 3, 1025, device=device)
    latent_cross_attention(q, x, scale=1.0)
    assert not launches


@pytest.mark.parametrize('eps, Q, C, N', [(1e-5, 2, 21, 50), (None, 1, 21, 50), (1e-5, 1, 32, 128), (None, 2, 32, 128)])
def test_masked_inputs_have_no_influence(eps, Q, C, N, device, in_float32, launches):
    """NaN or not, in kernels; the eager form is tested beside the other attention."""
    q, x, scale, *_ = cases.inputs(Case('masked', dict(B=2, Q=Q, M=5, C=C, N=N)), torch.float32, device)
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
    mask[0, 3], mask[1, ::2] = False, False
    found, other = (
        with_gradients(q, x.masked_fill(~mask[..., None], value), scale, eps, mask) for value in (0.0, float('nan'))
    )
    assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    assert not found[2][~mask].any() and not found[0].isnan().any()
    assert launches


def test_a_query_of_nan_leaves_masked_inputs_alone(device, in_float32, launches):
    q, x, scale, eps, _ = cases.inputs(SMALL, torch.float32, device)
    q[0, 0, 2] = float('nan')
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
    mask[0, 3] = False
    *_, grad = with_gradients(q, x, scale, eps, mask)
    assert grad[0, 4].isnan().all() and not grad[0, 3].any()
    assert launches


def with_gradients(q, x, scale, eps, mask):
    """The output and the gradients of q and x."""
    q, x = q.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    out = latent_cross_attention(q, x, scale=scale, eps=eps, mask=mask)
    return out.detach(), *torch.autograd.grad(out.square().sum(), (q, x))
