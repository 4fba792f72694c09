"""Inputs on which `leff_depthwise_train` is tested, compiled and measured."""

import torch

from .._cases import Benchmark, Case, randn
from ..leff_depthwise.cases import EXAMPLE, work  # noqa: F401 (the same work)


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator."""
    B, H, W, C, P = (case.sizes[name] for name in 'BHWCP')
    k = 2 * P + 1
    offset = case.sizes.get('offset', 0)
    x = randn((B, H * W, C), dtype, device) + (offset or 1)
    # nothing that leaves a channel nearly constant, so that the norm after it magnifies what rounding did
    weight = (1 + 0.3 * randn((C, 1, k, k), dtype, device)) / k
    bias = randn((C,), dtype, device) + offset
    gamma1, beta1, gamma2, beta2 = randn((4, C), dtype, device).unbind()
    return x, weight, bias, H, W, 1 + 0.3 * gamma1, 1 + 0.3 * beta1, 1 + 0.3 * gamma2, beta2, 1e-5


def example(device):
    """Arguments of the public function as in `ceit_small`, for one image."""
    x, weight, *vectors = (torch.empty(shape, device=device) for shape in EXAMPLE)
    norms = dict(zip(('gamma1', 'beta1', 'gamma2', 'beta2'), vectors[1:]))
    return (x, weight, vectors[0]), dict(grid=(14, 14), **norms, eps=1e-5)


# The errors of single channels are a matter of luck: sums over few tokens cancel. Many channels have the same luck.
CASES = [
    Case('ceit', dict(B=1, H=3, W=14, C=32, P=1)),
    Case('odd', dict(B=3, H=4, W=3, C=31, P=1)),
    Case('one token each', dict(B=24, H=1, W=1, C=32, P=1)),
    Case('wide', dict(B=2, H=1, W=17, C=29, P=1)),
    Case('large kernel', dict(B=3, H=3, W=2, C=40, P=2)),
    Case('offset', dict(B=5, H=3, W=3, C=32, P=1, offset=100)),
]
SIZES = dict(B=(2, 3), H=(2, 3), W=(3, 15), C=(24, 40), P=(1, 2))
COMPILED = [
    Case('ceit', dict(B=256, H=14, W=14, C=1536, P=1)),
    Case('ceit 384', dict(B=64, H=24, W=24, C=1536, P=1)),
    Case('large kernel', dict(B=256, H=14, W=14, C=1536, P=2)),
]
# Gradients that are not compared: the mean takes all of that of the bias away, and so much of the first norm's shift
# that the naive form in bfloat16 errs by a fifth
BENCHMARK = Benchmark(COMPILED, rounding=(3, 5))
