"""Separable cross-attention on a GPU: neither tokens nor scores exist outside of registers.

Positions (r, w), rows and columns, become K slots each in one pass (see `operands.Slots`). A program of the others has
a block of queries and a block of columns and walks over rows. Scores are (row + column product) · rstd + a product of
K slots; the sums over positions are one product with the same slots, except those along rows, which stay in registers.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch
import triton
import triton.language as tl

from .._target import FUSION, INTERPRETER, target
from .operands import (
    LOG2E,
    SAFE,
    Slots,
    Tables,
    Weights,
    batch_stride,
    batch_strides,
    bound,
    centred,
    chunks,
    columns_of,
    features,
    merged,
    pointers,
    slots,
    whole,
)

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
MASKED: tl.constexpr = tl.constexpr(-1e30)  # score of a masked position, in powers of 2
NOTHING: tl.constexpr = tl.constexpr(-1e20)  # a maximum below this is of masked positions alone
PROGRAMS = 1024  # that fill a GPU; fewer are split along rows
LARGEST_MATRIX = 1 << 26  # elements of queries × columns; a longer last axis is cut


@triton.jit
def _fourier_maps_fwd_kernel(
    CONTENT, MASK, ROWS, COLUMNS, SHIFT, X, RSTD, sb, sc, sr, sw, mb, mr, mw, c, C, Fr, Fc, rows, W, width, eps,
    first, split, NORM: tl.constexpr, HAS_MASK: tl.constexpr, HALF: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # CONTENT (B, c, rows, W) and MASK (B, rows, W) by their strides; ROWS (rows, 3), COLUMNS (W, 3): statistics
    # X (B, rows, width, K), RSTD (B, rows, width)
    blocks = width // BN
    n = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    line = tl.program_id(0) // blocks
    r = line % rows
    b = (line // rows).to(tl.int64)
    inside = n < W
    if HAS_MASK:
        inside = inside & (tl.load(MASK + b * mb + r * mr + n * mw, mask=inside, other=0) != 0)
    shift = tl.load(SHIFT)
    pixels = CONTENT + b * sb + r.to(tl.int64) * sr + n[:, None].to(tl.int64) * sw
    k = tl.arange(0, K)
    extra = k - (c + 4)
    channel = tl.where(extra < 0, k, first + tl.where(extra < split, extra, extra - split))
    channel = tl.where(extra < 2 * split, channel, c + 1)  # c is the mean
    wanted = inside[:, None] & (channel < c)[None, :]
    values = tl.load(pixels + channel[None, :].to(tl.int64) * sc, mask=wanted, other=0.0).to(tl.float32) - shift
    if NORM:
        j = tl.arange(0, BC)
        some = inside[:, None] & (j < c)[None, :]
        content = tl.load(pixels + j[None, :].to(tl.int64) * sc, mask=some, other=0.0).to(tl.float32) - shift
        content = tl.where(some, content, 0.0)
        total = tl.sum(content, 1)
        own = total / c
        mean = (total + tl.load(ROWS + 3 * r) + tl.load(COLUMNS + 3 * n, mask=inside, other=0.0)) / C
        off_row = tl.load(ROWS + 3 * r + 1) - mean
        off_col = tl.load(COLUMNS + 3 * n + 1, mask=inside, other=0.0) - mean
        centred = tl.where(some, content - own[:, None], 0.0)
        squares = tl.sum(centred * centred, 1) + c * (own - mean) * (own - mean)
        squares += tl.load(ROWS + 3 * r + 2) + Fr * off_row * off_row
        squares += tl.load(COLUMNS + 3 * n + 2, mask=inside, other=0.0) + Fc * off_col * off_col
        rstd = tl.where(inside, 1.0 / tl.sqrt(squares / C + eps), 1.0)
        values = (values - mean[:, None]) * rstd[:, None]
        values = tl.where((channel == c)[None, :], (mean * rstd)[:, None], values)
    else:
        rstd = tl.full([BN], 1.0, tl.float32)
        values = tl.where((channel == c)[None, :], 0.0, values)
    is_rstd = (k == c + 1) | (HALF & (extra == 2 * split))
    values = tl.where(is_rstd[None, :], rstd[:, None], values)
    if HALF:
        rest = ((extra >= 0) & (extra < split)) | (extra == 2 * split)
        values = tl.where(rest[None, :], values - values.to(tl.bfloat16).to(tl.float32), values)
        filled = extra <= 2 * split
    else:
        filled = extra < 0
    values = tl.where((k == c + 2)[None, :], 1.0, values)
    values = tl.where(inside[:, None] & (filled & (k != c + 3))[None, :], values, 0.0)
    values = tl.where((k == c + 3)[None, :] & (inside == 0)[:, None], MASKED, values)
    at = line.to(tl.int64) * width + n
    tl.store(X + at[:, None] * K + k[None, :], values.to(X.dtype.element_ty))
    tl.store(RSTD + at, rstd)


@triton.jit
def _place(R, rows, blocks, B, per_split, BM: tl.constexpr, BW: tl.constexpr):
    # queries, columns, their block, item and split of this program, and the rows of the latter
    query_blocks = tl.cdiv(R, BM)
    pid = tl.program_id(0)
    m = pid % query_blocks * BM + tl.arange(0, BM)
    rest = pid // query_blocks
    block = rest % blocks
    b = (rest // blocks % B).to(tl.int64)
    split = rest // blocks // B
    r0 = split * per_split
    return m, block * BW + tl.arange(0, BW), block, b, split, r0, tl.minimum(r0 + per_split, rows)


@triton.jit
def _row_terms(RSTD, UROW, b, r, n, m, inside, R, rows, width, rb):
    # 1 / deviation of the columns n and the row products of the queries m
    rstd = tl.load(RSTD + (b * rows + r) * width + n)
    return rstd, tl.load(UROW + b * rb + tl.cast(r, tl.int64) * R + m, mask=inside, other=0.0)


@triton.jit
def _summed(weights, x, total, FINE: tl.constexpr):
    # total + weights · x; FINE: with what rounding takes off the weights
    rounded = weights.to(x.dtype)
    total = tl.dot(rounded, x, total, input_precision='ieee')
    if FINE:
        rest = (weights - rounded.to(tl.float32)).to(x.dtype)
        total = tl.dot(rest, x, total, input_precision='ieee')
    return total


@triton.jit
def _fourier_top_fwd_kernel(
    U, UROW, UCOL, X, RSTD, BOUND, TOP, ub, rb, cb, kb, B, R, rows, W, blocks, per_split, SAFE: tl.constexpr,
    BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # U (B, R, K), UROW (B, rows, R), UCOL (B, R, W), BOUND (B, R); X (B, rows, blocks · BW, K), RSTD the same less K
    # TOP (splits, blocks, B, R): the largest score, or 0 for queries whose scores cannot be large
    m, n, block, b, split, r0, r1 = _place(R, rows, blocks, B, per_split, BM, BW)
    mm = m < R
    highest = tl.zeros([BM], tl.float32)
    if tl.max(tl.load(BOUND + b * kb + m, mask=mm, other=0.0), 0) > SAFE:
        k = tl.arange(0, K)
        u = tl.load(U + b * ub + m[:, None] * K + k[None, :], mask=mm[:, None], other=0.0)
        cols = tl.load(
            UCOL + b * cb + m[:, None].to(tl.int64) * W + n[None, :], mask=mm[:, None] & (n < W)[None, :], other=0.0
        )
        tops = tl.full([BM, BW], MASKED, tl.float32)
        for r in range(r0, r1):
            at = (b * rows + r) * blocks * BW + n
            x = tl.load(X + at[:, None] * K + k[None, :])
            rstd = tl.load(RSTD + at)
            row = tl.load(UROW + b * rb + tl.cast(r, tl.int64) * R + m, mask=mm, other=0.0)
            s = tl.dot(u, tl.trans(x), (cols + row[:, None]) * rstd[None, :], input_precision='ieee')
            tops = tl.maximum(tops, s)
        highest = tl.maximum(tl.max(tops, 1), NOTHING)
    tl.store(TOP + ((split * blocks + block) * B + b) * R + m, highest, mask=mm)


@triton.jit
def _fourier_cross_attention_fwd_kernel(
    U, UROW, UCOL, X, RSTD, TOP, SUMS, ROWS, COLUMNS, ub, rb, cb, B, R, rows, W, blocks, per_split, slot, rest,
    AHEAD: tl.constexpr, FINE: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # as above; TOP (B, R); of weights 2^(score − top): SUMS (splits · blocks, B, R, K) with the slots, and with rstd
    # ROWS (blocks, B, rows, R) and COLUMNS (splits, B, R, W)
    m, n, block, b, split, r0, r1 = _place(R, rows, blocks, B, per_split, BM, BW)
    k = tl.arange(0, K)
    mm = m < R
    tile = mm[:, None] & (n < W)[None, :]
    u = tl.load(U + b * ub + m[:, None] * K + k[None, :], mask=mm[:, None], other=0.0)
    cols = tl.load(UCOL + b * cb + m[:, None].to(tl.int64) * W + n[None, :], mask=tile, other=0.0)
    top = tl.load(TOP + b * R + m, mask=mm, other=0.0)
    is_rstd = tl.where((k == slot) | (k == rest), 1.0, 0.0)
    along_rows = tl.zeros([BM, BW], tl.float32)
    sums = tl.zeros([BM, K], tl.float32)
    if AHEAD:
        rstd_after, row_after = _row_terms(RSTD, UROW, b, r0, n, m, mm, R, rows, blocks * BW, rb)
    for r in range(r0, r1):
        x = tl.load(X + ((b * rows + r) * blocks * BW + n)[:, None] * K + k[None, :])
        if AHEAD:  # the compiler pipelines x alone; several warps would pass the tile through memory for it
            rstd, row, after = rstd_after, row_after, tl.minimum(r + 1, r1 - 1)
            rstd_after, row_after = _row_terms(RSTD, UROW, b, after, n, m, mm, R, rows, blocks * BW, rb)
        else:
            rstd, row = _row_terms(RSTD, UROW, b, r, n, m, mm, R, rows, blocks * BW, rb)
        start = (cols + row[:, None]) * rstd[None, :] - top[:, None]
        p = tl.exp2(tl.dot(u, tl.trans(x), start, input_precision='ieee'))  # (BM, BW)
        weighted = p * rstd[None, :]
        along_rows += weighted
        if K <= 32:  # the product with slots has the sum along columns, too
            here = _summed(p, x, tl.zeros([BM, K], tl.float32), FINE)
            sums += here
            along_columns = tl.sum(here * is_rstd[None, :], 1)
        else:
            sums = _summed(p, x, sums, FINE)
            along_columns = tl.sum(weighted, 1)
        tl.store(ROWS + ((block * B + b) * rows + r) * R + m, along_columns, mask=mm)
    tl.store(COLUMNS + ((split * B + b) * R + m[:, None]) * W + n[None, :], along_rows, mask=tile)
    tl.store(SUMS + (((split * blocks + block) * B + b) * R + m[:, None]) * K + k[None, :], sums, mask=mm[:, None])


@triton.jit
def _fourier_cross_attention_bwd_kernel(
    U, UROW, UCOL, G, GROW, GCOL, X, RSTD, LSE, DELTA, SUMS, ROWS, COLUMNS, ub, rb, cb, B, R, rows, W, blocks,
    per_split, slot, rest,
    FINE: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # as above, with the gradients of scores for weights; G, GROW, GCOL: the gradient of the output, separated;
    # LSE in powers of 2 and DELTA (B, R)
    m, n, block, b, split, r0, r1 = _place(R, rows, blocks, B, per_split, BM, BW)
    k = tl.arange(0, K)
    mm = m < R
    tile = mm[:, None] & (n < W)[None, :]
    u = tl.load(U + b * ub + m[:, None] * K + k[None, :], mask=mm[:, None], other=0.0)
    g = tl.load(G + (b * R + m[:, None]) * K + k[None, :], mask=mm[:, None], other=0.0)
    cols = tl.load(UCOL + b * cb + m[:, None].to(tl.int64) * W + n[None, :], mask=tile, other=0.0)
    gcols = tl.load(GCOL + (b * R + m[:, None]) * W + n[None, :], mask=tile, other=0.0)
    lse = tl.load(LSE + b * R + m, mask=mm, other=0.0)
    delta = tl.load(DELTA + b * R + m, mask=mm, other=0.0)
    is_rstd = tl.where((k == slot) | (k == rest), 1.0, 0.0)
    along_rows = tl.zeros([BM, BW], tl.float32)
    sums = tl.zeros([BM, K], tl.float32)
    for r in range(r0, r1):
        at = (b * rows + r) * blocks * BW + n
        x = tl.load(X + at[:, None] * K + k[None, :])
        rstd = tl.load(RSTD + at)
        row = tl.load(UROW + b * rb + tl.cast(r, tl.int64) * R + m, mask=mm, other=0.0)
        grow = tl.load(GROW + (b * rows + r) * R + m, mask=mm, other=0.0)
        start = (cols + row[:, None]) * rstd[None, :] - lse[:, None]
        p = tl.exp2(tl.dot(u, tl.trans(x), start, input_precision='ieee'))
        start = (gcols + grow[:, None]) * rstd[None, :] - delta[:, None]
        ds = p * tl.dot(g, tl.trans(x), start, input_precision='ieee')  # (BM, BW)
        weighted = ds * rstd[None, :]
        along_rows += weighted
        if K <= 32:
            here = _summed(ds, x, tl.zeros([BM, K], tl.float32), FINE)
            sums += here
            along_columns = tl.sum(here * is_rstd[None, :], 1)
        else:
            sums = _summed(ds, x, sums, FINE)
            along_columns = tl.sum(weighted, 1)
        tl.store(ROWS + ((block * B + b) * rows + r) * R + m, along_columns, mask=mm)
    tl.store(COLUMNS + ((split * B + b) * R + m[:, None]) * W + n[None, :], along_rows, mask=tile)
    tl.store(SUMS + (((split * blocks + block) * B + b) * R + m[:, None]) * K + k[None, :], sums, mask=mm[:, None])


@triton.jit
def _fourier_inputs_bwd_kernel(
    U, UROW, UCOL, G, GROW, GCOL, X, RSTD, LSE, DELTA, DCONTENT, LOST, SLOPE, ub, rb, cb, db, dc, dr, dw,
    R, rows, W, blocks, c, C, first, split, NORM: tl.constexpr, HALF: tl.constexpr, FINE: tl.constexpr,
    BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # a program has a block of columns of one row and walks over queries; arguments as above
    # DCONTENT (B, c, rows, W) by its strides; a feature f of a position gets −LOST − f · SLOPE (B, rows, W) from the
    # normalisation. With A = Σ scale·dS·q + P·dO per channel, whose sum over channels is 0 as vectors are centred,
    # and e = Σ dS·s + P·dP, the gradient of a token is rstd · (A − x̂·e/C)
    n = tl.program_id(0) % blocks * BW + tl.arange(0, BW)
    line = tl.program_id(0) // blocks
    r = line % rows
    b = (line // rows).to(tl.int64)
    k = tl.arange(0, K)
    at = line.to(tl.int64) * blocks * BW + n
    x = tl.load(X + at[:, None] * K + k[None, :])  # (BW, K)
    rstd = tl.load(RSTD + at)
    kept = k <= c
    parted = kept & (k >= first) if HALF else k < 0  # channels of which two further slots have the rest
    total = tl.zeros([BW, K], tl.float32)
    slope = tl.zeros([BW], tl.float32)
    for m0 in range(0, R, BM):
        m = m0 + tl.arange(0, BM)
        mm = m < R
        vectors = b * R + m[:, None]
        shared = b * ub + m[:, None] * K
        u = tl.load(U + shared + k[None, :], mask=mm[:, None], other=0.0)  # (BM, K)
        g = tl.load(G + vectors * K + k[None, :], mask=mm[:, None], other=0.0)
        tile = mm[None, :] & (n < W)[:, None]
        cols = tl.load(UCOL + b * cb + m[None, :].to(tl.int64) * W + n[:, None], mask=tile, other=0.0)
        gcols = tl.load(GCOL + (b * R + m[None, :]) * W + n[:, None], mask=tile, other=0.0)
        row = tl.load(UROW + b * rb + r.to(tl.int64) * R + m, mask=mm, other=0.0)
        grow = tl.load(GROW + line.to(tl.int64) * R + m, mask=mm, other=0.0)
        lse = tl.load(LSE + b * R + m, mask=mm, other=float('inf'))
        delta = tl.load(DELTA + b * R + m, mask=mm, other=0.0)
        s = tl.dot(x, tl.trans(u), (cols + row[None, :]) * rstd[:, None], input_precision='ieee')  # (BW, BM)
        dp = tl.dot(x, tl.trans(g), (gcols + grow[None, :]) * rstd[:, None], input_precision='ieee')
        p = tl.exp2(s - lse[None, :])
        ds = p * (dp - delta[None, :]) * LN2
        slope += tl.sum(ds * s + p * dp, 1)
        total = _summed(ds, u, total, FINE)
        total = _summed(p, g, total, FINE)
        if HALF:  # what rounding took off the weights
            others = (mm[:, None] & parted[None, :]), c + 4 + split + k[None, :] - first
            u = tl.load(U + shared + others[1], mask=others[0], other=0.0)
            g = tl.load(G + vectors * K + others[1], mask=others[0], other=0.0)
            total = _summed(ds, u, total, False)
            total = _summed(p, g, total, False)
    if NORM:
        values = x.to(tl.float32)
        if HALF:
            others = tl.load(X + at[:, None] * K + (c + 4 + k - first)[None, :], mask=parted[None, :], other=0.0)
            values += others.to(tl.float32)
        slope = slope / C
        mean = tl.sum(tl.where((k == c)[None, :], values, 0.0), 1)  # times rstd
        total = (total - values * slope[:, None]) * rstd[:, None]
        inside = n < W
        at = line.to(tl.int64) * W + n
        tl.store(LOST + at, -rstd * mean * slope, mask=inside)
        tl.store(SLOPE + at, rstd * rstd * slope, mask=inside)
    to = DCONTENT + b * db + r.to(tl.int64) * dr + n[:, None].to(tl.int64) * dw + k[None, :].to(tl.int64) * dc
    tl.store(to, total.to(DCONTENT.dtype.element_ty), mask=(n < W)[:, None] & (k < c)[None, :])


@dataclass(frozen=True)
class _Config:
    """Queries and columns of a block in each role, and how it is compiled."""

    columns: int
    forward: Tuple[int, int, int]  # queries, warps, stages
    backward: Tuple[int, int, int]
    inputs: Tuple[int, int, int]

    def options(self, role: str) -> dict:
        queries, warps, stages = getattr(self, role)
        return dict(BM=queries, BW=self.columns, num_warps=warps, num_stages=stages, **FUSION)


INTERPRETED = _Config(16, (16, 1, 1), (16, 4, 1), (16, 4, 1))
# By bfloat16 operands and by 16 slots, of what compiles without spills: with tiles this small one warp alone, whose
# weights stay in registers, takes the fewest instructions for a score; elsewhere what leaves room for the most warps
NVIDIA = {
    (True, True): _Config(32, (32, 1, 2), (32, 2, 2), (16, 1, 2)),
    (True, False): _Config(32, (64, 8, 2), (32, 4, 2), (16, 4, 2)),
    (False, True): _Config(32, (32, 4, 2), (32, 8, 2), (32, 4, 2)),
    (False, False): _Config(16, (32, 8, 2), (32, 8, 2), (16, 8, 1)),
}
AMD = {
    (True, True): _Config(32, (64, 4, 2), (64, 4, 2), (32, 4, 2)),
    (True, False): _Config(32, (64, 4, 2), (32, 4, 2), (16, 4, 2)),
    (False, True): _Config(32, (64, 4, 2), (64, 4, 2), (32, 4, 2)),
    (False, False): _Config(16, (64, 4, 2), (32, 4, 2), (16, 4, 1)),
}


def config(layout: Slots) -> _Config:
    """Launch configurations on the current target."""
    name = target()
    if name == INTERPRETER:
        return INTERPRETED
    return (NVIDIA if name.startswith('sm_') else AMD)[layout.half, layout.width == 16]


class _Positions:
    """Positions of a grid in the form that kernels read, and launches over them.

    Attributes:
        tables: The position features.
        x: Slots (B, rows, W rounded up to blocks, K).
        rstd: (B, rows, W rounded up to blocks) float32.
    """

    def __init__(
        self,
        content: torch.Tensor,
        axes: Sequence[torch.Tensor],
        eps: Optional[float],
        mask: Optional[torch.Tensor],
        layout: Slots,
    ):
        self.layout, self.normalised, self.config = layout, eps is not None, config(layout)
        self.tables = tables = Tables.of(axes, self.normalised)
        content = content.reshape(*content.shape[:2], -1, content.shape[-1])
        self.batch, c, self.rows, self.columns = content.shape
        self.blocks = triton.cdiv(self.columns, self.config.columns)
        width = self.blocks * self.config.columns
        size = (self.batch, self.rows, width)
        self.x = content.new_empty(*size, layout.width, dtype=layout.dtype)
        self.rstd = content.new_empty(size, dtype=torch.float32)
        maps = content if mask is None else mask.reshape(self.batch, self.rows, self.columns).view(torch.uint8)
        self.channels = c + tables.rows.shape[1] + tables.columns.shape[1]
        wide = triton.next_power_of_2(c) if self.normalised else 1
        row, column = tables.statistics()
        block = min(self.config.columns, max(16, 1024 // layout.width))
        _fourier_maps_fwd_kernel[(self.batch * self.rows * width // block,)](
            content, maps, row, column, tables.shift, self.x, self.rstd, *content.stride(), *maps.stride()[:3],
            c, self.channels, tables.rows.shape[1], tables.columns.shape[1], self.rows, self.columns, width,
            eps or 0.0, layout.first, layout.split, NORM=self.normalised, HAS_MASK=mask is not None,
            HALF=layout.half, BN=block, BC=wide, K=layout.width, num_warps=1 if layout.width == 16 else 4, **FUSION,
        )  # fmt: skip

    def separate(self, vectors: torch.Tensor, bias: bool) -> Weights:
        """Vectors (b, R, C) as weights of slots and products with tables."""
        return Weights.of(vectors, self.tables, self.layout, bias)

    def tops(self, u: Weights, bounds: torch.Tensor) -> torch.Tensor:
        """What to take off the scores (B, R) so that their powers of 2 are finite and not all 0."""
        R = bounds.shape[1]
        cut, grid, splits = self._cut(R, 'forward')
        tops = bounds.new_empty(splits, self.blocks, self.batch, R)
        _fourier_top_fwd_kernel[grid](
            *pointers(u), self.x, self.rstd, bounds, tops, *batch_strides(u), batch_stride(bounds),
            self.batch, R, self.rows, self.columns, self.blocks, cut, SAFE=SAFE, K=self.layout.width,
            **self.config.options('forward'),
        )  # fmt: skip
        return tops.amax((0, 1))

    def weigh(self, u: Weights, tops: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums of 2^(score − top) with the slots (B, R, K), and with rstd per row (B, rows, R) and column (B, R, W)."""
        cut, grid, splits = self._cut(tops.shape[1], 'forward')
        options = self.config.options('forward')
        sums, rows, columns = self._partial(tops, splits)
        _fourier_cross_attention_fwd_kernel[grid](
            *pointers(u), self.x, self.rstd, tops, sums, rows, columns, *batch_strides(u),
            self.batch, tops.shape[1], self.rows, self.columns, self.blocks, cut, *self._rstd_slots(),
            AHEAD=options['num_warps'] == 1, FINE=self.layout.fine, K=self.layout.width, **options,
        )  # fmt: skip
        return whole(sums), whole(rows), whole(columns)

    def weigh_gradients(self, u: Weights, g: Weights, lse: torch.Tensor, delta: torch.Tensor):
        """The same sums with the gradients of the scores for weights."""
        cut, grid, splits = self._cut(lse.shape[1], 'backward')
        sums, rows, columns = self._partial(lse, splits)
        _fourier_cross_attention_bwd_kernel[grid](
            *pointers(u), *pointers(g), self.x, self.rstd, lse, delta, sums, rows, columns, *batch_strides(u),
            self.batch, lse.shape[1], self.rows, self.columns, self.blocks, cut, *self._rstd_slots(),
            FINE=self.layout.fine, K=self.layout.width, **self.config.options('backward'),
        )  # fmt: skip
        return whole(sums), whole(rows), whole(columns)

    def input_gradients(self, u: Weights, g: Weights, lse: torch.Tensor, delta: torch.Tensor, content: torch.Tensor):
        """Write the gradient of content (B, c, rows, W); return what the normalisation takes from the tables."""
        layout = self.layout
        lost, slope = (self.rstd.new_empty(self.batch, self.rows, self.columns) for _ in range(2))
        _fourier_inputs_bwd_kernel[(self.batch * self.rows * self.blocks,)](
            *pointers(u), *pointers(g), self.x, self.rstd, lse, delta, content, lost, slope, *batch_strides(u),
            *content.stride(), lse.shape[1], self.rows, self.columns, self.blocks, layout.channels, self.channels,
            layout.first, layout.split, NORM=self.normalised, HALF=layout.half, FINE=layout.fine, K=layout.width,
            **self.config.options('inputs'),
        )  # fmt: skip
        return lost, slope

    def _rstd_slots(self) -> Tuple[int, int]:
        c, split = self.layout.channels, self.layout.split
        return c + 1, c + 4 + 2 * split if self.layout.half else c + 1

    def _cut(self, R: int, role: str) -> Tuple[int, Tuple[int], int]:
        """Rows of a split, grid, number of splits."""
        programs = triton.cdiv(R, self.config.options(role)['BM']) * self.blocks * self.batch
        wanted = PROGRAMS if target() != INTERPRETER else 16
        per_split = triton.cdiv(self.rows, min(self.rows, max(1, wanted // programs)))  # no wave for a few more
        splits = triton.cdiv(self.rows, per_split)
        return per_split, (programs * splits,), splits

    def _partial(self, like: torch.Tensor, splits: int) -> List[torch.Tensor]:
        B, R = like.shape
        shapes = (
            (splits * self.blocks, B, R, self.layout.width),
            (self.blocks, B, self.rows, R),
            (splits, B, R, self.columns),
        )
        return [like.new_empty(shape) for shape in shapes]


def forward(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """As `eager.forward`."""
    H, M, C = q.shape[1:]
    B, layout = content.shape[0], slots(content.shape[1], q.dtype)
    vectors = centred(q, scale * LOG2E, eps is not None)  # their scores are powers of 2
    bounds = bound(vectors, eps is not None)
    total = None
    for begin, end in chunks(B * H * M, content.shape[-1], LARGEST_MATRIX):
        part = columns_of(content, axes, mask, begin, end)
        grid = _Positions(part[0], part[1], eps, part[2], layout)
        u = grid.separate(vectors, True)
        tops = grid.tops(u, bounds)
        sums, rows, columns = grid.weigh(u, tops)
        here = tops, sums[..., layout.channels + 2], features(sums, rows, columns, grid.tables, layout)
        total = here if total is None else merged(total, here)
    tops, denominator, out = total
    nothing = denominator == 0
    out = torch.where(nothing.unsqueeze(-1), 0.0, out / denominator.unsqueeze(-1))
    lse = ((tops + denominator.log2()) / LOG2E).masked_fill(nothing, float('inf'))
    return out.view(B, H, M, C), lse.view(B, H, M)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
    needs_inputs: bool,
) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
    """As `eager.backward`."""
    layout = slots(content.shape[1], q.dtype)
    vectors, grad = centred(q, scale * LOG2E, eps is not None), centred(grad, 1.0, eps is not None)
    delta = (grad * out.flatten(1, 2)).sum(-1).contiguous()  # (B, R)
    lse = (lse.flatten(1, 2) * LOG2E).contiguous()
    dq, row_grads, column_grads = None, None, []
    dcontent = content.new_empty(content.shape) if needs_inputs else content.new_empty(0)
    for begin, end in chunks(lse.numel(), content.shape[-1], LARGEST_MATRIX):
        part = columns_of(content, axes, mask, begin, end)
        grid = _Positions(part[0], part[1], eps, part[2], layout)
        u, g = grid.separate(vectors, True), grid.separate(grad, False)
        sums, rows, columns = grid.weigh_gradients(u, g, lse, delta)
        if needs_inputs:
            lost = grid.input_gradients(u, g, lse, delta, _rows_and_columns(dcontent)[..., begin:end])
            row, column = _table_gradients(grid, u, g, rows, columns, lse, lost)
            row_grads = row if row_grads is None else row_grads + row
            column_grads.append(column)
        if q.shape[0] == 1:  # fewer products where items share the queries
            sums, rows, columns = (t.sum(0, keepdim=True) for t in (sums, rows, columns))
        here = features(sums, rows, columns, grid.tables, layout)
        dq = here if dq is None else dq + here
    dq = (dq * scale).view(q.shape).to(q.dtype)
    if not needs_inputs:
        return dq, dcontent, []
    return dq, dcontent, grid.tables.per_axis(row_grads, torch.cat(column_grads), axes)


def _rows_and_columns(content: torch.Tensor) -> torch.Tensor:
    return content.view(*content.shape[:2], -1, content.shape[-1])


def _table_gradients(
    grid: _Positions,
    u: Weights,
    g: Weights,
    rows: torch.Tensor,
    columns: torch.Tensor,
    lse: torch.Tensor,
    lost: Sequence[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the tables of rows (rows, Fr) and of columns (W, Fc)."""
    _, row_weights, column_weights = grid.weigh(u, lse)
    lost, slope = lost
    gradients = []
    for ds, p, i, table, others in (
        (rows, row_weights, 1, grid.tables.rows, (0, 2)),
        (columns.mT, column_weights.mT, 2, grid.tables.columns, (0, 1)),
    ):
        gradient = (ds @ (u.parts[i] / LOG2E)).sum(0) + (p @ g.parts[i]).sum(0)
        if grid.normalised:
            gradient = gradient - lost.sum(others)[:, None] - table * slope.sum(others)[:, None]
        gradients.append(gradient)
    return gradients[0], gradients[1]
