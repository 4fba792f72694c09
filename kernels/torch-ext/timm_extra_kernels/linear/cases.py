"""Inputs on which `linear` is tested and measured."""

from typing import Tuple

import torch

from .._cases import Case, randn


def inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input (M, K), weight (N, K) and bias (N,)."""
    M, K, N = (case.sizes[name] for name in 'MKN')
    return tuple(randn(shape, dtype, device) for shape in ((M, K), (N, K), (N,)))


def multiply_adds(case: Case) -> int:
    """Of each of its three products."""
    return case.sizes['M'] * case.sizes['K'] * case.sizes['N']


def example(device) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Arguments of the public function as in `ceit_small`, for four images."""
    return tuple(torch.empty(shape, device=device) for shape in ((4, 196, 384), (1536, 384), (1536,)))


MODELS = [
    Case('ceit_small fc1', dict(M=784, K=384, N=1536)),
    Case('ceit_small fc2', dict(M=784, K=1536, N=384)),
    Case('ceit_small qkv', dict(M=788, K=384, N=1152)),
    Case('ceit_small proj', dict(M=788, K=384, N=384)),
    Case('ceit_tiny fc1', dict(M=784, K=192, N=768)),
    Case('perceiver_io_base', dict(M=512, K=1024, N=1024)),
    Case('glom_base', dict(M=196, K=512, N=2048)),
    Case('long and narrow', dict(M=3136, K=64, N=256)),
    Case('few rows', dict(M=16, K=384, N=1152)),
]
