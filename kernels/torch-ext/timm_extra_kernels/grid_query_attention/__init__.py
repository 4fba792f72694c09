"""Attention of a grid's positions, as queries with features that depend on one axis each, to few keys."""

import math
from typing import Any, Optional, Sequence, Tuple

import torch

from .. import _dispatch
from .._checks import check_floating, check_grid, check_mask
from .._register import Operators
from .._target import INTERPRETER, describe, target
from .._tiles import compute_dtype
from .naive import LOWEST
from .operands import product_dtype
from .tiles import CHANNELS, VALUES

__all__ = ['grid_query_attention']
LARGEST_MATRIX = 1 << 26  # elements of what the kernels have of each line, or position along one, and key
LOWEST_GIVEN = 0.1 * LOWEST  # the bias of keys that take part: above the others by more than any softmax sees


def limits(
    *, k: torch.Tensor, v: torch.Tensor, content: torch.Tensor, grad: Optional[torch.Tensor] = None
) -> Optional[str]:
    """What the kernels cannot do, or what PyTorch does with less work.

    Multiply-adds per score, with c channels of content and D of values: forward c + D, backward 5 c + 3 D, as scores
    are computed once each for queries, keys and values. PyTorch: c + D and 3 c + 2 D. In float32 both run at one
    rate, where `latent_cross_attention` counts what the kernels would have to reach.
    """
    gpu, channels, values = describe(target(k.device)), content.shape[1], v.shape[3]
    lines, length = math.prod(content.shape[2:-1]), content.shape[-1]
    keys = k.shape[0] * k.shape[1] * -(-k.shape[2] // 64) * 64  # as padded at most
    if channels > CHANNELS:
        return f'{channels} content channels are more than {CHANNELS}'
    if values > VALUES:
        return f'{values} channels of values are more than {VALUES}'
    if not gpu.unit:
        return f'{gpu.name} has no matrix cores that the kernels use'
    if product_dtype(k, v, content) == torch.float32 and gpu.name != INTERPRETER:
        return 'products in float32 take PyTorch less work'
    if keys * max(lines, length) > LARGEST_MATRIX:
        return f'the tables of {lines} × {length} positions and {keys} keys have more than {LARGEST_MATRIX} products'
    if grad is not None and keys * lines * -(-length // 16) > LARGEST_MATRIX:
        return f'gradients of {lines} × {length} positions and {keys} keys take more than {LARGEST_MATRIX} sums'
    return None


limits.may_be_empty = ('content',)  # without channels


def _fake(k, v, content, axes, bias, scale, eps):
    dtype = compute_dtype(k, v, content, *axes, bias)
    shape = *v.shape[:2], math.prod(content.shape[2:])
    lse = v.new_empty(shape if _dispatch.may_run_kernels(v.device) else 0, dtype=dtype)
    return v.new_empty((*shape, v.shape[3]), dtype=dtype), lse


OPERATORS = Operators(
    __name__,
    limits,
    _fake,
    outputs=('out', 'lse'),
    flags=dict(needs_keys=('k', 'v', 'bias'), needs_queries=('content', 'axes')),
)


def prepare(k, v, content, axes, bias, scale, eps, mask) -> Tuple[Any, ...]:
    """Check the arguments of `grid_query_attention` and bring them into the operator's order.

    Keys that take no part, by the mask or a bias of −inf, have a bias of `LOWEST`; what they hold by the mask becomes
    zeros.
    """
    name, axes = 'grid_query_attention', list(axes)
    _check_keys(k, v, bias)
    check_floating(name, k=k, content=content)
    check_grid(name, 'k', k, content, axes)
    if content.shape[0] not in (1, k.shape[0]):
        raise ValueError(f'{name}: content has a batch of {content.shape[0]}, k of {k.shape[0]}')
    check_mask(name, mask, (k.shape[0], k.shape[2]), k.device)
    dtype = compute_dtype(k, v, content, *axes, k if bias is None else bias)
    if bias is None:
        bias = k.new_zeros(k.shape[:3], dtype=dtype)
    else:
        bias = bias.to(dtype).clamp(min=LOWEST_GIVEN).masked_fill(bias == -math.inf, LOWEST)
    if mask is not None:
        out = ~mask[:, None]  # (B, 1, M)
        k, v = (t.masked_fill(out[..., None], 0.0) for t in (k, v))  # 0 · NaN would not be 0
        bias = bias.masked_fill(out, LOWEST)
    return k, v, content, axes, bias, float(scale), None if eps is None else float(eps)


def grid_query_attention(
    k: torch.Tensor,
    v: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    *,
    bias: Optional[torch.Tensor] = None,
    scale: float,
    eps: Optional[float] = 1e-5,
    mask: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Attend from the layer-normalised positions [content, features of axis 1, …] of a grid to keys.

    The queries are never built, and no matrix of all scores exists: the score of a query and a key costs about as many
    multiplications as content has channels. Exact, for any tables. Cross-attention with a projection of the queries,
    one of the values and one of the output becomes this when they are folded into keys and values. Arithmetic is in
    float32, or float64 where a tensor is.

    Args:
        k: Keys (B, H, M, C), C = c + ΣFᵢ in the order of the queries' channels.
        v: Values (B, H, M, D).
        content: (B or 1, c, *spatial), 1 to 3 spatial axes; with 1 all items share it. Without channels (c = 0) queries
            consist of position features alone.
        axes: One table (Sᵢ, Fᵢ) per spatial axis, as Fourier features of the positions along it.
        bias: Added to the scores of each key (B, H, M), as what a shift of the queries' normalisation leaves of them.
            With −inf a key takes no part, and a head without any gives zeros, as in PyTorch's
            `scaled_dot_product_attention`; softmax alone would give NaN. Other numbers below −1e19 count as −1e19.
        scale: Factor of the products of queries and keys.
        eps: Added to the variance in the layer normalisation of queries, which has no affine; None takes them as they
            are.
        mask: Boolean (B, M), True where a key takes part; what the others hold, NaN among it, has no influence. An item
            without any gives zeros.

    Returns:
        softmax(scale · x̂ kᵀ + bias) v (B, H, N, D), N the product of the spatial sizes, in the dtype of v.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    return OPERATORS(*prepare(k, v, content, axes, bias, scale, eps, mask)).to(v.dtype)


def _check_keys(k: torch.Tensor, v: torch.Tensor, bias: Optional[torch.Tensor]) -> None:
    name = 'grid_query_attention'
    if k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f'{name}: k must be (B, H, M, C) and v (B, H, M, D), got {tuple(k.shape)} and {tuple(v.shape)}'
        )
    for label, tensor in (('k', k), ('v', v)):
        if any(size == 0 for size in tensor.shape[1:]):
            raise ValueError(f'{name}: {label} {tuple(tensor.shape)} is empty')
    check_floating(name, k=k, v=v)
    if bias is None:
        return
    if tuple(bias.shape) != tuple(k.shape[:3]):
        raise ValueError(f'{name}: bias must be {tuple(k.shape[:3])} for k {tuple(k.shape)}, got {tuple(bias.shape)}')
    check_floating(name, k=k, bias=bias)
