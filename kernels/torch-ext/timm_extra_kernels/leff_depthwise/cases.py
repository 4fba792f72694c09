"""Inputs on which `leff_depthwise` is tested, compiled and measured."""

import math

import torch

from .._cases import Benchmark, Case, Sweep, Work, randn


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator."""
    B, H, W, C, P = (case.sizes[name] for name in 'BHWCP')
    k = 2 * P + 1
    x = randn((B, H * W, C), dtype, device)
    weight = randn((C, 1, k, k), dtype, device) / k
    scale1, shift1, scale2, shift2 = randn((4, C), dtype, device).unbind()
    return x, weight, randn((C,), dtype, device), H, W, 1 + 0.3 * scale1, shift1, 1 + 0.3 * scale2, shift2


def work(x, weight, *rest) -> Work:
    """What it takes at least, with shapes in the place of tensors."""
    elements = math.prod(x)
    return Work(flops=2 * elements * weight[-1] ** 2, special=2 * elements)


def example(device):
    """Arguments of the public function as in `ceit_small`, for one image."""
    x, weight, *vectors = (torch.empty(shape, device=device) for shape in EXAMPLE)
    return (x, weight, vectors[0]), dict(zip(('scale1', 'shift1', 'scale2', 'shift2'), vectors[1:]), grid=(14, 14))


CASES = [
    Case('ceit', dict(B=1, H=3, W=14, C=6, P=1)),
    Case('odd', dict(B=3, H=4, W=3, C=5, P=1)),
    Case('one token', dict(B=1, H=1, W=1, C=1, P=1)),
    Case('wide', dict(B=1, H=2, W=17, C=3, P=1)),
    Case('large kernel', dict(B=2, H=3, W=2, C=40, P=2)),
    Case('large kernel, wide', dict(B=1, H=1, W=15, C=3, P=2)),
]
EXAMPLE = [(1, 196, 1536), (1536, 1, 3, 3), *[(1536,)] * 5]  # shapes of tokens, weight, bias and vectors
SIZES = dict(B=(1, 3), H=(1, 2), W=(1, 15), C=(1, 40), P=(1, 2))
COMPILED = [
    Case('ceit', dict(B=256, H=14, W=14, C=1536, P=1)),
    Case('ceit 384', dict(B=64, H=24, W=24, C=1536, P=1)),
    Case('large kernel', dict(B=256, H=14, W=14, C=1536, P=2)),
    Case('large kernel 384', dict(B=64, H=24, W=24, C=1536, P=2)),
]
BENCHMARK = Benchmark(
    COMPILED,
    sweep=Sweep(
        dict(B=4, H=14, W=14, C=384, P=1),
        {
            'tokens': {s * s: dict(H=s, W=s) for s in (7, 14, 28, 56)},
            'C': {c: dict(C=c) for c in (96, 384, 1536)},
        },
        model=dict(B=4, H=14, W=14, C=1536, P=1),
    ),
)
