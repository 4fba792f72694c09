"""Attention of one query per head, in plain PyTorch."""

from typing import Tuple

import torch
import torch.nn.functional as F


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale · q kᵀ) v.

    Args:
        q: (B, H, 1, D).
        k: (B, H, L, D).
        v: (B, H, L, D).
        scale: Factor of the scores.

    Returns:
        (B, H, 1, D).
    """
    return F.scaled_dot_product_attention(q, k, v, scale=scale).contiguous()


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `forward`, from scores computed again.

    Args:
        grad: Gradient of the output (B, H, 1, D).
        q: As in `forward`.
        k: As in `forward`.
        v: As in `forward`.
        scale: As in `forward`.

    Returns:
        Gradients of q (B, H, 1, D), k and v (B, H, L, D).
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    grad, wide_q, wide_k, wide_v = (t.to(dtype) for t in (grad, q, k, v))
    p = ((wide_q * wide_k).sum(-1) * scale).softmax(-1).unsqueeze(-1)  # (B, H, L, 1)
    dp = (grad * wide_v).sum(-1, keepdim=True)
    ds = p * (dp - (p * dp).sum(2, keepdim=True)) * scale
    dq = (ds * wide_k).sum(2, keepdim=True)
    return tuple(t.to(q.dtype).contiguous() for t in (dq, ds * wide_q, p * grad))
