"""Locally-enhanced feed-forward (LeFF) of CeiT."""

from typing import Tuple

import torch
from timm.layers import get_act_layer
from torch import nn

from .fuse import fold_batchnorm


class LeFF(nn.Module):
    """Feed-forward whose hidden tokens meet their neighbours: linear, depthwise convolution on the grid, linear.

    Tokens stay channels-last from end to end: the convolution and the BatchNorms work on a transposed view of
    (B, H·W, C) memory, so nothing is permuted.

    Source: arXiv:2103.11816 section 3.2; order of the layers as in `ceit_model.py` of coeusguo/ceit at 44c16d3
    (1×1 convolutions there are the linear layers here).

    Args:
        dim: Channels C in and out.
        hidden_dim: Channels between the linear layers.
        kernel_size: Odd side k of the depthwise kernel, in tokens.
        use_bn: BatchNorm after each of the three layers.
        out_act: A third activation, after the last BatchNorm (the article's code has it, the official one does not).
        act_layer: Activation, by class or by timm's name.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `kernel_size` is even or not positive, or `hidden_dim` is not positive.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        kernel_size: int = 3,
        use_bn: bool = True,
        out_act: bool = False,
        act_layer=nn.GELU,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'LeFF kernel size must be odd and positive, got {kernel_size}')
        if hidden_dim < 1:
            raise ValueError(f'LeFF hidden channels (dim × mlp_ratio) must be at least 1, got {hidden_dim}')
        act = get_act_layer(act_layer)

        def bn(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, **dd) if use_bn else nn.Identity()

        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.bn1 = bn(hidden_dim)
        self.act1 = act()
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, kernel_size, padding=kernel_size // 2, groups=hidden_dim, **dd)
        self.bn2 = bn(hidden_dim)
        self.act2 = act()
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)
        self.bn3 = bn(dim)
        self.act3 = act() if out_act else nn.Identity()

    def forward(self, x: torch.Tensor, grid: Tuple[int, int]) -> torch.Tensor:
        """Transform patch tokens.

        Args:
            x: Patch tokens (B, H·W, C), row by row, without the class token.
            grid: (H, W).

        Returns:
            (B, H·W, C).
        """
        H, W = grid
        B = x.shape[0]
        # patches sliced off behind a class token are copied here, four times cheaper than adding the bias afterwards
        x = self.fc1(x.contiguous())
        x = x.transpose(1, 2).reshape(B, x.shape[2], H, W)  # (B, hidden, H, W), a view
        x = self.act1(self.bn1(x))
        x = self.act2(self.bn2(self.conv(x)))
        x = self.fc2(x.flatten(2).transpose(1, 2))
        x = x.transpose(1, 2).reshape(B, x.shape[2], H, W)  # (B, C, H, W), a view
        x = self.act3(self.bn3(x))
        return x.flatten(2).transpose(1, 2)  # (B, H·W, C)

    def fuse(self) -> nn.Module:
        """Fold the BatchNorms into the layers before them, for inference.

        Returns:
            This module, without BatchNorms.

        Raises:
            RuntimeError: The module is in training mode, where the statistics are the batch's.
        """
        for layer, norm in (('fc1', 'bn1'), ('conv', 'bn2'), ('fc2', 'bn3')):
            fold_batchnorm(self, layer, norm)
        return self
