"""The three products of a linear layer through oneDNN: float32 in, float32 inside, float32 out.

What is called is the operator that `torch.compile` puts in the place of linear layers on CPUs. PyTorch has no public
name for it, so its signature is looked at before. It takes a transposed view as it is, but views of other strides take
a path of oneDNN's that is thousands of times slower: nothing of that kind is passed to it.
"""

import functools
from typing import Callable, Optional

import torch

SCHEMA = (
    'mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y'
)


@functools.lru_cache(maxsize=None)
def operator() -> Optional[Callable[..., torch.Tensor]]:
    """PyTorch's operator, None where it is another one or none."""
    try:
        found = torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None
    return found if str(found._schema) == SCHEMA else None


def _product(a: torch.Tensor, b: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
    """a bᵀ + bias of a (M, K) and b (N, K), each contiguous or a transposed view of something contiguous."""
    return operator()(a, b, bias, 'none', [], '')


def forward(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """x Wᵀ + b of contiguous x (M, K), W (N, K) and b (N,); returns (M, N)."""
    return _product(x, weight, bias)


def input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """g W of contiguous g (M, N) and W (N, K); returns (M, K)."""
    return _product(grad, weight.t())


def weight_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """gᵀ x of contiguous g (M, N) and x (M, K); returns (N, K), contiguous. The narrower of both is copied inside."""
    if grad.shape[1] <= x.shape[1]:
        return _product(grad.t(), x.t())
    return _product(x.t(), grad.t()).t().contiguous()
