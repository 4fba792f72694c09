"""The depthwise stage of LeFF: affine, GELU, depthwise convolution on the grid of tokens, affine, GELU."""

from typing import Any, Dict, Optional, Tuple

import torch

from .._checks import check_floating
from .._register import Operators

__all__ = ['leff_depthwise']


def limits(*, weight: torch.Tensor) -> Optional[str]:
    """What the kernels cannot do."""
    k = weight.shape[-1]
    return None if k in (3, 5) else f'a {k}×{k} convolution has no kernel, only 3×3 and 5×5'


def slower(*, x: torch.Tensor, weight: torch.Tensor, H: int, W: int, processors: int) -> Optional[str]:
    """Where the kernel of the forward pass would not be faster: few programs that each walk over many rows.

    A program waits for memory once a row. PyTorch's form has 5 launches in float32 and 8 casts more in half precision,
    and each waits twice, for its launch and for memory. Counted, not measured.
    """
    programs = x.shape[0] * -(-x.shape[2] // 32) * -(-W // 14)
    launches = 5 if x.dtype == torch.float32 else 13
    if programs >= processors or H + weight.shape[-1] // 2 <= 2 * launches:
        return None
    return f'{programs} programs would walk over {H} rows each and leave some of {processors} processors idle'


def _fake(x, weight, bias, H, W, scale1, shift1, scale2, shift2):
    return x.new_empty(x.shape)


OPERATORS = Operators(__name__, limits, _fake, slower=slower)


def check(op: str, x: torch.Tensor, weight: torch.Tensor, grid: Tuple[int, int], vectors: Dict[str, Any]) -> None:
    """Refuse what does not fit together, for the operation of that name.

    Raises:
        ValueError: Names the argument and its shape, dtype or device.
    """
    check_floating(op, x=x, weight=weight, **vectors)
    if x.ndim != 3 or x.shape[1] != grid[0] * grid[1]:
        raise ValueError(f'{op}: x must be (B, {grid[0]}·{grid[1]}, C) for the grid, got {tuple(x.shape)}')
    C, k = x.shape[2], weight.shape[-1]
    if tuple(weight.shape) != (C, 1, k, k) or k % 2 == 0:
        raise ValueError(f'{op}: weight must be ({C}, 1, k, k) with an odd k, got {tuple(weight.shape)}')
    for label, vector in vectors.items():
        if tuple(vector.shape) != (C,):
            raise ValueError(f'{op}: {label} must be ({C},), got {tuple(vector.shape)}')


def prepare(x, weight, bias, grid, scale1, shift1, scale2, shift2) -> Tuple[Any, ...]:
    """Check the arguments of `leff_depthwise` and bring them into the operator's order."""
    vectors = dict(bias=bias, scale1=scale1, shift1=shift1, scale2=scale2, shift2=shift2)
    check('leff_depthwise', x, weight, grid, vectors)
    return x, weight, bias, *grid, scale1, shift1, scale2, shift2


def leff_depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    grid: Tuple[int, int],
    scale1: torch.Tensor,
    shift1: torch.Tensor,
    scale2: torch.Tensor,
    shift2: torch.Tensor,
) -> torch.Tensor:
    """Scale, activate, convolve depthwise, scale and activate tokens that stay channels-last.

    Computed in float32 for tokens in half precision, whatever the dtype of the rest.

    Args:
        x: Tokens (B, H·W, C), row by row.
        weight: Depthwise kernels (C, 1, k, k), k odd.
        bias: (C,).
        grid: (H, W); the convolution pads it with k // 2 zeros, after the first activation.
        scale1: Scale before the first GELU (C,).
        shift1: Shift before the first GELU (C,).
        scale2: Scale before the second GELU (C,).
        shift2: Shift before the second GELU (C,).

    Returns:
        GELU(conv(GELU(x · scale1 + shift1)) · scale2 + shift2) (B, H·W, C).

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    return OPERATORS(*prepare(x, weight, bias, grid, scale1, shift1, scale2, shift2))
