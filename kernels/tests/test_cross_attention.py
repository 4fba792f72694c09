"""Both cross-attentions against a dense reference in float64, forward and gradients."""

import importlib

import pytest
import torch
from gates import printed_by

from timm_extra_kernels import fourier_cross_attention, latent_cross_attention
from timm_extra_kernels.latent_cross_attention.naive import forward as naive

SHAPES = [(7,), (1,), (5, 3), (1, 11), (13, 17), (3, 5, 7), (1, 2, 1)]
FEATURES = (4, 3, 2)  # of the first, second and third axis


def dense(q, x, scale, eps, mask=None):
    """softmax(scale · q x̂ᵀ) x̂ with every matrix in full; zeros where nothing is attended to."""
    if eps is not None:
        x = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    scores = torch.einsum('bhmc,bnc->bhmn', q.expand(x.shape[0], -1, -1, -1), x) * scale
    if mask is None:
        return scores.softmax(-1) @ x[:, None]
    p = scores.masked_fill(~mask[:, None, None], -1e300).softmax(-1)
    return (p * mask.any(1)[:, None, None, None]) @ x[:, None]


def tokens(content, axes):
    """Tokens (B, N, C), built in full."""
    B, _, *sizes = content.shape
    parts = [content.movedim(1, -1)]
    for i, table in enumerate(axes):
        view = table[tuple(slice(None) if j == i else None for j in range(len(sizes)))]
        parts.append(view.expand(B, *sizes, -1))
    return torch.cat(parts, -1).flatten(1, -2)


def inputs(spatial, heads, shared, dtype=torch.float64, offset=0.0, B=2, M=5, c=3):
    torch.manual_seed(0)
    axes = [torch.randn(s, f, dtype=dtype) + offset for s, f in zip(spatial, FEATURES, strict=False)]
    content = torch.randn(B, c, *spatial, dtype=dtype) + offset
    q = torch.randn(1 if shared else B, heads, M, c + sum(a.shape[1] for a in axes), dtype=dtype)
    return [t.requires_grad_() for t in (q, content, *axes)]


def some_mask(kind, B, spatial):
    if kind is None:
        return None
    mask = torch.rand(B, *spatial, generator=torch.Generator().manual_seed(1)) > 0.4
    mask.view(B, -1)[:, 0] = True
    if kind == 'one item empty':
        mask[1] = False
    return mask


@pytest.fixture(params=['one tile', 'small tiles'])
def _tiles(request, monkeypatch):
    """Cut the work into many tiles, as large inputs are, or into one."""
    if request.param == 'small tiles':
        for op in ('latent', 'fourier'):
            module = importlib.import_module(f'timm_extra_kernels.{op}_cross_attention.eager')
            monkeypatch.setattr(module, 'tile_budget', lambda device: 300)


@pytest.mark.usefixtures('_tiles')
@pytest.mark.parametrize('spatial', SHAPES)
@pytest.mark.parametrize('heads', [1, 8])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('mask', [None, 'some', 'one item empty'])
@pytest.mark.parametrize('eps', [1e-5, None])
def test_both_equal_the_dense_reference(spatial, heads, shared, mask, eps):
    given = inputs(spatial, heads, shared)
    q, content, *axes = given
    mask = some_mask(mask, 2, spatial)
    x = tokens(content, axes)
    flat = None if mask is None else mask.flatten(1)
    expected = dense(q, x, 0.3, eps, flat)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, given, grad, retain_graph=True)
    for out in (
        fourier_cross_attention(q, content, axes, scale=0.3, eps=eps, mask=mask),
        latent_cross_attention(q, x, scale=0.3, eps=eps, mask=flat),
    ):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
        for ours, theirs in zip(torch.autograd.grad(out, given, grad, retain_graph=True), expected_grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize('spatial', [(31,), (13, 17), (3, 5, 7)])
def test_an_offset_costs_no_digits(spatial):
    given = inputs(spatial, 2, False, offset=100.0)
    singles = [t.detach().float() for t in given]
    exact_of_singles = dense(*(t.double() for t in (singles[0], tokens(singles[1], singles[2:]))), 0.3, 1e-5)
    in_float32 = dense(singles[0], tokens(singles[1], singles[2:]), 0.3, 1e-5)
    error = (in_float32 - exact_of_singles).abs().max()
    ours = fourier_cross_attention(singles[0], singles[1], singles[2:], scale=0.3)
    assert (ours - exact_of_singles).abs().max() <= 5 * error
    ours = latent_cross_attention(singles[0], tokens(singles[1], singles[2:]), scale=0.3)
    assert (ours - exact_of_singles).abs().max() <= 5 * error


def test_large_scores_do_not_overflow():
    q, content, *axes = (t.detach().float() for t in inputs((13, 17), 2, False))
    expected = dense(q.double() * 200, tokens(content, axes).double(), 1.0, 1e-5)
    ours = fourier_cross_attention(q * 200, content, axes, scale=1.0)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-3)
    ours = latent_cross_attention(q * 200, tokens(content, axes), scale=1.0)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures('_tiles')
@pytest.mark.parametrize('increasing', [False, True])
def test_scores_that_grow_from_tile_to_tile(increasing):
    """The running maximum must follow, over more than float32's exponents can bridge."""
    x = torch.linspace(0, 400, 64).view(1, 64, 1) if increasing else torch.linspace(400, 0, 64).view(1, 64, 1)
    x = torch.cat([x, torch.randn(1, 64, 2, generator=torch.Generator().manual_seed(0))], -1)
    q = torch.ones(1, 1, 20, 3)
    ours = latent_cross_attention(q, x, scale=1.0, eps=None)
    torch.testing.assert_close(ours, dense(q, x, 1.0, None), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures('_tiles')
@pytest.mark.parametrize('eps', [1e-5, None])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_masked_latent_inputs_have_no_influence(value, eps):
    """Not in the result, not in gradients of the queries and of the other inputs; their own gradient is 0."""
    q, content, *axes = (t.detach() for t in inputs((13, 17), 2, False))
    mask = some_mask('one item empty', 2, (13, 17)).flatten(1)
    plain = tokens(content, axes)
    found = []
    for x in (plain, plain.masked_fill(~mask[..., None], value)):
        given = q.clone().requires_grad_(), x.clone().requires_grad_()
        for forward in (latent_cross_attention, naive):
            out = forward(*given, scale=0.3, eps=eps, mask=mask)
            found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-10)
    assert not found[0][2][~mask].any()


def nan_where_masked(where, eps, device, dtype):
    """Gradients at masked inputs, of both operations, when a query or the gradient of the output is NaN."""
    q, content, *axes = (t.detach().to(device, dtype) for t in inputs((2, 9), 1, False))
    mask = some_mask('some', 2, (2, 9)).to(device)
    grad = torch.ones_like(q)
    (q if where == 'query' else grad)[0, 0, 1, 2] = float('nan')
    content, x = (t.requires_grad_() for t in (content, tokens(content, axes)))
    out = fourier_cross_attention(q.requires_grad_(), content, axes, scale=0.3, eps=eps, mask=mask)
    of_content = torch.autograd.grad(out, (q, content), grad)
    out = latent_cross_attention(q, x, scale=0.3, eps=eps, mask=mask.flatten(1))
    of_x = torch.autograd.grad(out, (q, x), grad)
    for of_q, of_inputs in (of_content, of_x):
        assert of_q.isnan().any() and of_inputs[0].isnan().any()
        assert not of_q[1].isnan().any() and not of_inputs[1].isnan().any()
    return of_content[1].movedim(1, -1)[~mask], of_x[1][~mask.flatten(1)]


@pytest.mark.parametrize('eps', [1e-5, None])
@pytest.mark.parametrize('where', ['query', 'gradient'])
def test_masked_inputs_get_a_gradient_of_0_even_of_nan(where, eps):
    for gradient in nan_where_masked(where, eps, 'cpu', torch.float32):
        assert gradient.numel() and not gradient.any()


@pytest.mark.parametrize('eps', [1e-5, None])
@pytest.mark.parametrize('where', ['query', 'gradient'])
def test_masked_inputs_get_a_gradient_of_0_even_of_nan_in_kernels(where, eps, device, launches):
    for gradient in nan_where_masked(where, eps, device, torch.bfloat16):
        assert gradient.numel() and not gradient.any()
    assert any('fourier' in name for name in launches) and any('latent' in name for name in launches)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    q, content, *axes = (t.detach().to(dtype) for t in inputs((13, 17), 2, False))
    expected = dense(q.double(), tokens(content, axes).double(), 0.3, 1e-5)
    ours = fourier_cross_attention(q, content, axes, scale=0.3)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected.to(dtype))
    torch.testing.assert_close(latent_cross_attention(q, tokens(content, axes), scale=0.3), expected.to(dtype))


def test_tables_may_be_finer_than_the_rest():
    q, content, *axes = (t.detach() for t in inputs((13, 17), 2, False, dtype=torch.float32))
    half = fourier_cross_attention(q.bfloat16(), content.bfloat16(), axes, scale=0.3)
    expected = dense(q.bfloat16().double(), tokens(content.bfloat16().double(), [a.double() for a in axes]), 0.3, 1e-5)
    torch.testing.assert_close(half, expected.bfloat16())


@pytest.mark.parametrize('needs', ['q', 'content', 'axes'])
def test_gradients_where_only_one_input_needs_them(needs):
    given = dict(zip(('q', 'content', 'a', 'b'), inputs((5, 3), 2, False), strict=True))
    wanted = {'q': ['q'], 'content': ['content'], 'axes': ['b']}[needs]
    for name, tensor in given.items():
        tensor.requires_grad_(name in wanted)
    q, content, a, b = given.values()
    (ours,) = torch.autograd.grad(
        fourier_cross_attention(q, content, [a, b], scale=0.3).square().sum(), given[wanted[0]]
    )
    (expected,) = torch.autograd.grad(dense(q, tokens(content, [a, b]), 0.3, 1e-5).square().sum(), given[wanted[0]])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_they_are_proper_operators():
    q, content, *axes = inputs((5, 3), 2, True)
    mask = some_mask('some', 2, (5, 3))
    ops = torch.ops.timm_extra
    x = tokens(content, axes).detach()
    plain = [t.detach() for t in (q, content, *axes)]
    torch.library.opcheck(ops.fourier_cross_attention, (plain[0], plain[1], plain[2:], 0.3, 1e-5, mask))
    torch.library.opcheck(ops.latent_cross_attention, (plain[0], x, 0.3, None, mask.flatten(1)))
    out, lse, rest = ops.fourier_cross_attention(plain[0], plain[1], plain[2:], 0.3, 1e-5, mask)
    args = (torch.randn_like(out), plain[0], plain[1], plain[2:], out, rest, lse, 0.3, 1e-5, mask)
    torch.library.opcheck(ops.fourier_cross_attention_backward, (*args, True))
    torch.library.opcheck(ops.fourier_cross_attention_backward, (*args, False))
    out, lse = ops.latent_cross_attention(plain[0], x, 0.3, 1e-5, None)
    args = (torch.randn_like(out), plain[0], x, out, lse, 0.3, 1e-5, None)
    torch.library.opcheck(ops.latent_cross_attention_backward, (*args, True))
    assert torch.autograd.gradcheck(
        lambda q, c, a, b: fourier_cross_attention(q, c, [a, b], scale=0.3, mask=mask), (q, content, *axes)
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_arithmetic_alone(dtype):
    given = inputs((13, 17), 2, False, dtype=torch.float32)
    q, content, *axes = given
    x = tokens(content, axes).detach().requires_grad_()
    for call, sources in (
        (lambda: fourier_cross_attention(q, content, axes, scale=0.3), given),
        (lambda: latent_cross_attention(q, x, scale=0.3), [q, x]),
    ):
        expected = call()
        expected_grads = torch.autograd.grad(expected.sum(), sources)
        with torch.autocast('cpu', dtype=dtype):
            out = call()
            grads = torch.autograd.grad(out.sum(), sources)
        assert torch.equal(out, expected)
        assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def test_operators_on_strided_inputs():
    """What comes out is laid out as the compiler expects."""
    ops = torch.ops.timm_extra
    q, content, *axes = (t.detach() for t in inputs((5, 3), 2, False))
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    content = content.to(memory_format=torch.channels_last)
    axes = [t.T.contiguous().T for t in axes]
    args = (q, content, axes, 0.3, 1e-5, None)
    torch.library.opcheck(ops.fourier_cross_attention, args)
    out, lse, rest = ops.fourier_cross_attention(*args)
    grad = torch.randn_like(out).transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(
        ops.fourier_cross_attention_backward, (grad, q, content, axes, out, rest, lse, 0.3, 1e-5, None, True)
    )
    x = tokens(content, axes).transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(ops.latent_cross_attention, (q, x, 0.3, 1e-5, None))
    out, lse = ops.latent_cross_attention(q, x, 0.3, 1e-5, None)
    torch.library.opcheck(ops.latent_cross_attention_backward, (grad, q, x, out, lse, 0.3, 1e-5, None, True))


def test_compiled_without_a_graph_break():
    q, content, *axes = inputs((5, 3), 2, False)

    def loss(q, content, axes):
        x = tokens(content, axes)
        return (
            fourier_cross_attention(q, content, axes, scale=0.3).square().sum()
            + latent_cross_attention(q, x, scale=0.3).square().sum()
        )

    compiled = torch.compile(loss, fullgraph=True, backend='aot_eager')
    given = [q, content, *axes]
    ours = torch.autograd.grad(compiled(q, content, axes), given)
    for a, b in zip(ours, torch.autograd.grad(loss(q, content, axes), given), strict=True):
        torch.testing.assert_close(a, b)


def test_no_items():
    q, content, *axes = (t.detach() for t in inputs((5, 3), 2, True))
    assert fourier_cross_attention(q, content[:0], axes, scale=1.0).shape == (0, 2, 5, 10)
    assert latent_cross_attention(q, tokens(content, axes)[:0], scale=1.0).shape == (0, 2, 5, 10)


MEMORY = """
import torch
from timm_extra_kernels import fourier_cross_attention, latent_cross_attention
axes = [torch.randn(512, 30) for _ in range(2)]
content, q = torch.randn(1, 1, 512, 512), torch.randn(1, 1, 1000, 61).requires_grad_()
print(peak(lambda: fourier_cross_attention(q, content, axes, scale=0.3).sum().backward()))
x = torch.randn(1, 512 * 512, 61)
print(peak(lambda: latent_cross_attention(q, x, scale=0.3).sum().backward()))
"""


def test_memory_does_not_grow_with_the_number_of_scores():
    """A matrix of all scores would need 1 GB, the tokens alone 61 MiB."""
    (separable,), (latent,) = printed_by(MEMORY)
    assert separable < 60
    assert latent < 60


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(q=torch.zeros(2, 5, 10)), r'q must be \(B or 1, H, M, C\), got \(2, 5, 10\)'),
        (dict(q=torch.zeros(3, 1, 5, 10)), 'q has a batch of 3, content of 2'),
        (dict(q=torch.zeros(1, 1, 5, 9)), 'q has 9 channels, content and tables together have 10'),
        (dict(q=torch.zeros(1, 1, 5, 10, dtype=torch.long)), r'q must be of a floating-point dtype, got torch.int64'),
        (dict(q=torch.zeros(1, 1, 5, 10, device='meta')), 'q is on meta, content on cpu'),
        (dict(content=torch.zeros(2, 3)), r'content must be \(B, c, \*1 to 3 axes\), got \(2, 3\)'),
        (dict(content=torch.zeros(2, 3, 0, 3)), r'content \(2, 3, 0, 3\) is empty'),
        (dict(axes=[torch.zeros(5, 4)]), r'one table \(size, features\) per spatial axis .* got \[\(5, 4\)\]'),
        (dict(axes=[torch.zeros(5, 4), torch.zeros(4, 3)]), r'got \[\(5, 4\), \(4, 3\)\]'),
        (dict(axes=[torch.zeros(5, 4), torch.zeros(3, 3, dtype=torch.int)]), 'tables must be floating-point on cpu'),
        (dict(mask=torch.zeros(2, 5, 3)), 'mask must be boolean, True where an input takes part, got torch.float32'),
        (dict(mask=torch.zeros(2, 15, dtype=torch.bool)), r'mask must be \(2, 5, 3\), got \(2, 15\)'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    given = dict(
        q=torch.zeros(1, 1, 5, 10),
        content=torch.zeros(2, 3, 5, 3),
        axes=[torch.zeros(5, 4), torch.zeros(3, 3)],
        mask=None,
    )
    with pytest.raises(ValueError, match=message):
        fourier_cross_attention(**{**given, **change}, scale=1.0)


def test_what_does_not_fit_latents_is_named():
    q = torch.zeros(1, 1, 5, 10)
    with pytest.raises(ValueError, match=r'x must be \(B, N, 10\) for q \(1, 1, 5, 10\), got \(2, 7, 9\)'):
        latent_cross_attention(q, torch.zeros(2, 7, 9), scale=1.0)
    with pytest.raises(ValueError, match=r'x \(2, 0, 10\) has no inputs to attend to'):
        latent_cross_attention(q, torch.zeros(2, 0, 10), scale=1.0)
    with pytest.raises(ValueError, match=r'mask must be \(2, 7\), got \(7, 2\)'):
        latent_cross_attention(q, torch.zeros(2, 7, 10), scale=1.0, mask=torch.ones(7, 2, dtype=torch.bool))
