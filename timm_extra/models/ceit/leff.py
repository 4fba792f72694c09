"""Locally-enhanced feed-forward (LeFF) of CeiT."""

from typing import Tuple

import torch
from timm.layers import get_act_layer, is_exportable, register_notrace_module
from timm.layers.activations import GELU
from torch import nn

from timm_extra.layers.linear import is_linear
from timm_extra.layers.shortcuts import may_shortcut
from timm_extra_kernels import leff_depthwise, leff_depthwise_train

from .fuse import fold_batchnorms


@register_notrace_module  # what runs depends on the modules' state
class LeFF(nn.Module):
    """Feed-forward whose hidden tokens meet their neighbours: linear, depthwise convolution on the grid, linear.

    Tokens stay channels-last from end to end: the convolution and the BatchNorms work on a transposed view of
    (B, H·W, C) memory, so nothing is permuted. Between the linear layers everything is one operation
    (`leff_depthwise`, in training `leff_depthwise_train`) where its layers are plain ones: BatchNorms in the same mode,
    exact GELUs and no hooks; not in TorchScript, in traces and under transforms of `torch.func`, nor where timm's
    `set_exportable` held when the layer was made.

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
        self.exportable = is_exportable()  # as in `timm.create_model(…, exportable=True)`

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
        # patches sliced off behind a class token are copied here, four times cheaper than adding the bias afterwards
        x = self.fc1(x.contiguous())  # (B, H·W, hidden)
        if torch.jit.is_scripting():
            x = self._layer_by_layer(x, grid)
        else:
            x = self._depthwise(x, grid)
        x = self.fc2(x)
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])  # (B, C, H, W), a view
        x = self.act3(self.bn3(x))
        return x.flatten(2).transpose(1, 2)  # (B, H·W, C)

    def _layer_by_layer(self, x: torch.Tensor, grid: Tuple[int, int]) -> torch.Tensor:
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])  # (B, hidden, H, W), a view
        x = self.act1(self.bn1(x))
        x = self.act2(self.bn2(self.conv(x)))
        return x.flatten(2).transpose(1, 2)

    @torch.jit.ignore
    def _depthwise(self, x: torch.Tensor, grid: Tuple[int, int]) -> torch.Tensor:
        """Everything between the linear layers, tokens (B, H·W, hidden) to the same."""
        bn1, bn2, conv = self.bn1, self.bn2, self.conv
        if not self._plain(x):
            return self._layer_by_layer(x, grid)
        if not _fusing_pays(x, isinstance(bn1, nn.Identity)):
            return self._in_place(x, grid) if self._may_overwrite() else self._layer_by_layer(x, grid)
        if bn1.training and isinstance(bn1, nn.BatchNorm2d):
            norms = dict(gamma1=bn1.weight, beta1=bn1.bias, gamma2=bn2.weight, beta2=bn2.bias, eps=bn1.eps)
            x, mean1, var1, mean2, var2 = leff_depthwise_train(x, conv.weight, conv.bias, grid=grid, **norms)
            _track(bn1, mean1, var1, x.shape[0] * x.shape[1])
            _track(bn2, mean2, var2, x.shape[0] * x.shape[1])
            return x
        (scale1, shift1), (scale2, shift2) = _affine(bn1, x), _affine(bn2, x)
        affines = dict(scale1=scale1, shift1=shift1, scale2=scale2, shift2=shift2)
        return leff_depthwise(x, conv.weight, conv.bias, grid=grid, **affines)

    def _in_place(self, x: torch.Tensor, grid: Tuple[int, int]) -> torch.Tensor:
        """`_layer_by_layer` after `fuse`, in the memory of x: on a CPU fresh memory costs as much as half a GELU."""
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])
        x = torch.ops.aten.gelu_(self.conv(torch.ops.aten.gelu_(x)))
        return x.flatten(2).transpose(1, 2)

    def _may_overwrite(self) -> bool:
        """Whether the GELU alone needs the output of `fc1`, so that its memory can be overwritten."""
        alone = is_linear(self.fc1) and may_shortcut(self.fc1)
        return alone and isinstance(self.bn1, nn.Identity) and not torch.is_grad_enabled()

    def _plain(self, x: torch.Tensor) -> bool:
        """Whether the layers between the linear ones do what the operations do."""
        bn1, bn2 = self.bn1, self.bn2
        if self.exportable or not may_shortcut(bn1, self.act1, self.conv, bn2, self.act2):
            return False
        if not _is_depthwise(self.conv) or type(bn1) is not type(bn2):
            return False
        if type(bn1) is nn.BatchNorm2d:
            if bn1.training != bn2.training or not (bn1.affine and bn2.affine):
                return False
            if bn1.training and (bn1.eps != bn2.eps or x.shape[0] * x.shape[1] < 2):
                return False
            if not bn1.training and (bn1.running_mean is None or bn2.running_mean is None):
                return False
        elif type(bn1) is not nn.Identity:
            return False
        return _is_exact_gelu(self.act1) and _is_exact_gelu(self.act2)

    def fuse(self) -> nn.Module:
        """Fold the BatchNorms' running statistics into the layers before them, for inference.

        Returns:
            This module, without BatchNorms.

        Raises:
            ValueError: A BatchNorm has no running statistics.
        """
        fold_batchnorms(self, {'fc1': 'bn1', 'conv': 'bn2', 'fc2': 'bn3'})
        return self


def _fusing_pays(x: torch.Tensor, fused: bool) -> bool:
    """Whether an operation is faster than its layers.

    The operations' backward passes compute activations again, which costs more than it saves where no kernel does it;
    so do affines of 1 and 0 after `LeFF.fuse`.
    """
    return x.is_cuda or not (fused or torch.is_grad_enabled())


def _is_depthwise(conv: nn.Module) -> bool:
    if type(conv) is not nn.Conv2d or conv.bias is None or conv.padding_mode != 'zeros':
        return False
    k = conv.kernel_size[0]
    shape = conv.kernel_size, conv.padding, conv.stride, conv.dilation
    if k % 2 == 0 or shape != ((k, k), (k // 2, k // 2), (1, 1), (1, 1)):
        return False
    return conv.groups == conv.in_channels == conv.out_channels


def _is_exact_gelu(act: nn.Module) -> bool:
    return type(act) is GELU or (type(act) is nn.GELU and act.approximate == 'none')


def _affine(bn: nn.Module, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C,) of a BatchNorm in evaluation mode, or of the identity."""
    if isinstance(bn, nn.Identity):
        return x.new_ones(x.shape[2]), x.new_zeros(x.shape[2])
    dtype = torch.promote_types(bn.running_var.dtype, torch.float32)
    weight, bias, mean, var = (t.to(dtype) for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var))
    scale = (var + bn.eps).rsqrt() * weight
    return scale, torch.addcmul(bias, mean, scale, value=-1)


def _track(bn: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
    """Update running statistics as the BatchNorm itself does, from mean and biased variance of `count` values."""
    if not bn.track_running_stats:
        return
    factor = bn.momentum
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(bn.num_batches_tracked)
    with torch.no_grad():
        bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), factor or 0.0)
        bn.running_var.lerp_((var * (count / (count - 1))).to(bn.running_var.dtype), factor or 0.0)
