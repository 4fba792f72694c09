"""Inputs on which `leff_depthwise` is tested, compiled and measured."""

import torch
import torch.nn.functional as F

from .._cases import Case, randn


def definition(x, weight, bias, H, W, scale1, shift1, scale2, shift2):
    """Affine, GELU, depthwise convolution, affine, GELU, as in the paper."""
    B, _, C = x.shape
    x = x.mT.reshape(B, C, H, W)
    h = F.gelu(x * scale1.view(C, 1, 1) + shift1.view(C, 1, 1))
    z = F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2, groups=C)
    return F.gelu(z * scale2.view(C, 1, 1) + shift2.view(C, 1, 1)).flatten(2).mT


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator."""
    B, H, W, C, P = (case.sizes[name] for name in 'BHWCP')
    k = 2 * P + 1
    x = randn((B, H * W, C), dtype, device)
    weight = randn((C, 1, k, k), dtype, device) / k
    scale1, shift1, scale2, shift2 = randn((4, C), dtype, device).unbind()
    return x, weight, randn((C,), dtype, device), H, W, 1 + 0.3 * scale1, shift1, 1 + 0.3 * scale2, shift2


def backward_args(grad, args, out):
    """Arguments of the backward operator."""
    return grad, *args


CASES = [
    Case('ceit', dict(B=1, H=3, W=14, C=6, P=1)),
    Case('odd', dict(B=3, H=4, W=3, C=5, P=1)),
    Case('one token', dict(B=1, H=1, W=1, C=1, P=1)),
    Case('wide', dict(B=1, H=2, W=17, C=3, P=1)),
    Case('large kernel', dict(B=2, H=3, W=2, C=40, P=2)),
    Case('large kernel, wide', dict(B=1, H=1, W=15, C=3, P=2)),
]
SIZES = dict(B=(1, 3), H=(1, 2), W=(1, 15), C=(1, 40), P=(1, 2))
COMPILED = [
    Case('ceit', dict(B=256, H=14, W=14, C=1536, P=1)),
    Case('ceit 384', dict(B=64, H=24, W=24, C=1536, P=1)),
    Case('large kernel', dict(B=256, H=14, W=14, C=1536, P=2)),
    Case('large kernel 384', dict(B=64, H=24, W=24, C=1536, P=2)),
]
