"""The depthwise stage of LeFF in training, in plain PyTorch."""

from typing import Tuple

import torch

from .._tiles import compute_dtype
from ..leff_depthwise.eager import Gradients, as_map, as_tokens, depthwise, depthwise_backward

aten = torch.ops.aten
Outputs = Tuple[(torch.Tensor,) * 6]


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    gamma1: torch.Tensor, beta1: torch.Tensor, gamma2: torch.Tensor, beta2: torch.Tensor, eps: float,
) -> Outputs:  # fmt: skip
    """GELU(norm(conv(GELU(norm(x))))), padded with zeros, each norm by the statistics of all tokens.

    Args:
        x: Tokens (B, H·W, C).
        weight: (C, 1, k, k), k odd.
        bias: (C,).
        H: Rows of the grid.
        W: Columns of the grid.
        gamma1: (C,).
        beta1: (C,).
        gamma2: (C,).
        beta2: (C,).
        eps: Added to the variances.

    Returns:
        (B, H·W, C), mean and biased variance (C,) of x and of the convolution, and the convolution (B, H·W, C), which
        the backward pass needs.
    """
    exact = compute_dtype(x)
    h, mean1, var1 = _norm(as_map(x.to(exact), H, W), gamma1, beta1, eps)
    z = as_tokens(depthwise(aten.gelu_(h), weight.to(exact), bias.to(exact))).to(x.dtype)
    y, mean2, var2 = _norm(as_map(z.to(exact), H, W), gamma2, beta2, eps)
    return as_tokens(aten.gelu_(y)).to(x.dtype), mean1, var1, mean2, var2, z


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    gamma1: torch.Tensor, beta1: torch.Tensor, gamma2: torch.Tensor, beta2: torch.Tensor, eps: float,
    mean1: torch.Tensor, var1: torch.Tensor, mean2: torch.Tensor, var2: torch.Tensor, z: torch.Tensor,
) -> Gradients:  # fmt: skip
    """Gradients of the first output of `forward`, from activations computed again.

    Args:
        grad: Gradient of the output (B, H·W, C).
        x: As in `forward`.
        weight: As in `forward`.
        bias: As in `forward`.
        H: As in `forward`.
        W: As in `forward`.
        gamma1: As in `forward`.
        beta1: As in `forward`.
        gamma2: As in `forward`.
        beta2: As in `forward`.
        eps: As in `forward`.
        mean1: As returned by `forward`, like those that follow.
        var1: (C,).
        mean2: (C,).
        var2: (C,).
        z: (B, H·W, C).

    Returns:
        Gradients of x (B, H·W, C), weight (C, 1, k, k), bias, gamma1, beta1, gamma2 and beta2 (C,).
    """
    like = x, weight, bias, gamma1, beta1, gamma2, beta2
    exact = compute_dtype(x)
    grad, x, z = (as_map(t.to(exact), H, W) for t in (grad, x, z))
    v = _norm_again(z, gamma2, beta2, mean2, var2, eps)
    dv = aten.gelu_backward.grad_input(grad, v, grad_input=v)
    dz, dgamma2, dbeta2 = _norm_backward(dv, z, gamma2, mean2, var2, eps)
    u = _norm_again(x, gamma1, beta1, mean1, var1, eps)
    dh, dweight = depthwise_backward(dz, aten.gelu(u), weight.to(exact))
    du = aten.gelu_backward.grad_input(dh, u, grad_input=u)
    dx, dgamma1, dbeta1 = _norm_backward(du, x, gamma1, mean1, var1, eps)
    grads = as_tokens(dx), dweight, dbeta2 * 0.0, dgamma1, dbeta1, dgamma2, dbeta2  # the mean takes the bias away
    return tuple(g.to(t.dtype).contiguous() for g, t in zip(grads, like))


def _norm(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised map, mean and biased variance."""
    mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    # with a momentum of one the running statistics are the batch's
    out = aten.native_batch_norm(x, gamma.to(x.dtype), beta.to(x.dtype), mean, var, True, 1.0, eps)[0]
    count = x.numel() // x.shape[1]
    return out, mean, var * ((count - 1) / count)  # the running variance is the unbiased one


def _norm_again(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float
) -> torch.Tensor:
    return aten.native_batch_norm(x, gamma.to(x.dtype), beta.to(x.dtype), mean, var, False, 0.0, eps)[0]


def _norm_backward(
    grad: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, scale and shift of a norm by its own statistics."""
    statistics = None, None, mean, (var + eps).rsqrt()
    return aten.native_batch_norm_backward(grad, x, gamma.to(x.dtype), *statistics, True, eps, [True, True, True])
