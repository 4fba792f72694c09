"""Inputs on which `latent_cross_attention` is tested, compiled and measured."""

import torch
import torch.nn.functional as F

from .._cases import LIBRARY, MATMUL, Benchmark, Case, Route, Sweep, Work, randn
from .eager import normalise
from .naive import forward as naive


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator."""
    sizes = case.sizes
    B, N, C = (sizes[name] for name in 'BNC')
    q = randn((sizes.get('Q', B), sizes.get('H', 1), sizes['M'], C), dtype, device)
    x = randn((B, N, C), dtype, device)
    mask = None
    if sizes.get('mask'):
        mask = randn((B, N), torch.float32, device) > -0.5
    return q, x, C**-0.5, sizes.get('eps', 1e-5), mask


def work(q, x, scale, eps, mask) -> Work:
    """What it takes at least, with shapes in the place of tensors."""
    B, N, C = x
    scores = B * q[1] * q[2] * N
    return Work(flops=4 * scores * C, special=scores)


def example(device):
    """Arguments of the public function as in `perceiver_base`, for one image."""
    return (torch.empty(1, 1, 512, 261, device=device), torch.empty(1, 50176, 261, device=device)), dict(scale=0.1)


def zero_padded(q, x, scale, eps, mask):
    """The best that a library has: normalised inputs, padded to a width that fused attention takes."""
    C = q.shape[-1]
    x = normalise(x, eps)
    pad = -C % 8
    q, x = F.pad(q, (0, pad)).expand(x.shape[0], -1, -1, -1), F.pad(x, (0, pad)).unsqueeze(1)
    x = x.expand(-1, q.shape[1], -1, -1)
    out = F.scaled_dot_product_attention(q, x, x, None if mask is None else mask[:, None, None], scale=scale)
    return out[..., :C]


def as_attention(q, x, scale, eps, mask):
    """The arguments as q, k, v, mask and scale of attention in general."""
    B, N, C = x.shape
    x = normalise(x, eps).unsqueeze(1).expand(B, q.shape[1], N, C)
    return q.expand(B, -1, -1, -1), x, x, mask, scale


def normalised(q, x, scale, eps, mask):
    """The arguments for which no normalisation is left to do."""
    return q, normalise(x, eps), scale, None, mask


CASES = [
    Case('two pieces', dict(B=2, M=5, C=68, N=50)),
    Case('one channel, query and key', dict(B=1, M=1, C=1, N=1, eps=None)),
    Case('odd, shared queries', dict(B=3, Q=1, H=2, M=9, C=33, N=67)),
    Case('masked', dict(B=2, H=3, M=7, C=24, N=83, mask=True)),
    Case('as it is', dict(B=2, M=17, C=48, N=31, eps=None)),
    Case('three pieces', dict(B=1, M=3, C=308, N=41, mask=True)),
]
SIZES = dict(B=(1, 3), H=(1, 3), M=(1, 40), C=(2, 80), N=(1, 90))
COMPILED = [
    Case('perceiver 512', dict(B=64, M=512, C=512, N=50176)),
    Case('perceiver 512 batch 1', dict(B=1, M=512, C=512, N=50176)),
    Case('perceiver 261', dict(B=64, M=512, C=261, N=50176)),
    Case('perceiver 322', dict(B=64, M=512, C=322, N=50176)),
    Case('learned 260', dict(B=64, M=512, C=260, N=50176, eps=None)),
    Case('masked 261', dict(B=64, Q=1, M=512, C=261, N=50176, mask=True)),
    Case('decoder 1024', dict(B=64, M=1, C=1024, N=512)),
]
BENCHMARK = Benchmark(
    COMPILED,
    routes=dict(library=Route(LIBRARY, zero_padded)),
    attention=as_attention,
    forward_routes=dict(
        matmul=Route(MATMUL, naive, normalised, applies=lambda sizes: sizes.get('eps', 1e-5) is not None)
    ),
    sweep=Sweep(
        dict(B=1, M=128, C=128, N=8192),
        {
            'N': {n: dict(N=n) for n in (1024, 4096, 16384, 65536)},
            'M': {m: dict(M=m) for m in (32, 128, 512)},
            'C': {c: dict(C=c) for c in (64, 192, 512)},
        },
        model=dict(B=1, M=256, C=261, N=112 * 112),
    ),
)
