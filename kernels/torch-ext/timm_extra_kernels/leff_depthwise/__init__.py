"""The depthwise stage of LeFF: affine, GELU, depthwise convolution on the grid of tokens, affine, GELU."""

from typing import Any, Dict, Optional, Tuple

import torch

from .._checks import check_floating
from .._dispatch import implement, no_second_derivative
from .._ops import add_op_namespace_prefix, ops

__all__ = ['leff_depthwise']

_FORWARD = add_op_namespace_prefix('leff_depthwise')
_BACKWARD = add_op_namespace_prefix('leff_depthwise_backward')
_ARGS = 'Tensor x, Tensor weight, Tensor bias, int H, int W, Tensor scale1, Tensor shift1, Tensor scale2, Tensor shift2'
torch.library.define(_FORWARD, f'({_ARGS}) -> Tensor')
torch.library.define(_BACKWARD, f'(Tensor grad, {_ARGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)')


def limits(*args) -> Optional[str]:
    """What the kernels cannot do."""
    return kernel_limits(args[-8])


def kernel_limits(weight: torch.Tensor) -> Optional[str]:
    """What the kernels cannot convolve with."""
    k = weight.shape[-1]
    return None if k in (3, 5) else f'a {k}×{k} convolution has no kernel, only 3×3 and 5×5'


implement(_FORWARD, __name__, 'forward', limits)
implement(_BACKWARD, __name__, 'backward', limits)


@torch.library.register_fake(_FORWARD)
def _forward_fake(x, weight, bias, H, W, scale1, shift1, scale2, shift2):
    return x.new_empty(x.shape)


@torch.library.register_fake(_BACKWARD)
def _backward_fake(grad, x, weight, bias, H, W, *affines):
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias, *affines))


def _setup_context(ctx, inputs, output):
    x, weight, bias, *ctx.grid = inputs[:5]
    ctx.save_for_backward(x, weight, bias, *inputs[5:])


def _backward(ctx, grad):
    x, weight, bias, *affines = ctx.saved_tensors
    dx, dweight, dbias, *rest = ops.leff_depthwise_backward(grad, x, weight, bias, *ctx.grid, *affines)
    return (dx, dweight, dbias, None, None, *rest)


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context)
torch.library.register_autograd(_BACKWARD, no_second_derivative)


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


def prepare(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    grid: Tuple[int, int],
    scale1: torch.Tensor,
    shift1: torch.Tensor,
    scale2: torch.Tensor,
    shift2: torch.Tensor,
) -> Tuple[Any, ...]:
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
        scale1: Factor before the first GELU (C,).
        shift1: Summand before the first GELU (C,).
        scale2: Factor before the second GELU (C,).
        shift2: Summand before the second GELU (C,).

    Returns:
        GELU(conv(GELU(x · scale1 + shift1)) · scale2 + shift2) (B, H·W, C).

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    affines = dict(scale1=scale1, shift1=shift1, scale2=scale2, shift2=shift2)
    return ops.leff_depthwise(*prepare(x, weight, bias, grid=grid, **affines))
