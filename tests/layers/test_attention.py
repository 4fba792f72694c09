import pytest
import torch

from timm_extra.layers import Attention


@pytest.mark.parametrize('head_dim', [None, 7])
@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('fused', [True, False])
def test_a_query_gets_its_row_of_self_attention(head_dim, qkv_bias, fused):
    attn = Attention(24, num_heads=3, head_dim=head_dim, qkv_bias=qkv_bias)
    attn.fused_attn = fused
    x = torch.randn(2, 11, 24)
    full = attn(x)
    assert full.shape == x.shape
    torch.testing.assert_close(attn(x, query=-1), full[:, -1:])
    torch.testing.assert_close(attn(x, query=0), full[:, :1])


def test_fused_and_explicit_agree_with_gradients():
    attn = Attention(16, num_heads=2, qkv_bias=True).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    grads = []
    for fused in (True, False):
        attn.fused_attn = fused
        grads.append(torch.autograd.grad(attn(x).square().sum(), [x, *attn.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])


def test_a_replaced_projection_is_used():
    """Adapters and quantised layers stand in for `qkv` as modules."""
    attn = Attention(6, num_heads=2)
    weight = attn.qkv.weight
    attn.qkv = torch.nn.Sequential(torch.nn.Linear(6, 18, bias=False))
    with torch.no_grad():
        attn.qkv[0].weight.copy_(2 * weight)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(attn(x, query=-1), attn(x)[:, -1:])


def test_one_token_and_one_head():
    attn = Attention(5, num_heads=1)
    assert attn(torch.randn(1, 1, 5)).shape == (1, 1, 5)


def test_dropout_acts_in_training_only():
    attn = Attention(16, num_heads=2, attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, 9, 16)
    assert not torch.equal(attn(x), attn(x))
    attn.eval()
    assert torch.equal(attn(x), attn(x))


@pytest.mark.parametrize('num_heads', [0, -2])
def test_heads_that_are_not_positive_are_named(num_heads):
    with pytest.raises(ValueError, match=f'num_heads .* got {num_heads}'):
        Attention(10, num_heads=num_heads)


def test_indivisible_heads_are_named():
    with pytest.raises(ValueError, match=r'dim \(10\).*num_heads \(3\)'):
        Attention(10, num_heads=3)
