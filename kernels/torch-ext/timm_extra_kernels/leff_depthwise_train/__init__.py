"""The depthwise stage of LeFF in training: the affines are BatchNorms by the statistics of the batch."""

from typing import Any, Tuple

import torch

from .._register import Operators
from .._tiles import compute_dtype
from ..leff_depthwise import check, limits

__all__ = ['leff_depthwise_train']


def _fake(x, weight, bias, H, W, gamma1, beta1, gamma2, beta2, eps):
    statistics = (x.new_empty(x.shape[2], dtype=compute_dtype(x)) for _ in range(4))
    return x.new_empty(x.shape), *statistics, x.new_empty(x.shape)


OPERATORS = Operators(__name__, limits, _fake, outputs=('y', 'mean1', 'var1', 'mean2', 'var2', 'z'), returned=5)


def prepare(x, weight, bias, grid, gamma1, beta1, gamma2, beta2, eps) -> Tuple[Any, ...]:
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
        gamma1: Scale of the first norm (C,).
        beta1: Shift of the first norm (C,).
        gamma2: Scale of the second norm (C,).
        beta2: Shift of the second norm (C,).
        eps: Added to the variances.

    Returns:
        GELU(norm(conv(GELU(norm(x))))) (B, H·W, C); then mean and biased variance over all tokens, of x and of the
        convolution, (C,) each in float32, or in float64 for x in float64.

    Raises:
        ValueError: A shape, dtype or device does not fit, or there is only one token; the message names it.
    """
    return OPERATORS(*prepare(x, weight, bias, grid, gamma1, beta1, gamma2, beta2, eps))
