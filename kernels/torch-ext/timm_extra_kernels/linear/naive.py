"""A linear layer as in a textbook."""

from typing import Optional

import torch


def forward(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
    """x Wᵀ + b, with x (…, K), W (N, K) and b (N,); returns (…, N)."""
    out = input @ weight.mT
    return out if bias is None else out + bias
