"""Cross-attention from few queries to many inputs that serve as keys and as values."""

from typing import Optional, Tuple

import torch

from .._checks import check_mask, check_queries
from .._register import Operators
from .._target import INTERPRETER, describe, target
from .._tiles import compute_dtype

__all__ = ['latent_cross_attention']


def limits(*, q: torch.Tensor, x: torch.Tensor, grad: Optional[torch.Tensor] = None) -> Optional[str]:
    """What the kernels cannot do, or PyTorch does with less work. Multiply-adds per score, of C channels:

    =========  =============  =============================================================================
    direction  PyTorch        kernels
    =========  =============  =============================================================================
    forward    2 C, float32   2 C in 16 bits, on matrix units at 4 to 16 times the rate of float32; above 512 channels
                              mma.sync repeats the scores in half of the warps, which makes it 3 C
    backward   5 C, float32   7 C in 16 bits, scores once for q and once for x, up to 512 channels; above them the sums
                              leave no registers
    =========  =============  =============================================================================

    PyTorch moves 32 more bytes per score forward, 56 backward: scores go through memory. In float32 both sides multiply
    at one rate, and these bytes are worth 4 C multiply-adds at most (C = 261, H100): 2 C and 7 C of a kernel that
    reaches half of a library's rate, as 4 C and 14 C, are not fewer than 2 C and 5 C with them. Three products in TF32
    instead of one in float32 spill at 261 channels, whatever the tiles.
    """
    gpu, channels = describe(target(x.device)), x.shape[-1]
    if channels > 1024:
        return f'{channels} channels are more than 1024'
    if not gpu.unit:
        return f'{gpu.name} has no matrix cores that the kernels use'
    if q.dtype == torch.float32 and gpu.name != INTERPRETER:
        return 'products in float32 take PyTorch less work'
    if grad is not None and channels > 512:
        return f'{channels} channels are more than 512, which is all that the backward kernels hold'
    return None


def _fake(q, x, scale, eps, mask):
    dtype = compute_dtype(q, x)
    shape = (x.shape[0], *q.shape[1:])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape[:-1], dtype=dtype)


OPERATORS = Operators(__name__, limits, _fake, outputs=('out', 'lse'), flags=dict(needs_x=('x',)))


def prepare(
    q, x, scale, eps, mask
) -> Tuple[torch.Tensor, torch.Tensor, float, Optional[float], Optional[torch.Tensor]]:
    """Check the arguments of `latent_cross_attention` and bring them into the operator's order."""
    check_queries('latent_cross_attention', q, 'x', x)
    if x.ndim != 3 or x.shape[-1] != q.shape[-1]:
        raise ValueError(
            f'latent_cross_attention: x must be (B, N, {q.shape[-1]}) for q {tuple(q.shape)}, got {tuple(x.shape)}'
        )
    if not x.shape[1]:
        raise ValueError(f'latent_cross_attention: x {tuple(x.shape)} has no inputs to attend to')
    check_mask('latent_cross_attention', mask, x.shape[:2], x.device)
    return q, x, float(scale), None if eps is None else float(eps), mask


def latent_cross_attention(
    q: torch.Tensor,
    x: torch.Tensor,
    *,
    scale: float,
    eps: Optional[float] = 1e-5,
    mask: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Attend from queries to layer-normalised inputs that are both keys and values.

    Cross-attention with one projection of keys and one of values becomes this when both are folded into the queries
    and the output: scores need q (Wk γ) only, and (softmax · x̂)(γ Wv)ᵀ is the output. Keys and values then never
    exist. Memory is bounded: scores are formed tile by tile. Sums are in float32, or float64
    where a tensor is; so are the products, but for kernels, which multiply in the dtype of q.

    Args:
        q: Queries (B or 1, H, M, C); with 1 all items of the batch share them.
        x: Inputs (B, N, C).
        scale: Factor of the scores.
        eps: Added to the variance in the layer normalisation of x, which has no affine; None takes x as it is.
        mask: Boolean (B, N), True where an input takes part. An item whose mask is False everywhere gives zeros.

    Returns:
        softmax(scale · q x̂ᵀ) x̂ (B, H, M, C), in the dtype of q.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    return OPERATORS(*prepare(q, x, scale, eps, mask)).to(q.dtype)
