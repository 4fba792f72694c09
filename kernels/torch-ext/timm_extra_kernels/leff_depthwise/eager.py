"""The depthwise stage of LeFF with given affines, in plain PyTorch."""

from typing import Tuple

import torch

from .._tiles import compute_dtype

aten = torch.ops.aten
Gradients = Tuple[(torch.Tensor,) * 7]


def as_map(x: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Tokens (B, H·W, C) as a map (B, C, H, W): a view in the channels-last format."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], H, W)


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    """A map (B, C, H, W) in the channels-last format as tokens (B, H·W, C)."""
    return x.flatten(2).transpose(1, 2).contiguous()


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    scale1: torch.Tensor, shift1: torch.Tensor, scale2: torch.Tensor, shift2: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """GELU(conv(GELU(x · scale1 + shift1)) · scale2 + shift2), padded with zeros.

    Args:
        x: Tokens (B, H·W, C).
        weight: (C, 1, k, k), k odd.
        bias: (C,).
        H: Rows of the grid.
        W: Columns of the grid.
        scale1: (C,).
        shift1: (C,).
        scale2: (C,).
        shift2: (C,).

    Returns:
        (B, H·W, C).
    """
    exact = compute_dtype(x)
    args = (t.to(exact) for t in (x, weight, bias, scale1, shift1, scale2, shift2))
    wide, weight, bias, scale1, shift1, scale2, shift2 = args
    h = aten.gelu_(torch.addcmul(shift1, wide, scale1))
    z = as_tokens(depthwise(as_map(h, H, W), weight, bias))
    return aten.gelu_(torch.addcmul(shift2, z, scale2, out=z)).to(x.dtype)


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    scale1: torch.Tensor, shift1: torch.Tensor, scale2: torch.Tensor, shift2: torch.Tensor,
) -> Gradients:  # fmt: skip
    """Gradients of `forward`, from activations computed again.

    Args:
        grad: Gradient of the output (B, H·W, C).
        x: As in `forward`.
        weight: As in `forward`.
        bias: As in `forward`.
        H: As in `forward`.
        W: As in `forward`.
        scale1: As in `forward`.
        shift1: As in `forward`.
        scale2: As in `forward`.
        shift2: As in `forward`.

    Returns:
        Gradients of x (B, H·W, C), weight (C, 1, k, k), bias, scale1, shift1, scale2 and shift2 (C,).
    """
    like = x, weight, bias, scale1, shift1, scale2, shift2
    exact = compute_dtype(x)
    grad, x, weight, bias, scale1, shift1, scale2, shift2 = (t.to(exact) for t in (grad, *like))
    u = torch.addcmul(shift1, x, scale1)
    h = aten.gelu(u)
    z = as_tokens(depthwise(as_map(h, H, W), weight, bias))
    dv = aten.gelu_backward(grad, torch.addcmul(shift2, z, scale2))
    dshift2 = dv.sum((0, 1))
    dscale2 = z.mul_(dv).sum((0, 1))
    dh, dweight = depthwise_backward(as_map(dv.mul_(scale2), H, W), as_map(h, H, W), weight)
    du = aten.gelu_backward(as_tokens(dh), u)
    dshift1 = du.sum((0, 1))
    dscale1 = torch.mul(x, du, out=h).sum((0, 1))
    grads = du.mul_(scale1), dweight, dshift2 * scale2, dscale1, dshift1, dscale2, dshift2
    return tuple(g.to(t.dtype).contiguous() for g, t in zip(grads, like))


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolution of a map (B, C, H, W) with one kernel (C, 1, k, k) per channel, as large as the map."""
    C, _, _, k = weight.shape
    return torch.conv2d(x, weight, bias, padding=k // 2, groups=C)


def depthwise_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the input and the weight of `depthwise`."""
    C, _, _, k = weight.shape
    padding = [k // 2, k // 2]
    wanted = [True, True, False]
    return aten.convolution_backward(grad, x, weight, [C], [1, 1], padding, [1, 1], False, [0, 0], C, wanted)[:2]
