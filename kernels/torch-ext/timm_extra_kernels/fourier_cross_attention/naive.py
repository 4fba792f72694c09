"""Cross-attention to a grid whose tokens, content and position features, are built in full."""

from typing import Optional, Sequence

import torch

from ..latent_cross_attention.naive import forward as attend


def forward(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
) -> torch.Tensor:
    """softmax(scale · q x̂ᵀ) x̂, with zeros where nothing is attended to.

    q is (B or 1, H, M, C), content (B, c, *spatial), axes one table (Sᵢ, Fᵢ) per spatial axis and mask (B, *spatial),
    True where a position takes part; C = c + ΣFᵢ. Returns (B, H, M, C).
    """
    return attend(q, tokens(content, axes), scale, eps, None if mask is None else mask.flatten(1))


def tokens(content: torch.Tensor, axes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tokens (B, N, C): the content of each position, then its features on each axis."""
    B, _, *sizes = content.shape
    parts = [content.movedim(1, -1)]
    for i, table in enumerate(axes):
        along = table[tuple(slice(None) if j == i else None for j in range(len(sizes)))]
        parts.append(along.expand(B, *sizes, -1))
    return torch.cat(parts, -1).flatten(1, -2)
