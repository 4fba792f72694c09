"""Cross-attention whose keys and values are one tensor x̂, which a tile's two products read once.

x̂ is first written in the dtype of the products, its rows padded to a multiple of 16 elements: odd rows can only be
loaded element by element, and normalising within the loop would repeat for every block of queries. Heads and queries
are one axis of rows, as all of them attend to the same x̂. A program holds its queries and sums over all channels, in
pieces (the widths of `Tiles`), so that every score is computed once. Rows that loops read are padded too, to whole
steps: checks of the bounds would take registers. Inputs that the mask leaves out are zeros in x̂.
"""

from typing import Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .._pieces import (
    add_product,
    load_pieces,
    product,
    round_up,
    scale_pieces,
    split_loop,
    store_pieces,
    zero_pieces,
)
from .._target import FUSION, describe, target
from .tiles import config

LOWEST: tl.constexpr = tl.constexpr(-1e38)  # below every score, and finite so that scores of −inf weigh 0
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
BLOCK = 4096  # elements that a program of the row-wise kernels holds
KEYS = 64  # x̂ has a multiple of so many rows: every step over keys divides it
# Sizes, which change from call to call: a kernel that was compiled for one serves all, divisible by 16 or not.
SIZES = ['batch', 'R', 'RP', 'N', 'NP', 'q_batch', 'blocks', 'keys', 'rows', 'rows_each', 'splits', 'xb', 'xn']


@triton.jit
def _where(rows, sums):
    out = ()
    for i in tl.static_range(len(sums)):
        out += (tl.where(rows[:, None], sums[i], 0.0),)
    return out


@triton.jit
def _item(ptr, b, stride):
    # item b of a batch of rows of CP elements
    return ptr + b * tl.multiple_of(stride, 16)


@triton.jit
def _program(blocks, splits):
    # block of rows fastest: neighbours read the same keys
    pid = tl.program_id(0)
    return pid % blocks, pid // blocks % splits, (pid // blocks // splits).to(tl.int64)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=['MASK'])
def _latent_attention_fwd_kernel(
    Q, X, BIAS, OUT, LSE, scale, batch, R, NP, q_batch, blocks, keys, splits,
    C: tl.constexpr, CP: tl.constexpr, WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Q (B, RP, CP), or 1 by a batch stride of 0; X (B, NP, CP), BIAS (B, NP) 0, or −∞ where it takes no part;
    # OUT (splits, B, R, C), LSE (splits, B, R)
    block, split, b = _program(blocks, splits)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    q = load_pieces(_item(Q, b, q_batch) + block.to(tl.int64) * BM * CP, rows, CP, WIDTHS)
    top = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    sums = zero_pieces(BM, WIDTHS)
    start = tl.multiple_of(split * keys, BN)
    for n0 in tl.range(start, tl.minimum(start + keys, NP), BN, num_stages=STAGES):
        at = b * tl.multiple_of(NP, 16) + n0
        x = load_pieces(X + at * CP, cols, CP, WIDTHS)
        s = product(q, x)
        s = s * (scale * LOG2E) + tl.load(BIAS + at + cols)[None, :]
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        factor = tl.exp2(top - new)
        total = total * factor + tl.sum(p, 1)
        sums = add_product(scale_pieces(sums, factor[:, None]), p.to(X.dtype.element_ty), x)
        top = new
    none = total == 0
    first = (split * batch + b) * R + block.to(tl.int64) * BM
    sums = scale_pieces(sums, (1.0 / tl.where(none, 1.0, total))[:, None])
    rows_inside = rows < R - block * BM
    store_pieces(OUT + first * C, sums, rows, rows_inside, C, WIDTHS)
    lse = tl.where(none, float('inf'), (top + tl.log2(total)) / LOG2E)
    tl.store(LSE + first + rows, lse, mask=rows_inside)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=['MASK'])
def _latent_combine_fwd_kernel(
    PARTS, LSES, OUT, LSE, rows, splits, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):
    # PARTS (splits, rows, C) and LSES (splits, rows), +inf for a part that attended to nothing
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    inside = r < rows
    at = r[:, None] * C + c[None, :]
    valid = inside[:, None] & (c[None, :] < C)
    top = tl.full([BR], LOWEST, tl.float32)
    for i in range(splits):
        lse = tl.load(LSES + tl.cast(i, tl.int64) * rows + r, mask=inside, other=float('inf'))
        top = tl.maximum(top, tl.where(lse == float('inf'), LOWEST, lse))
    total = tl.zeros([BR], tl.float32)
    acc = tl.zeros([BR, BC], tl.float32)
    for i in range(splits):
        lse = tl.load(LSES + tl.cast(i, tl.int64) * rows + r, mask=inside, other=float('inf'))
        weight = tl.where(lse == float('inf'), 0.0, tl.exp2((lse - top) * LOG2E))
        total += weight
        acc += weight[:, None] * tl.load(PARTS + tl.cast(i, tl.int64) * rows * C + at, mask=valid, other=0.0)
    none = total == 0
    tl.store(OUT + at, acc / tl.where(none, 1.0, total)[:, None], mask=valid)
    tl.store(LSE + r, tl.where(none, float('inf'), top + tl.log2(total) / LOG2E), mask=inside)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=['MASK'])
def _latent_attention_bwd_q_kernel(
    Q, X, BIAS, G, LSE, DELTA, DQ, scale, R, RP, NP, q_batch, blocks, keys, splits,
    C: tl.constexpr, CP: tl.constexpr, WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above; G (B, RP, CP), LSE and DELTA (B, RP); DQ (B, splits, R, C)
    block, split, b = _program(blocks, splits)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    first = b * tl.multiple_of(RP, 16) + block.to(tl.int64) * BM
    q = load_pieces(_item(Q, b, q_batch) + block.to(tl.int64) * BM * CP, rows, CP, WIDTHS)
    g = load_pieces(G + first * CP, rows, CP, WIDTHS)
    lse = tl.load(LSE + first + rows) * LOG2E
    delta = tl.load(DELTA + first + rows)
    sums = zero_pieces(BM, WIDTHS)
    start = tl.multiple_of(split * keys, BN)
    for n0 in tl.range(start, tl.minimum(start + keys, NP), BN, num_stages=STAGES):
        at = b * tl.multiple_of(NP, 16) + n0
        x = load_pieces(X + at * CP, cols, CP, WIDTHS)
        s = product(q, x)
        dp = product(g, x)
        p = tl.exp2(s * (scale * LOG2E) + tl.load(BIAS + at + cols)[None, :] - lse[:, None])
        ds = p * (dp - delta[:, None])
        sums = add_product(sums, ds.to(X.dtype.element_ty), x)
    dq_at = DQ + ((b * splits + split) * R + block.to(tl.int64) * BM) * C
    store_pieces(dq_at, scale_pieces(sums, scale), rows, rows < R - block * BM, C, WIDTHS)


@triton.jit
def _through_norm(sums, xh, rstd, C: tl.constexpr):
    # gradients of x̂ to those of x; padding adds nothing, as it is 0 in both
    mean = tl.sum(sums[0], 1)
    along = tl.sum(sums[0] * xh[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(sums)):
        mean += tl.sum(sums[i], 1)
        along += tl.sum(sums[i] * xh[i].to(tl.float32), 1)
    out = ()
    for i in tl.static_range(len(sums)):
        shared = (mean / C)[:, None] + xh[i].to(tl.float32) * (along / C)[:, None]
        out += ((sums[i] - shared) * rstd[:, None],)
    return out


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=['MASK'])
def _latent_attention_bwd_x_kernel(
    Q, X, RSTD, BIAS, G, LSE, DELTA, DX, scale, batch, RP, N, NP, q_batch, blocks, rows_each, splits,
    C: tl.constexpr, CP: tl.constexpr, WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above, with scores (BN, BM) on their side and splits of the rows; DX (splits, B, N, C), the gradient of x̂,
    # or of x with its 1 / deviation RSTD (B, NP), where a program has all of its channels and rows
    block, split, b = _program(blocks, splits)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    at = b * tl.multiple_of(NP, 16) + block * BN
    x = load_pieces(X + at * CP, cols, CP, WIDTHS)
    bias = tl.load(BIAS + at + cols)
    sums = zero_pieces(BN, WIDTHS)
    start = tl.multiple_of(split * rows_each, BM)
    for m0 in tl.range(start, tl.minimum(start + rows_each, RP), BM, num_stages=STAGES):
        first = b * tl.multiple_of(RP, 16) + m0
        q = load_pieces(_item(Q, b, q_batch) + tl.cast(m0, tl.int64) * CP, rows, CP, WIDTHS)
        g = load_pieces(G + first * CP, rows, CP, WIDTHS)
        s = product(x, q)
        dp = product(x, g)
        lse = tl.load(LSE + first + rows) * LOG2E
        p = tl.exp2(s * (scale * LOG2E) + bias[:, None] - lse[None, :])
        ds = p * (dp - tl.load(DELTA + first + rows)[None, :]) * scale
        sums = add_product(sums, p.to(X.dtype.element_ty), g)
        sums = add_product(sums, ds.to(X.dtype.element_ty), q)
    if RSTD is not None:
        sums = _through_norm(sums, x, tl.load(RSTD + at + cols), C)
    sums = _where(bias == 0, sums)  # not 0 · NaN where a query or a gradient is NaN
    dx_at = DX + ((split * batch + b) * N + block * BN) * C
    store_pieces(dx_at, sums, cols, cols < N - block * BN, C, WIDTHS)


@triton.jit
def _row_of(X, MASK, b, n, c, inside, N, xb, xn, xc, C: tl.constexpr, ALIGNED: tl.constexpr):
    # float32 (BR, BC) of X (B, N, C), zeros where MASK leaves an input out; and what it does not leave out
    if ALIGNED:
        xb = tl.multiple_of(xb, 16)
        xn = tl.multiple_of(xn, 16)
    if MASK is not None:
        inside = inside & (tl.load(MASK + b * N + n, mask=inside, other=0) > 0)
    at = X + b[:, None] * xb + n[:, None] * xn + c[None, :] * xc
    return tl.load(at, mask=inside[:, None] & (c[None, :] < C), other=0.0).to(tl.float32), inside


@triton.jit
def _normalised(x, c, eps, C: tl.constexpr):
    x = tl.where(c[None, :] < C, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / C + eps)
    return x * rstd[:, None], rstd


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=['MASK'])
def _latent_normalise_fwd_kernel(
    X, MASK, XH, BIAS, RSTD, eps, rows, N, NP, xb, xn, xc,
    C: tl.constexpr, CP: tl.constexpr, NORM: tl.constexpr, ALIGNED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # X (B, N, C) by its strides, MASK (B, N); XH (B, NP, CP), BIAS and RSTD (B, NP)
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    n = r % NP
    x, kept = _row_of(X, MASK, r // NP, n, c, (r < rows) & (n < N), N, xb, xn, xc, C, ALIGNED)
    tl.store(BIAS + r, tl.where(kept, 0.0, -float('inf')), mask=r < rows)
    if NORM:
        x, rstd = _normalised(x, c, eps, C)
        tl.store(RSTD + r, rstd, mask=r < rows)
    valid = (r < rows)[:, None] & (c[None, :] < CP)
    tl.store(XH + r[:, None] * CP + c[None, :], x.to(XH.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=['MASK'])
def _latent_normalise_bwd_kernel(
    X, MASK, PARTS, DX, eps, rows, N, splits, xb, xn, xc,
    C: tl.constexpr, CP: tl.constexpr, NORM: tl.constexpr, ALIGNED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # X and MASK as above; PARTS (splits, B, N, CP) sum up to the gradient of x̂; DX (B, N, C)
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    inside = r < rows
    valid = inside[:, None] & (c[None, :] < C)
    grad = tl.zeros([BR, BC], tl.float32)
    for i in range(splits):
        at = (tl.cast(i, tl.int64) * rows + r)[:, None] * CP + c[None, :]
        grad += tl.load(PARTS + at, mask=valid, other=0.0)
    if NORM:
        x, _ = _row_of(X, MASK, r // N, r % N, c, inside, N, xb, xn, xc, C, ALIGNED)
        xh, rstd = _normalised(x, c, eps, C)
        shared = (tl.sum(grad, 1) / C)[:, None] + xh * (tl.sum(grad * xh, 1) / C)[:, None]
        grad = (grad - shared) * rstd[:, None]
    tl.store(DX + r[:, None] * C + c[None, :], grad.to(DX.dtype.element_ty), mask=valid)


class Normalised(NamedTuple):
    """x̂ as the kernels read it.

    Attributes:
        rows: (B, NP, CP), zeros in the padding and where the mask leaves an input out.
        bias: (B, NP), 0, and −∞ where a row takes no part.
        rstd: 1 / deviation (B, NP), None where nothing is normalised.
        mask: Bytes (B, N), or None.
    """

    rows: torch.Tensor
    bias: torch.Tensor
    rstd: Optional[torch.Tensor]
    mask: Optional[torch.Tensor]


def forward(
    q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """As `eager.forward`, with products in the dtype of q."""
    H, M, C = q.shape[1:]
    B, R, CP = x.shape[0], H * M, round_up(C, 16)
    tiles = config('fwd', describe(target(x.device)), CP)
    rows, xh = _padded_rows(q, round_up(R, tiles.rows), CP, q.dtype), _normalise(x, eps, _bytes(mask), CP, q.dtype)
    NP, blocks = xh.rows.shape[1], triton.cdiv(R, tiles.rows)
    keys, splits = split_loop(B * blocks, NP, tiles.keys, x.device)
    out, lse = (x.new_empty(shape, dtype=torch.float32) for shape in ((B, H, M, C), (B, H, M)))
    parts, lses = out, lse
    if splits > 1:
        parts, lses = (x.new_empty(shape, dtype=torch.float32) for shape in ((splits, B, R, C), (splits, B, R)))
    _latent_attention_fwd_kernel[(B * blocks * splits,)](
        rows, xh.rows, xh.bias, parts, lses, scale, B, R, NP, _batch_stride(rows), blocks, keys, splits,
        C, CP, **tiles.constants,
    )  # fmt: skip
    if splits > 1:
        step = _rows_at_once(C)
        _latent_combine_fwd_kernel[(triton.cdiv(B * R, step['BR']),)](parts, lses, out, lse, B * R, splits, C, **step)
    return out, lse


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
    """As `eager.backward`, with products in the dtype of q."""
    C, R, CP = q.shape[-1], q.shape[1] * q.shape[2], round_up(q.shape[-1], 16)
    gpu = describe(target(x.device))
    RP = round_up(R, max(config(kernel, gpu, CP).rows for kernel in ('bwd_q', 'bwd_x')))
    rows, g = _padded_rows(q, RP, CP, q.dtype), _padded_rows(grad, RP, CP, q.dtype)
    xh = _normalise(x, eps, _bytes(mask), CP, q.dtype)
    # of the gradient as rounded for the products, so that what cancels there does cancel
    delta = (g[:, :R, :C].float() * out.flatten(1, 2)).sum(-1)
    lse = lse.flatten(1, 2)
    if RP > R:
        lse, delta = F.pad(lse, (0, RP - R), value=float('inf')), F.pad(delta, (0, RP - R))
    given = rows, g, lse.contiguous(), delta, scale
    return _backward_q(q, xh, given), _backward_x(x, eps, xh, given) if needs_x else x.new_empty(0)


def _backward_q(q: torch.Tensor, xh: Normalised, given: tuple) -> torch.Tensor:
    rows, g, lse, delta, scale = given
    H, M, C = q.shape[1:]
    B, NP, CP = xh.rows.shape
    tiles = config('bwd_q', describe(target(q.device)), CP)
    blocks = triton.cdiv(H * M, tiles.rows)
    keys, splits = split_loop(B * blocks, NP, tiles.keys, q.device)
    whole = splits == 1 and q.shape[0] == B
    parts = q.new_empty(q.shape) if whole else q.new_empty((B, splits, H, M, C), dtype=torch.float32)
    _latent_attention_bwd_q_kernel[(B * blocks * splits,)](
        rows, xh.rows, xh.bias, g, lse, delta, parts, scale, H * M, g.shape[1], NP, _batch_stride(rows), blocks,
        keys, splits, C, CP, **tiles.constants,
    )  # fmt: skip
    if whole:
        return parts
    return (parts.sum(1) if q.shape[0] == B else parts.sum((0, 1)).unsqueeze(0)).to(q.dtype)


def _backward_x(x: torch.Tensor, eps: Optional[float], xh: Normalised, given: tuple) -> torch.Tensor:
    rows, g, lse, delta, scale = given
    B, N, C = x.shape
    NP, CP = xh.rows.shape[1:]
    RP = g.shape[1]
    tiles = config('bwd_x', describe(target(x.device)), CP)
    blocks = triton.cdiv(N, tiles.keys)
    each, splits = split_loop(B * blocks, RP, tiles.rows, x.device)
    dx = x.new_empty(x.shape)
    whole = splits == 1 and (eps is None or tiles.warps == 8)  # with four, normalising x̂ as well would spill
    parts = dx if whole else x.new_empty((splits, B, N, CP), dtype=torch.float32)
    _latent_attention_bwd_x_kernel[(B * blocks * splits,)](
        rows, xh.rows, xh.rstd if whole else None, xh.bias, g, lse, delta, parts, scale, B, RP, N, NP,
        _batch_stride(rows), blocks, each, splits, parts.shape[-1], CP, **tiles.constants,
    )  # fmt: skip
    if not whole:
        step = _rows_at_once(CP)
        _latent_normalise_bwd_kernel[(triton.cdiv(B * N, step['BR']),)](
            x,
            xh.mask,
            parts,
            dx,
            eps or 0.0,
            B * N,
            N,
            splits,
            *x.stride(),
            C,
            CP,
            eps is not None,
            _aligned(x),
            **step,
        )
    return dx


def _normalise(
    x: torch.Tensor, eps: Optional[float], mask: Optional[torch.Tensor], CP: int, dtype: torch.dtype
) -> Normalised:
    """x̂ in that dtype: x itself where that is the same."""
    B, N, C = x.shape
    NP = round_up(N, KEYS)
    if eps is None and mask is None and (N, C) == (NP, CP) and x.dtype == dtype and x.is_contiguous():
        return Normalised(x, x.new_zeros((B, NP), dtype=torch.float32), None, None)
    xh = x.new_empty((B, NP, CP), dtype=dtype)
    bias = x.new_empty((B, NP), dtype=torch.float32)
    rstd = None if eps is None else x.new_empty((B, NP), dtype=torch.float32)
    step = _rows_at_once(CP)
    _latent_normalise_fwd_kernel[(triton.cdiv(B * NP, step['BR']),)](
        x, mask, xh, bias, rstd, eps or 0.0, B * NP, N, NP, *x.stride(), C, CP, eps is not None, _aligned(x), **step
    )
    return Normalised(xh, bias, rstd, mask)


def _bytes(mask: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _padded_rows(t: torch.Tensor, RP: int, CP: int, dtype: torch.dtype) -> torch.Tensor:
    """(B or 1, H, M, C) to (B or 1, RP, CP), zeros in the padding."""
    rows = t.to(dtype).flatten(1, 2)
    channels, missing = CP - rows.shape[2], RP - rows.shape[1]
    return (F.pad(rows, (0, channels, 0, missing)) if channels or missing else rows).contiguous()


def _batch_stride(rows: torch.Tensor) -> int:
    return 0 if rows.shape[0] == 1 else rows.stride(0)


def _aligned(x: torch.Tensor) -> bool:
    """Whether its rows start at multiples of 16 elements."""
    return x.stride(0) % 16 == 0 and x.stride(1) % 16 == 0


def _rows_at_once(channels: int) -> Dict[str, int]:
    block = triton.next_power_of_2(channels)
    return dict(BR=max(1, BLOCK // block), BC=block, num_warps=4, **FUSION)
