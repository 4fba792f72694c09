"""Inputs on which `fourier_cross_attention` is tested, compiled and measured."""

import math

import torch

from .._cases import LIBRARY, MATMUL, Benchmark, Case, Route, Sweep, Work, randn
from ..latent_cross_attention.cases import as_attention, normalised, zero_padded
from ..latent_cross_attention.naive import forward as attend
from .naive import tokens


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator; a size F of features holds for every axis of S, or for the one it is given for."""
    sizes = case.sizes
    spatial = sizes['S'] if 'S' in sizes else (sizes['Y'], sizes['X'])
    features = sizes['F'] if isinstance(sizes['F'], (list, tuple)) else [sizes['F']] * len(spatial)
    B, c = sizes['B'], sizes['c']
    axes = [randn((s, f), dtype, device) for s, f in zip(spatial, features)]
    content = randn((B, c, *spatial), dtype, device)
    C = c + sum(features)
    q = randn((sizes.get('Q', B), sizes.get('H', 1), sizes['M'], C), dtype, device) * sizes.get('factor', 1.0)
    mask = randn((B, *spatial), torch.float32, device) > -0.5 if sizes.get('mask') else None
    return q, content, axes, C**-0.5, sizes.get('eps', 1e-5), mask


def work(q, content, axes, scale, eps, mask) -> Work:
    """What it takes at least, with shapes in the place of tensors.

    Separated: every position costs products with its content and its mean, the features cost those with their tables.
    """
    B, c, *spatial = content
    rows = B * q[1] * q[2]
    scores = rows * math.prod(spatial)
    return Work(flops=4 * (scores * (c + 1) + rows * sum(size * features for size, features in axes)), special=scores)


def example(device):
    """Arguments of the public function as in `perceiver_base`, for one image."""
    q, content = torch.empty(1, 1, 512, 261, device=device), torch.empty(1, 3, 224, 224, device=device)
    return (q, content, [torch.empty(224, 129, device=device) for _ in range(2)]), dict(scale=0.1)


def _with_tokens(q, content, axes, scale, eps, mask):
    """The arguments as those of `latent_cross_attention`."""
    return q, tokens(content, axes), scale, eps, None if mask is None else mask.flatten(1)


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
BENCHMARK = Benchmark(
    COMPILED,
    routes=dict(library=Route(LIBRARY, lambda *args: zero_padded(*_with_tokens(*args)))),
    attention=lambda *args: as_attention(*_with_tokens(*args)),
    forward_routes=dict(matmul=Route(MATMUL, attend, lambda *args: normalised(*_with_tokens(*args)))),
    sweep=Sweep(
        dict(B=1, M=128, c=3, S=(112, 112), F=33),
        {
            'pixels': {s * s: dict(S=(s, s)) for s in (28, 56, 112, 224, 448)},
            'M': {m: dict(M=m) for m in (32, 128, 512)},
            'F': {f: dict(F=f) for f in (9, 33, 129)},
        },
        model=dict(B=1, M=256, c=3, S=(112, 112), F=129),
    ),
    # four million positions, whose tokens alone would take 2 GB
    memory=Case('2048x2048', dict(B=1, M=512, c=3, S=(2048, 2048), F=129)),
)
