"""Projectors and predictors."""

import itertools
from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import nn

HEAD_NORMS = ('batch', 'group')
GROUPS = 16  # of the paper without batch statistics


class StandardizedLinear(nn.Linear):
    """Linear layer whose weight has mean 0 and variance 1 / in_features for every output, times a learned gain.

    Weight standardisation (https://arxiv.org/abs/1903.10520) as `timm.layers.ScaledStdConv2d` has it for convolutions.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.gain = nn.Parameter(torch.ones(out_features, 1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in_features) to (…, out_features)."""
        weight = self.weight - self.weight.mean(1, keepdim=True)
        scale = (weight.square().sum(1, keepdim=True) + 1e-6).rsqrt()
        return F.linear(x, weight * scale * self.gain, self.bias)


def mlp(
    sizes: Sequence[int],
    *,
    norm: str = 'batch',
    bias: bool = True,
    last_norm: bool = False,
    last_bias: Optional[bool] = None,
    device: Optional[torch.device] = None,
    dtype: Optional[torch.dtype] = None,
) -> nn.Sequential:
    """Linear layers with a norm and ReLU between them.

    Args:
        sizes: Features of the input and after every linear layer.
        norm: 'batch', or 'group' with standardised weights.
        bias: Biases of the layers that a norm follows.
        last_norm: End with a norm that learns neither scale nor shift.
        last_bias: Bias of the last layer; as the others when None.
        device: Device.
        dtype: Dtype.

    Returns:
        Layers from (B, sizes[0]) to (B, sizes[-1]).

    Raises:
        ValueError: `norm` is unknown, a size is no positive integer, or group norm cannot divide it.
    """
    if norm not in HEAD_NORMS:
        raise ValueError(f'head_norm must be one of {", ".join(HEAD_NORMS)}, got {norm!r}')
    for size in sizes:
        if type(size) is not int or size < 1:
            raise ValueError(f'sizes of heads must be positive integers, got {size!r}')
    dd = dict(device=device, dtype=dtype)
    linear = nn.Linear if norm == 'batch' else StandardizedLinear

    def normalise(size: int, affine: bool) -> nn.Module:
        if norm == 'batch':
            return nn.BatchNorm1d(size, affine=affine, **dd)
        if size % GROUPS or size == GROUPS:
            raise ValueError(f"head_norm='group' needs multiples of {GROUPS}, from {2 * GROUPS} on, got {size}")
        return nn.GroupNorm(GROUPS, size, affine=affine, **dd)

    layers: List[nn.Module] = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [linear(before, after, bias=bias, **dd), normalise(after, True), nn.ReLU(inplace=True)]
    last = bias if last_bias is None else last_bias
    layers.append(linear(sizes[-2], sizes[-1], bias=last, **dd))
    if last_norm:
        layers.append(normalise(sizes[-1], False))
    return nn.Sequential(*layers)
