"""The depthwise stage of LeFF with given affines, as in the paper."""

import torch
import torch.nn.functional as F


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    scale1: torch.Tensor, shift1: torch.Tensor, scale2: torch.Tensor, shift2: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Affine, GELU, depthwise convolution, affine, GELU.

    x is (B, H·W, C), weight (C, 1, k, k) with an odd k, all others are (C,); returns (B, H·W, C).
    """
    B, _, C = x.shape
    x = x.mT.reshape(B, C, H, W)
    h = F.gelu(x * scale1.view(C, 1, 1) + shift1.view(C, 1, 1))
    z = F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2, groups=C)
    return F.gelu(z * scale2.view(C, 1, 1) + shift2.view(C, 1, 1)).flatten(2).mT
