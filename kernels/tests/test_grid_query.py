"""Attention of a grid's positions to keys against a dense reference in float64, forward and gradients."""

import math

import pytest
import torch
from gates import printed_by

from timm_extra_kernels import grid_query_attention
from timm_extra_kernels.grid_query_attention import eager

SHAPES = [(7,), (1,), (5, 3), (1, 11), (13, 17), (3, 5, 7), (1, 2, 1)]
FEATURES = (4, 3, 2)  # of the first, second and third axis


def dense(k, v, content, axes, bias, scale, eps, mask=None):
    """softmax(scale · x̂ kᵀ + bias) v with every matrix in full; zeros for items without keys."""
    sizes = content.shape[2:]
    parts = [content.movedim(1, -1)]
    for i, table in enumerate(axes):
        view = table[tuple(slice(None) if j == i else None for j in range(len(sizes)))]
        parts.append(view.expand(len(content), *sizes, -1))
    x = torch.cat(parts, -1).flatten(1, -2)  # (B or 1, N, C)
    if eps is not None:
        x = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    scores = torch.einsum('bnc,bhmc->bhnm', x.expand(len(k), -1, -1), k) * scale
    if bias is not None:
        scores = scores + bias[:, :, None]
    if mask is None:
        return scores.softmax(-1) @ v
    p = scores.masked_fill(~mask[:, None, None], -1e300).softmax(-1)
    return (p * mask.any(1)[:, None, None, None]) @ v


def inputs(spatial, heads=2, shared=False, dtype=torch.float64, offset=0.0, B=2, M=5, c=3, D=4):
    """k, v, content, bias and tables."""
    torch.manual_seed(0)
    axes = [torch.randn(s, f, dtype=dtype) + offset for s, f in zip(spatial, FEATURES, strict=False)]
    content = torch.randn(1 if shared else B, c, *spatial, dtype=dtype) + offset
    k = torch.randn(B, heads, M, c + sum(a.shape[1] for a in axes), dtype=dtype)
    v, bias = torch.randn(B, heads, M, D, dtype=dtype), torch.randn(B, heads, M, dtype=dtype)
    return [t.requires_grad_() for t in (k, v, content, bias, *axes)]


def some_mask(kind):
    if kind is None:
        return None
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    if kind == 'one item empty':
        mask[1] = False
    return mask


@pytest.fixture(params=['one tile', 'small tiles'])
def _tiles(request, monkeypatch):
    """Cut the work into many tiles, as large inputs are, or into one."""
    if request.param == 'small tiles':
        monkeypatch.setattr(eager, 'tile_budget', lambda device: 300)


@pytest.mark.usefixtures('_tiles')
@pytest.mark.parametrize('spatial', SHAPES)
@pytest.mark.parametrize('heads, shared, c', [(1, False, 3), (3, True, 3), (2, False, 0), (1, True, 0)])
@pytest.mark.parametrize('mask, eps', [(None, 1e-5), ('some', None), ('one item empty', 1e-5)])
def test_it_equals_the_dense_reference(spatial, heads, shared, c, mask, eps):
    k, v, content, bias, *axes = given = inputs(spatial, heads, shared, c=c)
    mask = some_mask(mask)
    if shared:  # and without biases
        given, bias = [t for t in given if t is not bias], None
    expected = dense(k, v, content, axes, bias, 0.3, eps, mask)
    ours = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3, eps=eps, mask=mask)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    grad = torch.randn_like(expected)
    found, known = (torch.autograd.grad(out, given, grad) for out in (ours, expected))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize('spatial', [(31,), (13, 17), (3, 5, 7)])
def test_an_offset_costs_no_digits(spatial):
    k, v, content, bias, *axes = (t.detach().float() for t in inputs(spatial, offset=100.0))
    wide = [t.double() for t in (k, v, content)], [t.double() for t in axes], bias.double()
    exact = dense(*wide[0], wide[1], wide[2], 0.3, 1e-5)
    error = (dense(k, v, content, axes, bias, 0.3, 1e-5) - exact).abs().max()
    ours = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3)
    assert (ours - exact).abs().max() <= 5 * error


def test_products_large_enough_for_any_library_keep_float32():
    """On some processors they go through another library than small ones."""
    given = [t.detach().float() for t in inputs((32, 33), heads=1, B=1, M=512, D=64)]

    def results(function, dtype):
        k, v, content, bias, *axes = leaves = [t.to(dtype).requires_grad_() for t in given]
        out = function(k, v, content, axes, bias)
        grad = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return out, *torch.autograd.grad(out, leaves, grad.to(dtype))

    def ours(k, v, content, axes, bias):
        return grid_query_attention(k, v, content, axes, bias=bias, scale=0.3)

    def plain(*args):
        return dense(*args, 0.3, 1e-5)

    exact = results(plain, torch.float64)
    for a, b, c in zip(results(ours, torch.float32), results(plain, torch.float32), exact, strict=True):
        assert (a - c).abs().max() <= 5 * (b - c).abs().max()


def test_large_scores_do_not_overflow():
    k, v, content, bias, *axes = (t.detach().float() for t in inputs((13, 17)))
    exact = dense(*(t.double() for t in (k * 200, v, content)), [t.double() for t in axes], bias.double(), 1.0, 1e-5)
    ours = grid_query_attention(k * 200, v, content, axes, bias=bias, scale=1.0)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_masked_keys_have_no_influence(value):
    """Not in the result and not in any gradient; their own gradients are 0."""
    k, v, content, bias, *axes = (t.detach() for t in inputs((5, 3)))
    mask = some_mask('one item empty')
    out = ~mask[:, None]
    found = []
    for fill in (0.0, value):
        changed = [t.masked_fill(out[..., None], fill) for t in (k, v)] + [content, bias.masked_fill(out, fill), *axes]
        k_, v_, content_, bias_, *axes_ = given = [t.clone().requires_grad_() for t in changed]
        result = grid_query_attention(k_, v_, content_, axes_, bias=bias_, scale=0.3, mask=mask)
        found.append((result, *torch.autograd.grad(result.square().sum(), given)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0)
    of_k, of_v, _, of_bias = found[1][1:5]
    for gradient in (of_k.transpose(1, 2), of_v.transpose(1, 2), of_bias.transpose(1, 2)):
        assert not gradient[~mask].any()
    assert not found[1][0][1].any()


@pytest.mark.usefixtures('_tiles')
@pytest.mark.parametrize('lowest', [-math.inf, torch.finfo(torch.float64).min])
@pytest.mark.parametrize('heads, eps', [(1, 1e-5), (2, 1e-5), (2, None)])
def test_a_bias_of_minus_infinity_leaves_a_key_out(lowest, heads, eps):
    """As the mask does; the largest negative number too, which a deviation of queries above 1 would make infinite."""
    k, v, content, bias, *axes = (t.detach() for t in inputs((5, 3), heads, offset=3.0))
    out = ~some_mask('some')[:, None].expand(-1, heads, -1)
    if heads > 1:
        out = torch.stack([out[:, 0], torch.zeros_like(out[:, 0])], 1)  # of one head alone
    content = 9 * content
    found = []
    for function in (grid_query_attention, dense):
        given = [t.clone().requires_grad_() for t in (k, v, content, bias.masked_fill(out, lowest), *axes)]
        k_, v_, content_, bias_, *axes_ = given
        options = dict(bias=bias_, scale=0.3, eps=eps)
        result = function(k_, v_, content_, axes_, **options)
        found.append((result, *torch.autograd.grad(result.square().sum(), given)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    assert not found[0][4][out].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_head_whose_keys_are_all_left_out_gives_zeros_and_no_gradients(dtype):
    k, v, content, bias, *axes = (t.detach().to(dtype) for t in inputs((5, 3)))
    bias[0, 1] = -math.inf
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2:] = False  # of the others the bias leaves none
    bias[1, :, :2] = -math.inf
    given = [t.requires_grad_() for t in (k, v, content, bias, *axes)]
    result = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3, mask=mask)
    alone = grid_query_attention(k[:1, :1], v[:1, :1], content[:1], axes, bias=bias[:1, :1], scale=0.3)
    assert not result[0, 1].any() and not result[1].any()
    torch.testing.assert_close(result[:1, :1], alone)
    of_k, of_v, of_content, of_bias, *of_axes = torch.autograd.grad(result.square().sum(), given)
    for gradient in (of_k, of_v, of_bias):
        assert gradient[0, 0].any() and not gradient[0, 1].any() and not gradient[1].any()
    assert not of_content[1].any() and all(t.isfinite().all() and t.any() for t in (of_content, *of_axes))


def test_transforms_leave_keys_out_as_the_operator_does():
    k, v, content, bias, *axes = (t.detach() for t in inputs((5, 3)))
    bias[0, 1], bias[1, 0, 2] = -math.inf, -math.inf

    def attend(values):
        return grid_query_attention(k, values, content, axes, bias=bias, scale=0.3)

    torch.testing.assert_close(torch.func.vmap(attend)(v[None])[0], attend(v))
    found, tangent = torch.func.jvp(attend, (v,), (v,))
    torch.testing.assert_close((found, tangent), (attend(v), attend(v)))


def test_a_mask_wins_over_the_lowest_bias():
    """Keys that take part count, however low their bias, as long as no other does."""
    k, v, content, bias, *axes = (t.detach() for t in inputs((5, 3)))
    mask = some_mask('some')
    ours = grid_query_attention(k, v, content, axes, bias=torch.full_like(bias, -1e30), scale=0.3, mask=mask)
    counted = mask[:, None, :, None] / mask.sum(1)[:, None, None, None]
    torch.testing.assert_close(ours, (counted * v).sum(2, keepdim=True).expand_as(ours))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    k, v, content, bias, *axes = (t.detach().to(dtype) for t in inputs((13, 17)))
    exact = dense(*(t.double() for t in (k, v, content)), [t.double() for t in axes], bias.double(), 0.3, 1e-5)
    for mask in (None, torch.ones(2, 5, dtype=torch.bool)):
        ours = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3, mask=mask)
        torch.testing.assert_close(ours, exact.to(dtype))


def test_tables_may_be_finer_than_the_rest():
    k, v, content, bias, *axes = (t.detach() for t in inputs((13, 17), dtype=torch.float32))
    k, v, content, bias = (t.bfloat16() for t in (k, v, content, bias))
    exact = dense(*(t.double() for t in (k, v, content)), [t.double() for t in axes], bias.double(), 0.3, 1e-5)
    ours = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3)
    torch.testing.assert_close(ours, exact.bfloat16())


@pytest.mark.parametrize('wanted', ['k', 'v', 'content', 'bias', 'b'])
def test_gradients_where_only_one_input_needs_them(wanted):
    given = dict(zip(('k', 'v', 'content', 'bias', 'a', 'b'), inputs((5, 3)), strict=True))
    for name, tensor in given.items():
        tensor.requires_grad_(name == wanted)
    k, v, content, bias, *axes = given.values()
    ours = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3)
    expected = dense(k, v, content, axes, bias, 0.3, 1e-5)
    found, known = (torch.autograd.grad(out.square().sum(), given[wanted])[0] for out in (ours, expected))
    torch.testing.assert_close(found, known, rtol=0, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_arithmetic_alone(dtype):
    k, v, content, bias, *axes = given = inputs((13, 17), dtype=torch.float32)

    def results():
        out = grid_query_attention(k, v, content, axes, bias=bias, scale=0.3)
        return out, *torch.autograd.grad(out.sum(), given)

    expected = results()
    with torch.autocast('cpu', dtype=dtype):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_strided_inputs_and_gradients():
    """As folded weights leave them; what comes out is laid out as the compiler expects."""
    k, v, content, bias, *axes = (t.detach() for t in inputs((5, 3)))
    k, v, bias = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v, bias))
    content, axes = content.to(memory_format=torch.channels_last), [t.T.contiguous().T for t in axes]
    ops, args = torch.ops.timm_extra, (k, v, content, axes, bias, 0.3, 1e-5)
    torch.library.opcheck(ops.grid_query_attention, args)
    grad = torch.randn(2, 15, 2, 4, dtype=torch.float64).transpose(1, 2)
    outs = ops.grid_query_attention(*args)
    torch.library.opcheck(ops.grid_query_attention_backward, (grad, *args[:5], *outs, *args[5:], True, False))


def test_compiled_with_a_mask_without_a_graph_break():
    k, v, content, bias, *axes = given = inputs((5, 3))
    mask = some_mask('one item empty')

    def loss(k, v, content, axes, bias, mask):
        return grid_query_attention(k, v, content, axes, bias=bias, scale=0.3, mask=mask).square().sum()

    args = k, v, content, axes, bias, mask
    compiled = torch.compile(loss, fullgraph=True, backend='aot_eager')
    found, known = (torch.autograd.grad(function(*args), given) for function in (compiled, loss))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b)


def test_no_items():
    k, v, content, bias, *axes = (t.detach() for t in inputs((5, 3), shared=True))
    assert grid_query_attention(k[:0], v[:0], content, axes, bias=bias[:0], scale=1.0).shape == (0, 2, 15, 4)


MEMORY = """
import torch
from timm_extra_kernels import grid_query_attention
k, v = torch.randn(1, 1, 100, 62).requires_grad_(), torch.randn(1, 1, 100, 1).requires_grad_()
for shape in ((128, 128), (128, 128), (384, 384), (128 * 128,), (384 * 384,)):
    axes = [torch.randn(size, 60 // len(shape)) for size in shape]
    content = torch.randn(1, 2, *shape)
    out = []
    forward = peak(lambda: out.append(grid_query_attention(k, v, content, axes, scale=0.3)))
    print(forward, peak(lambda: out[0].sum().backward()))
"""


def test_memory_does_not_grow_with_the_number_of_positions():
    """A matrix of all scores would need 56 MiB, the queries 35 MiB, as the table of the one axis does."""
    _, *two_axes, small, large = printed_by(MEMORY)
    for fewer, more in (two_axes, (small, large)):
        assert more[0] < fewer[0] + 20, 'forward'
        assert more[1] < fewer[1] + 20, 'backward'


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(k=torch.zeros(2, 4, 10)), r'k must be \(B, H, M, C\) and v \(B, H, M, D\), got \(2, 4, 10\) and'),
        (dict(v=torch.zeros(2, 1, 3, 6)), r'got \(2, 1, 4, 10\) and \(2, 1, 3, 6\)'),
        (dict(k=torch.zeros(2, 1, 0, 10), v=torch.zeros(2, 1, 0, 6)), r'k \(2, 1, 0, 10\) is empty'),
        (dict(v=torch.zeros(2, 1, 4, 0)), r'v \(2, 1, 4, 0\) is empty'),
        (dict(k=torch.zeros(2, 1, 4, 9)), 'k has 9 channels, content and tables together have 10'),
        (dict(k=torch.zeros(2, 1, 4, 10, dtype=torch.long)), 'k must be of a floating-point dtype, got torch.int64'),
        (dict(v=torch.zeros(2, 1, 4, 6, device='meta')), 'k is on cpu, v on meta'),
        (dict(content=torch.zeros(3, 3, 5, 3)), 'content has a batch of 3, k of 2'),
        (dict(content=torch.zeros(2, 3)), r'content must be \(B, c, \*1 to 3 axes\), got \(2, 3\)'),
        (dict(content=torch.zeros(2, 3, 0, 3)), r'content \(2, 3, 0, 3\) is empty'),
        (dict(content=torch.zeros(2, 3, 5, 3, dtype=torch.uint8)), 'content must be of a floating-point dtype, got'),
        (dict(axes=[torch.zeros(5, 4)]), r'one table \(size, features\) per spatial axis .* got \[\(5, 4\)\]'),
        (dict(axes=[torch.zeros(5, 4), torch.zeros(4, 3)]), r'got \[\(5, 4\), \(4, 3\)\]'),
        (dict(axes=[torch.zeros(5, 4), torch.zeros(3, 3, dtype=torch.int)]), 'tables must be floating-point on cpu'),
        (dict(bias=torch.zeros(2, 4)), r'bias must be \(2, 1, 4\) for k \(2, 1, 4, 10\), got \(2, 4\)'),
        (dict(bias=torch.zeros(2, 1, 4, dtype=torch.bool)), 'bias must be of a floating-point dtype, got torch.bool'),
        (dict(mask=torch.zeros(2, 4)), 'mask must be boolean, True where an input takes part, got torch.float32'),
        (dict(mask=torch.zeros(2, 15, dtype=torch.bool)), r'mask must be \(2, 4\), got \(2, 15\)'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    given = dict(
        k=torch.zeros(2, 1, 4, 10),
        v=torch.zeros(2, 1, 4, 6),
        content=torch.zeros(2, 3, 5, 3),
        axes=[torch.zeros(5, 4), torch.zeros(3, 3)],
    )
    with pytest.raises(ValueError, match=message):
        grid_query_attention(**{**given, **change}, scale=1.0)
