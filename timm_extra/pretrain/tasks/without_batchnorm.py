"""Models without batch statistics."""

import copy

from timm.layers import BatchNormAct2d, GroupNormAct, ScaledStdConv2d
from torch import nn


def without_batchnorm(model: nn.Module, groups: int = 16) -> nn.Module:
    """A copy with group norm for batch norm, and standardised weights in the convolutions.

    As in "BYOL works even without batch statistics" (https://arxiv.org/abs/2010.10241), 16 groups there. Weights,
    scales and shifts are kept; convolutions whose inputs per output are fewer than two (depthwise 1×1), or that
    pad with other than zeros, stay.

    Args:
        model: Model with BatchNorm.
        groups: Groups of channels with statistics of their own; fewer where they do not divide a layer's channels.

    Returns:
        The copy.

    Raises:
        ValueError: `groups` is not positive, or the model has no BatchNorm.
    """
    if groups < 1:
        raise ValueError(f'groups must be positive, got {groups}')
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ValueError(f'{type(model).__name__} has no BatchNorm to replace')
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _group_norm(child, groups))
            elif type(child) is nn.Conv2d and child.weight[0].numel() > 1 and child.padding_mode == 'zeros':
                setattr(parent, name, _standardised(child))
    return model


def _group_norm(norm: nn.Module, groups: int) -> nn.Module:
    groups = next(g for g in range(min(groups, norm.num_features), 0, -1) if norm.num_features % g == 0)
    tensor = norm.weight if norm.affine else norm.running_mean
    dd = dict(device=tensor.device, dtype=tensor.dtype) if tensor is not None else {}
    if isinstance(norm, BatchNormAct2d):
        new = GroupNormAct(norm.num_features, num_groups=groups, eps=norm.eps, affine=norm.affine, **dd)
        new.drop, new.act = norm.drop, norm.act
    else:
        new = nn.GroupNorm(groups, norm.num_features, eps=norm.eps, affine=norm.affine, **dd)
    if norm.affine:
        new.weight, new.bias = norm.weight, norm.bias
    return new.train(norm.training)


def _standardised(conv: nn.Conv2d) -> nn.Module:
    new = ScaledStdConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    new.weight, new.bias = conv.weight, conv.bias
    return new.train(conv.training)
