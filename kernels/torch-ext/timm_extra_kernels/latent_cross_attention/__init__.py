"""Cross-attention from few queries to many inputs that serve as keys and as values."""

from typing import Optional, Tuple

import torch

from .._checks import check_mask, check_queries
from .._register import Operators
from .._target import INTERPRETER, describe, target
from .._tiles import compute_dtype
from .tiles import BACKWARD, FORWARD

__all__ = ['latent_cross_attention']


def limits(*, q: torch.Tensor, x: torch.Tensor, grad: Optional[torch.Tensor] = None) -> Optional[str]:
    """What the kernels cannot do, or what PyTorch does with less work.

    Multiply-adds per score of C channels, and bytes per score that go through memory in PyTorch alone:

    - forward, 16 bits: 2 C, on matrix units; 3 C above 512 channels, where two warps compute each score. PyTorch: 2 C,
      in float32, and 32 bytes.
    - backward, 16 bits, up to 512 channels: 7 C, as scores are computed once for q and once for x. PyTorch: 5 C, in
      float32, and 56 bytes. Above, the sums leave no registers, and slices of the channels would make it 51 C.
    - float32, which runs at one rate in both: 2 C and 7 C to 2 C and 5 C. On an H100 the bytes are worth 320 and 560
      multiply-adds. With C = 261 the kernels would have to reach 62 % and 98 % of the rate of a library's product.
      Three products in TF32 for one in float32 spill at 261 channels whatever the tiles: no less than 72 bytes forward
      and 400 backward.
    """
    gpu, channels = describe(target(x.device)), x.shape[-1]
    if channels > FORWARD:
        return f'{channels} channels are more than {FORWARD}'
    if not gpu.unit:
        return f'{gpu.name} has no matrix cores that the kernels use'
    if q.dtype == torch.float32 and gpu.name != INTERPRETER:
        return 'products in float32 take PyTorch less work'
    if grad is not None and channels > BACKWARD:
        return f'{channels} channels are more than the {BACKWARD} of the backward kernels'
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
    where a tensor is; so are the products, but for kernels, which multiply in 16 bits where q has them.

    Args:
        q: Queries (B or 1, H, M, C); with 1 all items of the batch share them.
        x: Inputs (B, N, C).
        scale: Factor of the scores.
        eps: Added to the variance in the layer normalisation of x, which has no affine; None takes x as it is.
        mask: Boolean (B, N), True where an input takes part. One that does not has no influence, NaN or not, and a
            gradient of 0. An item whose mask is False everywhere gives zeros.

    Returns:
        softmax(scale · q x̂ᵀ) x̂ (B, H, M, C), in the dtype of q.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    return OPERATORS(*prepare(q, x, scale, eps, mask)).to(q.dtype)
