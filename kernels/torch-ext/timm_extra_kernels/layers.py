"""The operations as stateless layers, for `kernels.kernelize` to put in the place of functions of equal signature."""

from typing import Optional, Sequence, Tuple

import torch
from torch import nn

from .class_attention import class_attention
from .fourier_cross_attention import fourier_cross_attention
from .latent_cross_attention import latent_cross_attention
from .leff_depthwise import leff_depthwise
from .leff_depthwise_train import leff_depthwise_train

__all__ = ['ClassAttention', 'FourierCrossAttention', 'LatentCrossAttention', 'LeFFDepthwise', 'LeFFDepthwiseTrain']


class ClassAttention(nn.Module):
    """`class_attention`."""

    has_backward = True
    can_torch_compile = True

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
        return class_attention(q, k, v, scale=scale)


class LatentCrossAttention(nn.Module):
    """`latent_cross_attention`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        q: torch.Tensor,
        x: torch.Tensor,
        *,
        scale: float,
        eps: Optional[float] = 1e-5,
        mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        return latent_cross_attention(q, x, scale=scale, eps=eps, mask=mask)


class FourierCrossAttention(nn.Module):
    """`fourier_cross_attention`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        q: torch.Tensor,
        content: torch.Tensor,
        axes: Sequence[torch.Tensor],
        *,
        scale: float,
        eps: Optional[float] = 1e-5,
        mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        return fourier_cross_attention(q, content, axes, scale=scale, eps=eps, mask=mask)


class LeFFDepthwise(nn.Module):
    """`leff_depthwise`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
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
        return leff_depthwise(x, weight, bias, grid=grid, scale1=scale1, shift1=shift1, scale2=scale2, shift2=shift2)


class LeFFDepthwiseTrain(nn.Module):
    """`leff_depthwise_train`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
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
        return leff_depthwise_train(
            x, weight, bias, grid=grid, gamma1=gamma1, beta1=beta1, gamma2=gamma2, beta2=beta2, eps=eps
        )
