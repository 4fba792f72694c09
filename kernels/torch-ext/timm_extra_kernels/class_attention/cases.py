"""Inputs on which `class_attention` is tested, compiled and measured."""

import torch

from .._cases import Case, randn


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale · q kᵀ) v, as in the paper."""
    return ((q @ k.mT) * scale).softmax(-1) @ v


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator: q, k and v as views of one projection, as CeiT has them."""
    B, H, L, D = (case.sizes[name] for name in 'BHLD')
    qkv = randn((B, L, 3, H, D), dtype, device).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return q[:, :, -1:], k, v, D**-0.5


def backward_args(grad, args, out):
    """Arguments of the backward operator."""
    return grad, *args


CASES = [
    Case('ceit', dict(B=2, H=3, L=12, D=64)),
    Case('one token', dict(B=1, H=1, L=1, D=1)),
    Case('odd', dict(B=3, H=2, L=17, D=5)),
    Case('prime', dict(B=1, H=2, L=37, D=97)),
    Case('wide', dict(B=1, H=1, L=33, D=256)),
]
SIZES = dict(B=(1, 3), H=(1, 4), L=(1, 50), D=(1, 100))
COMPILED = [Case('ceit', dict(B=256, H=6, L=12, D=64)), Case('wide', dict(B=256, H=6, L=12, D=192))]
