"""Filters of a stem that begin uncorrelated."""

import torch
from torch import nn
from torch.nn.functional import unfold


@torch.no_grad()
def whiten(conv: nn.Conv2d, inputs: torch.Tensor, floor: float = 1e-4) -> None:
    """Begin with filters whose responses to a batch are uncorrelated and of variance 1.

    Most of the variance of neighbourhoods is brightness; edges, and what moves, are in what is left.

    Args:
        conv: Layer to initialise; filters beyond the number of its inputs stay as they are.
        inputs: (B, in_channels, H, W).
        floor: Added to all variances, as a part of the largest: what lies below is noise.
    """
    patches = unfold(inputs, conv.kernel_size).transpose(1, 2).flatten(0, 1).double()  # (B·N, in_channels·9)
    variance, axes = torch.linalg.eigh(patches.T.cov())
    filters = (axes / (variance + floor * variance[-1]).sqrt()).T.flip(0)[: len(conv.weight)].to(conv.weight)
    conv.weight[: len(filters)] = filters.view(-1, *conv.weight.shape[1:])
    conv.bias[: len(filters)] = -filters @ patches.mean(0).to(filters)
