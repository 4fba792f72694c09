import pytest
import torch
from timm.layers import RmsNorm
from torch import nn

from timm_extra.models.perceiver.cross_attention import CrossAttention, Inputs


def example(dtype=torch.float64):
    """Queries and inputs."""
    torch.manual_seed(0)
    axes = [torch.randn(5, 4, dtype=dtype), torch.randn(7, 3, dtype=dtype)]
    return torch.randn(2, 6, 8, dtype=dtype), Inputs(torch.randn(2, 3, 5, 7, dtype=dtype), axes, None)


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
    x, inputs = example()
    outs = {}
    for route in ('plain', 'folded', 'separable'):
        attn.route = route
        assert attn.choose_route(6, inputs) == route
        attn.zero_grad()
        outs[route] = attn(x, inputs)
        outs[route].square().sum().backward()
        outs[route, 'grads'] = [p.grad.clone() for p in attn.parameters()]
    for route in ('folded', 'separable'):
        torch.testing.assert_close(outs[route], outs['plain'], rtol=0, atol=1e-10)
        for a, b in zip(outs[route, 'grads'], outs['plain', 'grads'], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_finished_tokens_have_no_separable_route():
    attn = layer(route='separable')
    assert attn.choose_route(6, Inputs(torch.randn(2, 20, 10), [], None)) in ('folded', 'plain')


def test_the_key_bias_has_a_gradient_of_zero():
    """DDP waits for a gradient of every parameter."""
    attn = layer(route='separable')
    attn(*example()).square().sum().backward()
    assert attn.k.bias.grad is not None
    assert (attn.k.bias.grad == 0).all()


def test_another_norm_takes_the_plain_route():
    attn = layer(route='folded', norm_layer=RmsNorm)
    x, inputs = example()
    assert attn.choose_route(6, inputs) == 'plain'
    assert attn(x, inputs).isfinite().all()


@pytest.mark.parametrize('route', ['plain', 'folded', 'separable'])
def test_shared_queries_serve_all_items(route):
    attn = layer(route=route)
    x, inputs = example()
    torch.testing.assert_close(attn(x[:1], inputs), attn(x[:1].expand(2, -1, -1), inputs))


def test_weights_are_what_the_plain_route_uses():
    attn = layer(num_heads=2, route='plain')
    x, inputs = example()
    inputs = inputs._replace(mask=torch.rand(2, 35) > 0.3)
    weights = attn.attention_weights(x, inputs)
    values = attn._keys_values(inputs)[1]
    out = attn.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, attn(x, inputs))
    nothing = inputs._replace(mask=torch.zeros(2, 35, dtype=torch.bool))
    assert (attn.attention_weights(x, nothing) == 0).all()


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
