"""Attention of one query per head in one launch: a program holds all channels of one head and walks over the tokens."""

from typing import Tuple

import torch
import triton
import triton.language as tl

from .._target import FUSION

LOWEST: tl.constexpr = tl.constexpr(-1e38)  # below every score, and finite so that scores of −inf weigh 0
BLOCK_L = 16  # tokens per step: the layers of CeiT, and few enough that one warp holds them


# What changes with batch and tokens: a kernel that was compiled for one size serves all, divisible by 16 or not.
SIZES = ['H', 'L', *(f'{tensor}{axis}' for tensor in 'gqkv' for axis in 'bhl')]


@triton.jit
def _head(ptr, sb, sh, h, b, ALIGNED: tl.constexpr):
    if ALIGNED:
        sb = tl.multiple_of(sb, 16)
        sh = tl.multiple_of(sh, 16)
    return ptr + b * sb + h * sh


@triton.jit
def _row(ptr, sb, sh, sd, h, b, d, D, ALIGNED: tl.constexpr):
    ptr = _head(ptr, sb, sh, h, b, ALIGNED)
    return tl.load(ptr + d * sd, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def _rows(ptr, sb, sh, sl, sd, h, b, n, d, L, D, ALIGNED: tl.constexpr):
    if ALIGNED:
        sl = tl.multiple_of(sl, 16)
    inside = (n[:, None] < L) & (d[None, :] < D)
    at = _head(ptr, sb, sh, h, b, ALIGNED) + n.to(tl.int64)[:, None] * sl + d[None, :] * sd
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def _class_attention_fwd_kernel(
    Q, K, V, OUT, scale, H, L, D,
    qb, qh, qd, kb, kh, kl, kd, vb, vh, vl, vd,
    ALIGNED: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # Q (B, H, 1, D), K and V (B, H, L, D) by their strides; OUT (B, H, 1, D) contiguous
    h = tl.program_id(0) % H
    b = (tl.program_id(0) // H).to(tl.int64)
    d = tl.arange(0, BD)
    q = _row(Q, qb, qh, qd, h, b, d, D, ALIGNED) * scale  # (BD,)
    top = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    acc = tl.zeros([BD], tl.float32)
    for l0 in range(0, L, BL):
        n = l0 + tl.arange(0, BL)
        s = tl.sum(q[None, :] * _rows(K, kb, kh, kl, kd, h, b, n, d, L, D, ALIGNED), 1)  # (BL,)
        s = tl.where(n < L, s, -float('inf'))
        new = tl.maximum(top, tl.max(s, 0))
        p = tl.exp(s - new)
        factor = tl.exp(top - new)
        total = total * factor + tl.sum(p, 0)
        acc = acc * factor + tl.sum(p[:, None] * _rows(V, vb, vh, vl, vd, h, b, n, d, L, D, ALIGNED), 0)
        top = new
    tl.store(OUT + (b * H + h) * D + d, (acc / total).to(OUT.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=SIZES)
def _class_attention_bwd_kernel(
    G, Q, K, V, DQ, DK, DV, scale, H, L, D,
    gb, gh, gd, qb, qh, qd, kb, kh, kl, kd, vb, vh, vl, vd,
    ALIGNED: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # as above; G (B, H, 1, D) by its strides; DQ (B, H, 1, D), DK and DV (B, H, L, D) contiguous
    h = tl.program_id(0) % H
    b = (tl.program_id(0) // H).to(tl.int64)
    d = tl.arange(0, BD)
    q = _row(Q, qb, qh, qd, h, b, d, D, ALIGNED) * scale
    g = _row(G, gb, gh, gd, h, b, d, D, ALIGNED)
    top = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    delta = tl.full([], 0.0, tl.float32)  # Σ p · dp, as unnormalised as total
    for l0 in range(0, L, BL):
        n = l0 + tl.arange(0, BL)
        s = tl.sum(q[None, :] * _rows(K, kb, kh, kl, kd, h, b, n, d, L, D, ALIGNED), 1)
        s = tl.where(n < L, s, -float('inf'))
        new = tl.maximum(top, tl.max(s, 0))
        p = tl.exp(s - new)
        factor = tl.exp(top - new)
        dp = tl.sum(g[None, :] * _rows(V, vb, vh, vl, vd, h, b, n, d, L, D, ALIGNED), 1)
        total = total * factor + tl.sum(p, 0)
        delta = delta * factor + tl.sum(p * dp, 0)
        top = new
    delta = delta / total
    dq = tl.zeros([BD], tl.float32)
    out = (b * H + h) * L * D
    for l0 in range(0, L, BL):
        n = l0 + tl.arange(0, BL)
        k = _rows(K, kb, kh, kl, kd, h, b, n, d, L, D, ALIGNED)
        s = tl.sum(q[None, :] * k, 1)
        p = tl.exp(tl.where(n < L, s, -float('inf')) - top) / total
        dp = tl.sum(g[None, :] * _rows(V, vb, vh, vl, vd, h, b, n, d, L, D, ALIGNED), 1)
        ds = p * (dp - delta)
        dq += tl.sum(ds[:, None] * k, 0)
        at = out + n.to(tl.int64)[:, None] * D + d[None, :]
        inside = (n[:, None] < L) & (d[None, :] < D)
        tl.store(DK + at, (ds[:, None] * q[None, :]).to(DK.dtype.element_ty), mask=inside)
        tl.store(DV + at, (p[:, None] * g[None, :]).to(DV.dtype.element_ty), mask=inside)
    tl.store(DQ + (b * H + h) * D + d, (dq * scale).to(DQ.dtype.element_ty), mask=d < D)


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """As `eager.forward`."""
    B, H, L, D = k.shape
    out = q.new_empty(B, H, 1, D)
    _class_attention_fwd_kernel[(B * H,)](
        q, k, v, out, scale, H, L, D,
        *_without_tokens(q), *k.stride(), *v.stride(), _aligned(q, k, v), **_blocks(D, 1),
    )  # fmt: skip
    return out


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `eager.backward`."""
    B, H, L, D = k.shape
    dq, dk, dv = q.new_empty(B, H, 1, D), k.new_empty(B, H, L, D), v.new_empty(B, H, L, D)
    _class_attention_bwd_kernel[(B * H,)](
        grad, q, k, v, dq, dk, dv, scale, H, L, D,
        *_without_tokens(grad), *_without_tokens(q), *k.stride(), *v.stride(), _aligned(grad, q, k, v), **_blocks(D, 2),
    )  # fmt: skip
    return dq, dk, dv


def _without_tokens(t: torch.Tensor) -> Tuple[int, int, int]:
    return t.stride(0), t.stride(1), t.stride(3)


def _aligned(*tensors: torch.Tensor) -> bool:
    """Whether all rows start at multiples of 16 elements."""
    return all(stride % 16 == 0 for t in tensors for stride in t.stride()[:3])


def _blocks(D: int, warps: int) -> dict:
    block = max(16, triton.next_power_of_2(D))
    return dict(BL=BLOCK_L, BD=block, num_warps=warps if block <= 64 else 4, **FUSION)
