"""Attention of one query per head, as the class token asks all tokens."""

from typing import Optional, Tuple

import torch

from .._checks import check_floating
from .._dispatch import implement, no_second_derivative
from .._ops import add_op_namespace_prefix, ops

__all__ = ['class_attention']

_FORWARD = add_op_namespace_prefix('class_attention')
_BACKWARD = add_op_namespace_prefix('class_attention_backward')
torch.library.define(_FORWARD, '(Tensor q, Tensor k, Tensor v, float scale) -> Tensor')
torch.library.define(_BACKWARD, '(Tensor grad, Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor, Tensor)')


def limits(*args) -> Optional[str]:
    """What the kernels cannot do."""
    k = args[-2]
    return f'{k.shape[-1]} channels per head are more than 256' if k.shape[-1] > 256 else None


implement(_FORWARD, __name__, 'forward', limits)
implement(_BACKWARD, __name__, 'backward', limits)


@torch.library.register_fake(_FORWARD)
def _forward_fake(q, k, v, scale):
    return q.new_empty(q.shape)


@torch.library.register_fake(_BACKWARD)
def _backward_fake(grad, q, k, v, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    q, k, v, ctx.scale = inputs
    ctx.save_for_backward(q, k, v)


def _backward(ctx, grad):
    return (*ops.class_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None)


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context)
torch.library.register_autograd(_BACKWARD, no_second_derivative)


def prepare(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
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
    return ops.class_attention(*prepare(q, k, v, scale=scale))
