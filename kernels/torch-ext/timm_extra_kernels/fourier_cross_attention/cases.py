"""Inputs on which `fourier_cross_attention` is tested, compiled and measured."""

from typing import List, Optional

import torch

from .._cases import Case, randn
from ..latent_cross_attention.cases import definition as attend


def tokens(content: torch.Tensor, axes: List[torch.Tensor]) -> torch.Tensor:
    """Tokens (B, N, C), built in full."""
    B, _, *sizes = content.shape
    parts = [content.movedim(1, -1)]
    for i, table in enumerate(axes):
        along = table[tuple(slice(None) if j == i else None for j in range(len(sizes)))]
        parts.append(along.expand(B, *sizes, -1))
    return torch.cat(parts, -1).flatten(1, -2)


def definition(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: List[torch.Tensor],
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
) -> torch.Tensor:
    """softmax(scale · q x̂ᵀ) x̂ with every matrix in full; zeros where nothing is attended to."""
    return attend(q, tokens(content, axes), scale, eps, None if mask is None else mask.flatten(1))


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator; a size F of features holds for every axis of S, or for the one it is given for."""
    sizes = case.sizes
    spatial = sizes['S'] if 'S' in sizes else [sizes[name] for name in ('T', 'Y', 'X') if sizes.get(name)]
    features = sizes['F'] if isinstance(sizes['F'], (list, tuple)) else [sizes['F']] * len(spatial)
    B, c = sizes['B'], sizes['c']
    axes = [randn((s, f), dtype, device) for s, f in zip(spatial, features)]
    content = randn((B, c, *spatial), dtype, device)
    C = c + sum(features)
    q = randn((sizes.get('Q', B), sizes.get('H', 1), sizes['M'], C), dtype, device) * sizes.get('factor', 1.0)
    mask = randn((B, *spatial), torch.float32, device) > -0.5 if sizes.get('mask') else None
    return q, content, axes, C**-0.5, sizes.get('eps', 1e-5), mask


def backward_args(grad, args, outs):
    """Arguments of the backward operator, for the gradients of all inputs."""
    q, content, axes, scale, eps, mask = args
    return grad, q, content, axes, *outs, scale, eps, mask, True


CASES = [
    Case('image', dict(B=2, M=5, c=3, S=(5, 19), F=6)),
    Case('one position', dict(B=1, M=1, c=1, S=(1, 1), F=1)),
    Case('one channel, query and column', dict(B=1, M=1, c=1, S=(3, 1), F=1)),
    Case('odd, shared queries', dict(B=3, Q=1, H=2, M=9, c=5, S=(7, 13), F=(4, 3))),
    Case('masked', dict(B=2, H=2, M=7, c=2, S=(11, 7), F=5, mask=True)),
    Case('as it is', dict(B=2, M=17, c=3, S=(3, 17), F=4, eps=None)),
    Case('one axis, large scores', dict(B=2, M=3, c=1, S=(83,), F=12, factor=30.0)),
    Case('three axes', dict(B=1, M=3, c=2, S=(2, 3, 17), F=(3, 2, 4), mask=True)),
    Case('many channels', dict(B=1, M=4, c=11, S=(3, 5), F=6)),
]
SIZES = dict(B=(1, 3), H=(1, 2), M=(1, 20), c=(1, 12), Y=(1, 6), X=(1, 20), F=(1, 6))
COMPILED = [
    Case('perceiver 261', dict(B=64, M=512, c=3, S=(224, 224), F=129)),
    Case('conv stem 322', dict(B=64, M=512, c=64, S=(56, 56), F=129)),
    Case('masked, shared queries', dict(B=64, Q=1, M=512, c=3, S=(224, 224), F=129, mask=True)),
    Case('audio', dict(B=8, M=512, c=1, S=(10240,), F=385)),
    Case('video', dict(B=2, M=512, c=3, S=(16, 224, 224), F=(129, 129, 129))),
]
