import pytest
import torch
from timm.layers import RmsNorm
from torch import nn

from timm_extra.models.perceiver.cross_attention import CrossAttention


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    axes = [torch.randn(5, 4, dtype=dtype), torch.randn(7, 3, dtype=dtype)]
    return torch.randn(2, 6, 8, dtype=dtype), torch.randn(2, 3, 5, 7, dtype=dtype), axes


def layer(**kwargs):
    torch.manual_seed(1)
    attn = CrossAttention(8, 10, **{'dtype': torch.float64, **kwargs})
    with torch.no_grad():
        for p in attn.parameters():
            p.normal_(0, 0.5)
    return attn


@pytest.mark.parametrize('heads, head_dim', [(1, None), (2, None), (3, 4), (1, 64)])
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('norm', [nn.LayerNorm, lambda dim, **dd: nn.LayerNorm(dim, elementwise_affine=False, **dd)])
def test_routes_are_equal(heads, head_dim, qkv_bias, norm):
    attn = layer(num_heads=heads, head_dim=head_dim, qkv_bias=qkv_bias, norm_layer=norm)
    x, content, axes = inputs()
    outs = {}
    for route in ('plain', 'folded', 'separable'):
        attn.route = route
        assert attn.choose_route(6, content, axes) == route
        attn.zero_grad()
        outs[route] = attn(x, content, axes)
        outs[route].square().sum().backward()
        outs[route, 'grads'] = [p.grad.clone() for p in attn.parameters()]
    for route in ('folded', 'separable'):
        torch.testing.assert_close(outs[route], outs['plain'], rtol=0, atol=1e-10)
        for a, b in zip(outs[route, 'grads'], outs['plain', 'grads'], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('heads, head_dim', [(1, None), (2, None), (3, 4)])
@pytest.mark.parametrize('affine', [True, False])
def test_a_map_of_the_content_is_folded(heads, head_dim, affine):
    def norm(dim, **dd):
        return nn.LayerNorm(dim, elementwise_affine=affine, **dd)

    attn = layer(num_heads=heads, head_dim=head_dim, norm_layer=norm)
    x = inputs()[0]
    given = [torch.randn(shape, dtype=torch.float64) for shape in [(2, 2, 35), (35, 4), (6, 3)]]
    mask = torch.rand(2, 35) > 0.3
    outs = {}
    for route in ('plain', 'folded'):
        attn.route = route
        content, table, proj = (t.clone().requires_grad_() for t in given)
        assert attn.choose_route(6, content, [table], proj) == route
        attn.zero_grad()
        outs[route] = [attn(x, content, [table], mask, proj)]
        outs[route][0].square().sum().backward()
        outs[route] += [t.grad for t in (content, table, proj, *attn.parameters())]
    for a, b in zip(outs['folded'], outs['plain'], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weights = attn.attention_weights(x, content, [table], mask, proj)
    values = attn._keys_values(content, [table], proj)[1]
    torch.testing.assert_close(attn.proj((weights @ values).transpose(1, 2).flatten(2)), outs['plain'][0])
    attn.route = 'separable'
    assert attn.choose_route(6, content, [table], proj) != 'separable'


def test_folding_a_map_costs_no_digits():
    """Inputs at an offset of 100, of which the map keeps nothing.

    Both ways round terms of that size and get to within a few units of it (here 5 times); a variance as a float32
    difference of squares would be off a thousand times as much.
    """
    attn = layer()
    x = inputs()[0]
    content, table = torch.randn(2, 2, 35) + 100.0, torch.randn(35, 4)
    proj = torch.randn(6, 3)
    proj[:, 1] = -proj[:, 0]
    given = (x.float(), content, [table], None, proj)
    attn.route = 'plain'
    exact = attn(x.float().double(), content.double(), [table.double()], None, proj.double())
    attn = attn.float()
    plain = (attn(*given) - exact).abs().max()
    attn.route = 'folded'
    assert (attn(*given) - exact).abs().max() < 20 * plain


def test_finished_tokens_have_no_separable_route():
    attn = layer(route='separable')
    assert attn.choose_route(6, torch.randn(2, 20, 10), []) in ('folded', 'plain')


def test_the_key_bias_has_a_gradient_of_zero():
    """DDP waits for a gradient of every parameter."""
    attn = layer(route='separable')
    attn(*inputs()).square().sum().backward()
    assert attn.k.bias.grad is not None
    assert (attn.k.bias.grad == 0).all()


def test_another_norm_takes_the_plain_route():
    attn = layer(route='folded', norm_layer=RmsNorm)
    x, content, axes = inputs()
    assert attn.choose_route(6, content, axes) == 'plain'
    assert attn(x, content, axes).isfinite().all()


@pytest.mark.parametrize('route', ['plain', 'folded', 'separable'])
def test_shared_queries_serve_all_items(route):
    attn = layer(route=route)
    x, content, axes = inputs()
    torch.testing.assert_close(attn(x[:1], content, axes), attn(x[:1].expand(2, -1, -1), content, axes))


def test_weights_are_what_the_plain_route_uses():
    attn = layer(num_heads=2, route='plain')
    x, content, axes = inputs()
    mask = torch.rand(2, 35) > 0.3
    weights = attn.attention_weights(x, content, axes, mask)
    values = attn._keys_values(content, axes, None)[1]
    out = attn.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, attn(x, content, axes, mask))
    none = torch.zeros(2, 35, dtype=torch.bool)
    assert (attn.attention_weights(x, content, axes, none) == 0).all()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_heads=0), 'at least 1, got 0'),
        (dict(num_heads=3), r'kv_dim \(10\) must be divisible by the cross-attention heads \(3\)'),
        (dict(route='magic'), "got 'magic'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CrossAttention(8, 10, **kwargs)
