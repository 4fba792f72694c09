"""Cross-attention whose keys and values are the normalised inputs themselves, with every matrix in full."""

from typing import Optional

import torch
import torch.nn.functional as F


def forward(
    q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask: Optional[torch.Tensor]
) -> torch.Tensor:
    """softmax(scale · q x̂ᵀ) x̂, with zeros where nothing is attended to.

    q is (B or 1, H, M, C), x (B, N, C) and mask (B, N), True where an input takes part; returns (B, H, M, C).
    """
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # 0 · NaN would not be 0
    if eps is not None:
        x = F.layer_norm(x, x.shape[-1:], None, None, eps)
    scores = q @ x.unsqueeze(1).mT * scale  # (B, H, M, N)
    if mask is None:
        return scores.softmax(-1) @ x.unsqueeze(1)
    lowest = torch.finfo(scores.dtype).min  # finite: an item without any inputs is not NaN
    p = scores.masked_fill(~mask[:, None, None], lowest).softmax(-1)
    return (p * mask.any(1)[:, None, None, None]) @ x.unsqueeze(1)
