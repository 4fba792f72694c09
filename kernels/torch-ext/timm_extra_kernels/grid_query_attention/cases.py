"""Inputs on which `grid_query_attention` is tested, compiled and measured."""

import math

import torch
import torch.nn.functional as F

from .._cases import LIBRARY, MATMUL, Benchmark, Case, Route, Sweep, Work, randn
from ..fourier_cross_attention.naive import tokens
from ..latent_cross_attention.eager import normalise


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator; a size F of features holds for every axis of S, or for the one it is given for."""
    sizes = case.sizes
    spatial = sizes['S'] if 'S' in sizes else (sizes['Y'], sizes['X'])
    features = sizes['F'] if isinstance(sizes['F'], (list, tuple)) else [sizes['F']] * len(spatial)
    B, H, M, c = sizes['B'], sizes.get('H', 1), sizes['M'], sizes['c']
    C = c + sum(features)
    axes = [randn((s, f), dtype, device) for s, f in zip(spatial, features)]
    content = randn((sizes.get('Q', B), c, *spatial), dtype, device)
    k = randn((B, H, M, C), dtype, device) * sizes.get('factor', 1.0)
    v, bias = randn((B, H, M, sizes['D']), dtype, device), randn((B, H, M), dtype, device)
    return k, v, content, axes, bias, C**-0.5, sizes.get('eps', 1e-5)


def work(k, v, content, axes, bias, scale, eps) -> Work:
    """What it takes at least, with shapes in the place of tensors.

    Separated: every score costs a product with the content, one with the mean and one with a value, the features cost
    those with their tables.
    """
    B, H, M, D = v
    _, c, *spatial = content
    keys = B * H * M
    scores = keys * math.prod(spatial)
    return Work(2 * (scores * (c + 1 + D) + keys * sum(size * features for size, features in axes)), scores)


def example(device):
    """Arguments of the public function as in `perceiver_io_flow`, for two frames of 64 × 64 pixels."""
    k, v = torch.empty(1, 1, 2048, 322, device=device), torch.empty(1, 1, 2048, 322, device=device)
    tables = [torch.empty(64, 129, device=device) for _ in range(2)]
    return (k, v, torch.empty(1, 64, 64, 64, device=device), tables), dict(scale=0.1)


def as_attention(k, v, content, axes, bias, scale, eps):
    """The arguments as q, k, v, mask and scale of attention in general; the bias as one more channel."""
    q = normalise(tokens(content, axes), eps).unsqueeze(1).expand(*k.shape[:2], -1, -1)
    q = torch.cat([q, torch.ones_like(q[..., :1])], -1)
    return q, torch.cat([k, bias.unsqueeze(-1) / scale], -1), v, None, scale


def _zero_padded(*args):
    """The best that a library has: queries built and normalised, all padded to one width that fused attention takes."""
    q, k, v, _, scale = as_attention(*args)
    width = max(q.shape[-1], v.shape[-1])
    q, k, padded = (F.pad(t, (0, width + -width % 8 - t.shape[-1])) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, padded, scale=scale)[..., : v.shape[-1]]


def _attend(q, k, v, mask, scale):
    return (q @ k.mT * scale).softmax(-1) @ v


CASES = [
    Case('image', dict(B=2, M=5, c=3, S=(5, 19), F=6, D=7)),
    Case('one position', dict(B=1, M=1, c=1, S=(1, 1), F=1, D=1)),
    Case('one key, value and column', dict(B=1, M=1, c=2, S=(3, 1), F=1, D=1)),
    Case('odd, shared content', dict(B=3, Q=1, H=2, M=9, c=5, S=(7, 13), F=(4, 3), D=5)),
    Case('positions alone', dict(B=2, Q=1, H=2, M=7, c=0, S=(11, 7), F=5, D=3)),
    Case('as it is', dict(B=2, M=17, c=3, S=(3, 17), F=4, D=9, eps=None)),
    Case('one axis, large scores', dict(B=2, M=3, c=1, S=(83,), F=12, D=4, factor=30.0)),
    Case('three axes', dict(B=1, H=3, M=6, c=2, S=(2, 3, 17), F=(3, 2, 4), D=8)),
    Case('many channels', dict(B=1, M=21, c=11, S=(3, 5), F=6, D=33)),
]
SIZES = dict(B=(1, 3), H=(1, 2), M=(1, 20), c=(0, 12), Y=(1, 6), X=(1, 20), F=(1, 6), D=(1, 20))
COMPILED = [
    Case('flow', dict(B=1, M=2048, c=64, S=(368, 496), F=129, D=322)),
    Case('dense 14', dict(B=64, Q=1, M=256, c=0, S=(14, 14), F=64, D=384)),
    Case('segmentation', dict(B=8, M=256, c=3, S=(128, 128), F=64, D=128)),
]
BENCHMARK = Benchmark(
    COMPILED,
    routes=dict(library=Route(LIBRARY, _zero_padded)),
    attention=as_attention,
    forward_routes=dict(matmul=Route(MATMUL, _attend, as_attention)),
    sweep=Sweep(
        dict(B=1, M=256, c=16, S=(64, 64), F=33, D=64),
        {
            'pixels': {s * s: dict(S=(s, s)) for s in (28, 64, 128, 256)},
            'M': {m: dict(M=m) for m in (64, 256, 1024)},
            'D': {d: dict(D=d) for d in (32, 64, 256)},
        },
        model=dict(B=1, M=1024, c=64, S=(96, 128), F=129, D=322),
    ),
    memory=Case('1024x1024', dict(B=1, M=2048, c=64, S=(1024, 1024), F=129, D=64)),
)
