"""Cross-attention from few queries to a grid of inputs with position features that depend on one axis each."""

from typing import Any, Optional, Sequence, Tuple

import torch

from .._checks import check_grid, check_mask, check_queries
from .._register import Operators
from .._tiles import compute_dtype

__all__ = ['fourier_cross_attention']


def limits(*, q: torch.Tensor, content: torch.Tensor, needs_inputs: bool = False) -> Optional[str]:
    """What the kernels cannot do."""
    channels = content.shape[1]
    if needs_inputs and q.dtype == torch.float32 and channels > 12:
        return f'gradients of {channels} content channels in float32 are more than 12'
    most = most_channels(q.dtype)
    return f'{channels} content channels are more than {most}' if channels > most else None


def most_channels(dtype: torch.dtype) -> int:
    """Content channels that the kernels take with queries of a dtype."""
    return 40 if dtype == torch.float16 else 120


def _fake(q, content, axes, scale, eps, mask):
    dtype = compute_dtype(q, content, *axes)
    shape = (content.shape[0], *q.shape[1:])
    out, rest = (q.new_empty(s) for s in (shape, 1 if q.dtype == dtype else shape))
    return out, q.new_empty(shape[:-1], dtype=dtype), rest


OPERATORS = Operators(
    __name__, limits, _fake, outputs=('out', 'lse', 'rest'), flags=dict(needs_inputs=('content', 'axes'))
)


def prepare(q, content, axes, scale, eps, mask) -> Tuple[Any, ...]:
    """Check the arguments of `fourier_cross_attention` and bring them into the operator's order."""
    check_queries('fourier_cross_attention', q, 'content', content)
    axes = list(axes)
    check_grid('fourier_cross_attention', 'q', q, content, axes)
    if not content.shape[1]:
        raise ValueError(f'fourier_cross_attention: content {tuple(content.shape)} is empty')
    check_mask('fourier_cross_attention', mask, (content.shape[0], *content.shape[2:]), content.device)
    return q, content, axes, float(scale), eps, mask


def fourier_cross_attention(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    *,
    scale: float,
    eps: Optional[float] = 1e-5,
    mask: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Attend from queries to the layer-normalised tokens [content, features of axis 1, …] of a grid.

    The same as `latent_cross_attention` on these tokens, without ever building them: a position costs about as many
    multiplications as content has channels. Exact, for any tables. Arithmetic is in float32, or float64 where a tensor
    is; half-precision tables are taken as what they hold.

    Args:
        q: Queries (B or 1, H, M, C), C = c + ΣFᵢ in the order of the tokens' channels; with 1 all items share them.
        content: (B, c, *spatial), 1 to 3 spatial axes.
        axes: One table (Sᵢ, Fᵢ) per spatial axis, as Fourier features of the positions along it.
        scale: Factor of the scores.
        eps: Added to the variance in the layer normalisation of tokens, which has no affine; None takes them as they
            are.
        mask: Boolean (B, *spatial), True where a position takes part. One that does not has no influence, NaN or not,
            and its content a gradient of 0. An item whose mask is False everywhere gives zeros.

    Returns:
        (B, H, M, C), in the dtype of q.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names it.
    """
    return OPERATORS(*prepare(q, content, axes, scale, eps, mask))
