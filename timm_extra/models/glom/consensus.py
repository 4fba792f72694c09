"""Consensus attention between the columns of GLOM."""

from typing import Final, List, Optional

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import nn


class ConsensusAttention(nn.Module):
    """Attention of columns to columns at one level, by how much their vectors agree, without any projection.

    scores(i, j) = β x_i · x_j / (|x_j| √D); for vectors of root mean square 1 that is β times their cosine.

    Source: arXiv:2102.12627, section 2, where β is the inverse temperature; glom-pytorch's module, whose β is 1.

    Args:
        beta: β, learned from there; 1 and not learned when None.
        attn_drop: Dropout rate on the attention weights.
        device: Device of β.
        dtype: Dtype of β.
    """

    self_score: Final[float] = -5e-4  # as in glom-pytorch

    def __init__(self, beta: Optional[float] = None, attn_drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        self._beta = beta
        self.beta = None
        if beta is not None:
            self.beta = nn.Parameter(torch.full((1,), beta, device=device, dtype=dtype))
        self.attn_drop = nn.Dropout(attn_drop)

    def reset_parameters(self) -> None:
        """Set β to what it begins with."""
        if self.beta is not None:
            nn.init.constant_(self.beta, self._beta)

    def forward(
        self, x: torch.Tensor, self_mask: Optional[torch.Tensor] = None, far_mask: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: State of a level (B, N, D).
            self_mask: Boolean (N, N), True where a column meets self_mask: the score there is a constant.
            far_mask: Boolean (N, N), True where row does not see column.

        Returns:
            (B, N, D).
        """
        q = x * x.shape[-1] ** -0.5
        if self.beta is not None:
            q = q * self.beta
        attn = q @ l2_normalize(x).transpose(-2, -1)  # (B, N, N)
        if self_mask is not None:
            attn = attn.masked_fill(self_mask, self.self_score)
        if far_mask is not None:
            attn = attn.masked_fill(far_mask, float('-inf'))
        return self.attn_drop(attn.softmax(dim=-1)) @ x


@register_notrace_function
def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """Vectors x (B, N, D) divided by their lengths; zeros stay zeros."""
    return F.normalize(x, dim=-1, eps=1e-7 if x.dtype == torch.float16 else 1e-12)  # float16 knows no 1e-12


@register_notrace_function
def self_column_mask(x: torch.Tensor) -> torch.Tensor:
    """Where rows and columns of the scores of x (B, N, D) are the same: boolean (N, N)."""
    columns = torch.arange(x.shape[1], device=x.device)
    return columns[:, None] == columns  # onnxruntime has no eye of booleans


@register_notrace_function
def far_column_mask(grid: List[int], radius: float, device: torch.device) -> torch.Tensor:
    """Columns of a grid (H, W) that are further apart than a radius, in columns: boolean (H·W, H·W)."""
    rows = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
    cols = torch.arange(grid[1], device=device).repeat(grid[0])
    squares = (rows[:, None] - rows) ** 2 + (cols[:, None] - cols) ** 2  # whole numbers, without rounding
    return squares > radius * radius
