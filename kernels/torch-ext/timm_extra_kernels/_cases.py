"""Inputs on which the operations are tested, compiled and measured."""

from dataclasses import dataclass
from typing import Any, Dict, Sequence

import torch


@dataclass(frozen=True)
class Case:
    """Sizes of one set of inputs.

    Attributes:
        name: What is particular about it.
        sizes: What the operation's `inputs` reads.
    """

    name: str
    sizes: Dict[str, Any]


def randn(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Normal values, the same ones on every device (none on the meta device) and, but for rounding, in every dtype."""
    if torch.device(device).type == 'meta':
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device, dtype)
