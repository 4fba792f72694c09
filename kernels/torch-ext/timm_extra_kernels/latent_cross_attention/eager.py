"""Cross-attention whose keys and values are the normalised inputs themselves, in plain PyTorch and bounded memory."""

from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F

from .._tiles import Memory, OnlineSoftmax, Range, batch_step, compute_dtype, ranges, tile_budget


def normalise(x: torch.Tensor, eps: Optional[float]) -> torch.Tensor:
    """Layer normalisation over the last axis without affine, or nothing with `eps=None`."""
    return x if eps is None else F.layer_norm(x, x.shape[-1:], None, None, eps)


def taking_part(x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Rows (B, n, C) with zeros where the mask (B, n) leaves an input out: 0 · NaN would not be 0."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)


def forward(
    q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale · q x̂ᵀ) x̂, tile by tile over the inputs.

    Args:
        q: Queries (B or 1, H, M, C).
        x: Inputs (B, N, C).
        scale: Factor of the scores.
        eps: Added to the variance of x; None for x̂ = x.
        mask: (B, N), True where an input takes part.

    Returns:
        Output (B, H, M, C) and log-sum-exp of the scores (B, H, M), in the dtype of the arithmetic.
    """
    H, M, C = q.shape[1:]
    B, N = x.shape[:2]
    dtype = compute_dtype(q, x)
    rows = (q.to(dtype) * scale).flatten(1, 2)  # (B or 1, H·M, C)
    out = rows.new_empty(B, H * M, C)
    lse = rows.new_empty(B, H * M)
    memory = Memory(rows)
    for (b0, b1), tiles in _tiles(B, H * M, N, x.device):
        queries = _items(rows, b0, b1)
        softmax = OnlineSoftmax((b1 - b0, H * M), rows)
        total = rows.new_zeros(b1 - b0, H * M, C)
        for i, j in tiles:
            kept = None if mask is None else mask[b0:b1, i:j]
            xh = normalise(taking_part(x[b0:b1, i:j], kept).to(dtype), eps)  # (b, n, C)
            scores = torch.matmul(queries, xh.mT, out=memory.take(b1 - b0, H * M, j - i))
            if kept is not None:
                scores.masked_fill_(~kept.unsqueeze(1), -float('inf'))
            factor = softmax.add(scores)
            if factor is not None:
                total.mul_(factor)
            total.baddbmm_(scores, xh)
        denominator, lse[b0:b1] = softmax.finish()
        out[b0:b1] = total / denominator
    return out.view(B, H, M, C), lse.view(B, H, M)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    x: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
    needs_x: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `forward`, from scores computed again.

    Args:
        grad: Gradient of the output (B, H, M, C).
        q: As in `forward`.
        x: As in `forward`.
        out: Output of `forward`.
        lse: Log-sum-exp of `forward`.
        scale: As in `forward`.
        eps: As in `forward`.
        mask: As in `forward`.
        needs_x: Compute the gradient of x.

    Returns:
        Gradients of q (B or 1, H, M, C) and of x (B, N, C), the latter empty unless needed.
    """
    H, M = q.shape[1:3]
    B, N = x.shape[:2]
    dtype = compute_dtype(q, x)
    rows = (q.to(dtype) * scale).flatten(1, 2)
    grad = grad.to(dtype).flatten(1, 2)  # (B, H·M, C)
    delta = (grad * out.flatten(1, 2)).sum(-1, keepdim=True)  # (B, H·M, 1)
    lse = lse.flatten(1, 2).unsqueeze(-1)
    dq = rows.new_zeros(rows.shape)
    dx = x.new_empty(x.shape) if needs_x else x.new_empty(0)
    memories = Memory(rows), Memory(rows)
    for (b0, b1), tiles in _tiles(B, H * M, N, x.device):
        queries = _items(rows, b0, b1)
        for i, j in tiles:
            kept = None if mask is None else mask[b0:b1, i:j]
            tile = taking_part(x[b0:b1, i:j], kept).to(dtype)  # (b, n, C)
            xh = normalise(tile, eps)
            p = torch.matmul(queries, xh.mT, out=memories[0].take(b1 - b0, H * M, j - i))
            if kept is not None:
                p.masked_fill_(~kept.unsqueeze(1), -float('inf'))
            p.sub_(lse[b0:b1]).exp_()  # (b, H·M, n)
            ds = torch.matmul(grad[b0:b1], xh.mT, out=memories[1].take(*p.shape)).sub_(delta[b0:b1]).mul_(p)
            part = ds @ xh
            if rows.shape[0] == 1:
                dq += part.sum(0, keepdim=True)
            else:
                dq[b0:b1] += part
            if needs_x:
                dxh = ds.mT @ queries + p.mT @ grad[b0:b1]  # (b, n, C)
                dx[b0:b1, i:j] = taking_part(_normalise_backward(dxh, tile, xh, eps), kept).to(dx.dtype)
    return (dq * scale).view(q.shape).to(q.dtype), dx


def _tiles(batch: int, rows: int, keys: int, device: torch.device) -> Iterator[Tuple[Range, Iterator[Range]]]:
    """Batch items to take together, and for each such group the ranges of keys."""
    budget = tile_budget(device)
    step = batch_step(batch, rows * keys, budget)
    for b0, b1 in ranges(batch, step):
        yield (b0, b1), ranges(keys, max(16, budget // max(rows * step, 1)))


def _items(q: torch.Tensor, b0: int, b1: int) -> torch.Tensor:
    return q if q.shape[0] == 1 else q[b0:b1]


def _normalise_backward(
    grad: torch.Tensor, x: torch.Tensor, normalised: torch.Tensor, eps: Optional[float]
) -> torch.Tensor:
    if eps is None:
        return grad
    rstd = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    mean = grad.mean(-1, keepdim=True)
    return (grad - mean - normalised * (grad * normalised).mean(-1, keepdim=True)) * rstd
