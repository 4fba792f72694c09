"""The depthwise stage of LeFF in training: the affines are BatchNorms by the statistics of the batch."""

from typing import Any, Optional, Tuple

import torch

from .._dispatch import implement, no_second_derivative
from .._ops import add_op_namespace_prefix, ops
from .._tiles import compute_dtype
from ..leff_depthwise import check, kernel_limits

__all__ = ['leff_depthwise_train']

_FORWARD = add_op_namespace_prefix('leff_depthwise_train')
_BACKWARD = add_op_namespace_prefix('leff_depthwise_train_backward')
_ARGS = (
    'Tensor x, Tensor weight, Tensor bias, int H, int W, '
    'Tensor gamma1, Tensor beta1, Tensor gamma2, Tensor beta2, float eps'
)
_SAVED = 'Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, Tensor z'
torch.library.define(_FORWARD, f'({_ARGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)')
torch.library.define(
    _BACKWARD, f'(Tensor grad, {_ARGS}, {_SAVED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)'
)


def limits(*args) -> Optional[str]:
    """What the kernels cannot do."""
    return kernel_limits(args[1] if args[1].ndim == 4 else args[2])


implement(_FORWARD, __name__, 'forward', limits)
implement(_BACKWARD, __name__, 'backward', limits)


@torch.library.register_fake(_FORWARD)
def _forward_fake(x, weight, bias, H, W, gamma1, beta1, gamma2, beta2, eps):
    statistics = (x.new_empty(x.shape[2], dtype=compute_dtype(x)) for _ in range(4))
    return x.new_empty(x.shape), *statistics, x.new_empty(x.shape)


@torch.library.register_fake(_BACKWARD)
def _backward_fake(grad, x, weight, bias, H, W, gamma1, beta1, gamma2, beta2, *rest):
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias, gamma1, beta1, gamma2, beta2))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.grid = tensors[3:5]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors[:3], *tensors[5:], *output[1:])


def _backward(ctx, grad, *_):
    x, weight, bias, gamma1, beta1, gamma2, beta2, *saved = ctx.saved_tensors
    params = gamma1, beta1, gamma2, beta2
    dx, dweight, dbias, *rest = ops.leff_depthwise_train_backward(
        grad, x, weight, bias, *ctx.grid, *params, ctx.eps, *saved
    )
    return (dx, dweight, dbias, None, None, *rest, None)


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context)
torch.library.register_autograd(_BACKWARD, no_second_derivative)


def prepare(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    grid: Tuple[int, int],
    gamma1: torch.Tensor,
    beta1: torch.Tensor,
    gamma2: torch.Tensor,
    beta2: torch.Tensor,
    eps: float,
) -> Tuple[Any, ...]:
    """Check the arguments of `leff_depthwise_train` and bring them into the operator's order."""
    vectors = dict(bias=bias, gamma1=gamma1, beta1=beta1, gamma2=gamma2, beta2=beta2)
    check('leff_depthwise_train', x, weight, grid, vectors)
    if x.shape[0] * x.shape[1] < 2:
        raise ValueError(
            f'leff_depthwise_train: statistics need more than one token, got x {tuple(x.shape)} in training'
        )
    return x, weight, bias, *grid, gamma1, beta1, gamma2, beta2, float(eps)


def leff_depthwise_train(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    grid: Tuple[int, int],
    gamma1: torch.Tensor,
    beta1: torch.Tensor,
    gamma2: torch.Tensor,
    beta2: torch.Tensor,
    eps: float,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise by the batch, activate, convolve depthwise, normalise and activate tokens that stay channels-last.

    Computed in float32 for tokens in half precision, whatever the dtype of the rest. Gradients go through the
    statistics, but the statistics returned have none.

    Args:
        x: Tokens (B, H·W, C), row by row.
        weight: Depthwise kernels (C, 1, k, k), k odd.
        bias: (C,).
        grid: (H, W); the convolution pads it with k // 2 zeros, after the first activation.
        gamma1: Factor of the first norm (C,).
        beta1: Summand of the first norm (C,).
        gamma2: Factor of the second norm (C,).
        beta2: Summand of the second norm (C,).
        eps: Added to the variances.

    Returns:
        GELU(norm(conv(GELU(norm(x))))) (B, H·W, C); then mean and biased variance over all tokens, of x and of the
        convolution, (C,) each in float32, or in float64 for x in float64.

    Raises:
        ValueError: A shape, dtype or device does not fit, or there is only one token; the message names it.
    """
    params = dict(gamma1=gamma1, beta1=beta1, gamma2=gamma2, beta2=beta2, eps=eps)
    return ops.leff_depthwise_train(*prepare(x, weight, bias, grid=grid, **params))[:5]
