"""Attention of one query per head, as the class token asks all tokens."""

from typing import Optional, Tuple

import torch

from .._checks import check_floating
from .._register import Operators

__all__ = ['class_attention']


def limits(*, k: torch.Tensor) -> Optional[str]:
    """What the kernels cannot do."""
    return f'{k.shape[-1]} channels per head are more than 256' if k.shape[-1] > 256 else None


def slower(*, k: torch.Tensor, processors: int) -> Optional[str]:
    """Where the kernel of the forward pass would not be faster: both ways launch one kernel, PyTorch sooner."""
    heads = k.shape[0] * k.shape[1]
    return f'{heads} heads of all items leave some of {processors} processors idle' if heads < processors else None


def _fake(q, k, v, scale):
    return q.new_empty(q.shape)


OPERATORS = Operators(__name__, limits, _fake, slower=slower)


def prepare(q, k, v, scale) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Check the arguments of `class_attention` and bring them into the operator's order."""
    check_floating('class_attention', q=q, k=k, v=v)
    if k.ndim != 4 or k.shape != v.shape:
        raise ValueError(f'class_attention: k and v must be (B, H, L, D), got {tuple(k.shape)} and {tuple(v.shape)}')
    B, H, L, D = k.shape
    if tuple(q.shape) != (B, H, 1, D):
        raise ValueError(f'class_attention: q must be {(B, H, 1, D)} for k {tuple(k.shape)}, got {tuple(q.shape)}')
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f'class_attention: q, k and v must be of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}')
    if not L:
        raise ValueError(f'class_attention: k {tuple(k.shape)} has no tokens to attend to')
    return q, k, v, float(scale)


def class_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Attend from one query per head.

    Args:
        q: (B, H, 1, D).
        k: Keys (B, H, L, D).
        v: Values (B, H, L, D).
        scale: Factor of the scores.

    Returns:
        softmax(scale · q kᵀ) v (B, H, 1, D).

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    return OPERATORS(*prepare(q, k, v, scale))
