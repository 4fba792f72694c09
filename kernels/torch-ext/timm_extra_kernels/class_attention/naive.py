"""Attention of one query per head as in the paper."""

import torch


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale · q kᵀ) v, with q (B, H, 1, D), k and v (B, H, L, D); returns (B, H, 1, D)."""
    return ((q @ k.mT) * scale).softmax(-1) @ v
