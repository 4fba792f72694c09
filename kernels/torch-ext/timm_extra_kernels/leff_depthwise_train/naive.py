"""The depthwise stage of LeFF in training, as in the paper."""

from typing import Tuple

import torch
import torch.nn.functional as F


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    gamma1: torch.Tensor, beta1: torch.Tensor, gamma2: torch.Tensor, beta2: torch.Tensor, eps: float,
) -> Tuple[torch.Tensor, ...]:  # fmt: skip
    """BatchNorm, GELU, depthwise convolution, BatchNorm, GELU, and the statistics.

    x is (B, H·W, C), weight (C, 1, k, k) with an odd k, all other tensors are (C,). Returns (B, H·W, C), then mean and
    biased variance (C,) of x and of the convolution.
    """
    B, _, C = x.shape
    x = x.mT.reshape(B, C, H, W)
    h = F.gelu(F.batch_norm(x, None, None, gamma1, beta1, True, 0.0, eps))
    z = F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2, groups=C)
    y = F.gelu(F.batch_norm(z, None, None, gamma2, beta2, True, 0.0, eps))
    statistics = [s for t in (x, z) for s in reversed(torch.var_mean(t, (0, 2, 3), correction=0))]
    return (y.flatten(2).mT, *statistics)
