"""Folding BatchNorms into the layers before them."""

from copy import deepcopy
from typing import Dict

import torch
from torch import nn

from timm_extra.layers.linear import is_linear


def fold_batchnorms(owner: nn.Module, norms: Dict[str, str]) -> None:
    """Fold BatchNorms into the convolutions or linear layers before them and put identities in their place.

    Their running statistics are folded, in training mode too, as timm's models do: what comes out is the model of
    evaluation mode.

    Args:
        owner: Module that holds them all.
        norms: Name of the BatchNorm by the name of its `nn.Conv2d` or `nn.Linear`; nothing happens where there is none.

    Raises:
        ValueError: A BatchNorm has no running statistics, or a layer no plain weight; nothing is folded then.
    """
    norms = {layer: norm for layer, norm in norms.items() if not isinstance(getattr(owner, norm), nn.Identity)}
    for norm in norms.values():
        if getattr(getattr(owner, norm), 'running_mean', None) is None:
            kind = type(getattr(owner, norm)).__name__
            raise ValueError(f'{type(owner).__name__}.{norm}, a {kind}, has no running statistics to fold')
    for layer in norms:
        before = getattr(owner, layer)
        known = type(before) is nn.Conv2d or is_linear(before)
        if not known or not isinstance(before._parameters.get('weight'), nn.Parameter):
            kind = type(before).__name__
            raise ValueError(f'{type(owner).__name__}.{layer}, a {kind}, has no plain weight to fold a BatchNorm into')
    for layer, norm in norms.items():
        setattr(owner, layer, _folded(getattr(owner, layer), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


@torch.no_grad()
def _folded(layer: nn.Module, bn: nn.Module) -> nn.Module:
    """A copy of a layer that does what its BatchNorm did too; parameters that were frozen stay so."""
    folded = deepcopy(layer)
    scale = (bn.running_var + bn.eps).rsqrt() * (1.0 if bn.weight is None else bn.weight)
    shift = -bn.running_mean if layer.bias is None else layer.bias - bn.running_mean
    shift = shift * scale + (0.0 if bn.bias is None else bn.bias)
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    trained = (layer.weight if layer.bias is None else layer.bias).requires_grad
    folded.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    folded.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=trained)
    return folded
