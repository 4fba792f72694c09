"""Inputs on which `leff_depthwise_train` is tested, compiled and measured."""

import torch
import torch.nn.functional as F

from .._cases import Case, randn


def definition(x, weight, bias, H, W, gamma1, beta1, gamma2, beta2, eps):
    """BatchNorm, GELU, depthwise convolution, BatchNorm, GELU, as in the paper; with the statistics."""
    B, _, C = x.shape
    x = x.mT.reshape(B, C, H, W)
    h = F.gelu(F.batch_norm(x, None, None, gamma1, beta1, True, 0.0, eps))
    z = F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2, groups=C)
    y = F.gelu(F.batch_norm(z, None, None, gamma2, beta2, True, 0.0, eps))
    statistics = [s for t in (x, z) for s in reversed(torch.var_mean(t, (0, 2, 3), correction=0))]
    return y.flatten(2).mT, *statistics


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator."""
    B, H, W, C, P = (case.sizes[name] for name in 'BHWCP')
    k = 2 * P + 1
    offset = case.sizes.get('offset', 0)
    x = randn((B, H * W, C), dtype, device) + (offset or 1)
    # nothing that leaves a channel nearly constant, so that the norm after it magnifies what rounding did
    weight = (1 + 0.3 * randn((C, 1, k, k), dtype, device)) / k
    bias = randn((C,), dtype, device) + offset
    gamma1, beta1, gamma2, beta2 = randn((4, C), dtype, device).unbind()
    return x, weight, bias, H, W, 1 + 0.3 * gamma1, 1 + 0.3 * beta1, 1 + 0.3 * gamma2, beta2, 1e-5


def backward_args(grad, args, out):
    """Arguments of the backward operator."""
    return grad, *args, *out[1:]


# The errors of single channels are a matter of luck: sums over few tokens cancel. Many channels have the same luck.
CASES = [
    Case('ceit', dict(B=1, H=3, W=14, C=32, P=1)),
    Case('odd', dict(B=3, H=4, W=3, C=31, P=1)),
    Case('one token each', dict(B=24, H=1, W=1, C=32, P=1)),
    Case('wide', dict(B=2, H=1, W=17, C=29, P=1)),
    Case('large kernel', dict(B=3, H=3, W=2, C=40, P=2)),
    Case('offset', dict(B=5, H=3, W=3, C=32, P=1, offset=100)),
]
SIZES = dict(B=(2, 3), H=(2, 3), W=(3, 15), C=(24, 40), P=(1, 2))
COMPILED = [
    Case('ceit', dict(B=256, H=14, W=14, C=1536, P=1)),
    Case('ceit 384', dict(B=64, H=24, W=24, C=1536, P=1)),
    Case('large kernel', dict(B=256, H=14, W=14, C=1536, P=2)),
]
