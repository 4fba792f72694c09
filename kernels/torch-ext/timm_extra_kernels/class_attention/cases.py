"""Inputs on which `class_attention` is tested, compiled and measured."""

import torch
import torch.nn.functional as F

from .._cases import LIBRARY, Benchmark, Case, Route, Sweep, Work, randn


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator: q, k and v as views of one projection, as CeiT has them."""
    B, H, L, D = (case.sizes[name] for name in 'BHLD')
    qkv = randn((B, L, 3, H, D), dtype, device).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return q[:, :, -1:], k, v, D**-0.5


def work(q, k, v, scale) -> Work:
    """What it takes at least, with shapes in the place of tensors."""
    B, H, L, D = k
    return Work(flops=4 * B * H * L * D, special=B * H * L)


def example(device):
    """Arguments of the public function as in `ceit_small`, for one image."""
    q, k = torch.empty(1, 6, 1, 64, device=device), torch.empty(1, 6, 12, 64, device=device)
    return (q, k, torch.empty_like(k)), dict(scale=0.125)


def _library(q, k, v, scale):
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


CASES = [
    Case('ceit', dict(B=2, H=3, L=12, D=64)),
    Case('one token', dict(B=1, H=1, L=1, D=1)),
    Case('odd', dict(B=3, H=2, L=17, D=5)),
    Case('prime', dict(B=1, H=2, L=37, D=97)),
    Case('wide', dict(B=1, H=1, L=33, D=256)),
]
SIZES = dict(B=(1, 3), H=(1, 4), L=(1, 50), D=(1, 100))
COMPILED = [Case('ceit', dict(B=256, H=6, L=12, D=64)), Case('wide', dict(B=256, H=6, L=12, D=192))]
BENCHMARK = Benchmark(
    COMPILED,
    routes=dict(library=Route(LIBRARY, _library)),
    attention=lambda q, k, v, scale: (q, k, v, None, scale),
    sweep=Sweep(
        dict(B=8, H=6, L=197, D=64),
        {
            'L': {n: dict(L=n) for n in (12, 96, 768, 3072)},
            'D': {d: dict(D=d) for d in (32, 64, 128)},
        },
        model=dict(B=32, H=6, L=12, D=64),
    ),
)
