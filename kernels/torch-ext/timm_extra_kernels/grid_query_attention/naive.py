"""Attention of a grid's positions, content and features built in full, to keys."""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F

from ..fourier_cross_attention.naive import tokens

LOWEST = -1e20  # the bias of keys that take no part: below every score, and finite times any deviation of a query


def forward(
    k: torch.Tensor,
    v: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    bias: torch.Tensor,
    scale: float,
    eps: Optional[float],
) -> torch.Tensor:
    """softmax(scale · x̂ kᵀ + bias) v.

    k is (B, H, M, C), v (B, H, M, D), content (B or 1, c, *spatial), axes one table (Sᵢ, Fᵢ) per spatial axis and bias
    (B, H, M); C = c + ΣFᵢ. Returns (B, H, N, D), N the product of the spatial sizes; zeros for heads whose biases are
    all `LOWEST`.
    """
    x = tokens(content, axes)  # (B or 1, N, C)
    if eps is not None:
        x = F.layer_norm(x, x.shape[-1:], None, None, eps)
    out = (x.unsqueeze(1) @ k.mT * scale + bias.unsqueeze(2)).softmax(-1) @ v
    return out.masked_fill(without_keys(bias)[..., None, None], 0.0)


def without_keys(bias: torch.Tensor) -> torch.Tensor:
    """Which heads (B, H) have no key that takes part."""
    return bias.amax(-1) <= LOWEST
