import pytest
import torch
from torch import nn

from timm_extra.layers import LeFF

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


def test_fusing_in_training_is_refused():
    with pytest.raises(RuntimeError, match='eval'):
        LeFF(6, 20).fuse()


@pytest.mark.parametrize('kernel_size', [0, 2, -1])
def test_even_kernels_are_named(kernel_size):
    with pytest.raises(ValueError, match=str(kernel_size)):
        LeFF(6, 20, kernel_size)
