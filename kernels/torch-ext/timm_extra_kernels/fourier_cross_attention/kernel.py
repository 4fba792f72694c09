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
from .finish import LN2, Softmax, Sums, TableGradients, finish
from .operands import LOG2E, SAFE, Slots, batch_stride, chunks, slots
from .separate import MASKED, Tables, Vectors, fourier_maps_fwd_kernel

LOG2_OF_E: tl.constexpr = tl.constexpr(LOG2E)
PROGRAMS = 1024  # that fill a GPU; fewer are split along rows
LARGEST_MATRIX = 1 << 26  # elements of queries × columns; a longer last axis is cut


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


@triton.jit(do_not_specialize=['ub', 'rb', 'cb', 'kb', 'B', 'R', 'rows', 'blocks', 'per_split'])
def _fourier_top_fwd_kernel(
    U, UROW, UCOL, X, RSTD, BOUND, TOP, ub, rb, cb, kb, B, R, rows, blocks, per_split, SAFE: tl.constexpr,
    BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # U (B, R, K), UROW (B, rows, R), UCOL (B, blocks · BW, R), BOUND (B, R); X (B, rows, blocks · BW, K), RSTD the
    # same less K. Columns behind the last are as masked ones
    # TOP (B, R): raised to the largest score, but for queries whose scores cannot be large
    m, n, _, b, _, r0, r1 = _place(R, rows, blocks, B, per_split, BM, BW)
    mm = m < R
    bound = tl.load(BOUND + b * kb + m, mask=mm, other=0.0)
    if tl.max(bound, 0) > SAFE:
        k = tl.arange(0, K)
        u = tl.load(U + b * ub + m[:, None] * K + k[None, :], mask=mm[:, None], other=0.0)
        cols = tl.load(UCOL + b * cb + n[None, :].to(tl.int64) * R + m[:, None], mask=mm[:, None], other=0.0)
        tops = tl.full([BM, BW], MASKED, tl.float32)
        for r in range(r0, r1):
            at = (b * rows + r) * blocks * BW + n
            x = tl.load(X + at[:, None] * K + k[None, :])
            rstd = tl.load(RSTD + at)
            row = tl.load(UROW + b * rb + tl.cast(r, tl.int64) * R + m, mask=mm, other=0.0)
            s = tl.dot(u, tl.trans(x), (cols + row[:, None]) * rstd[None, :], input_precision='ieee')
            tops = tl.maximum(tops, s)
        tl.atomic_max(TOP + b * R + m, tl.max(tops, 1), mask=mm & (bound > SAFE), sem='relaxed')


@triton.jit(
    do_not_specialize=['ub', 'rb', 'cb', 'B', 'R', 'rows', 'blocks', 'per_split', 'slot', 'rest'],
)
def _fourier_cross_attention_fwd_kernel(
    U, UROW, UCOL, X, RSTD, TOP, SUMS, ROWS, COLUMNS, ub, rb, cb, unit, B, R, rows, blocks, per_split, slot, rest,
    AHEAD: tl.constexpr, FINE: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # as above; TOP (B, R), a unit of which is that many powers of 2; of weights 2^(score − top): SUMS (splits · blocks,
    # B, K, R) with the slots, and with rstd ROWS (blocks, B, rows, R) and COLUMNS (splits, B, blocks · BW, R)
    m, n, block, b, split, r0, r1 = _place(R, rows, blocks, B, per_split, BM, BW)
    k = tl.arange(0, K)
    mm = m < R
    u = tl.load(U + b * ub + m[:, None] * K + k[None, :], mask=mm[:, None], other=0.0)
    cols = tl.load(UCOL + b * cb + n[None, :].to(tl.int64) * R + m[:, None], mask=mm[:, None], other=0.0)
    top = tl.load(TOP + b * R + m, mask=mm, other=0.0) * unit
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
    tl.store(COLUMNS + ((split * B + b) * blocks * BW + n[None, :]) * R + m[:, None], along_rows, mask=mm[:, None])
    tl.store(SUMS + (((split * blocks + block) * B + b) * K + k[None, :]) * R + m[:, None], sums, mask=mm[:, None])


@triton.jit(
    do_not_specialize=['ub', 'rb', 'cb', 'B', 'R', 'rows', 'blocks', 'per_split', 'slot', 'rest'],
)
def _fourier_cross_attention_bwd_kernel(
    U, UROW, UCOL, G, GROW, GCOL, X, RSTD, LSE, DELTA, SUMS, ROWS, COLUMNS, ub, rb, cb, B, R, rows, blocks,
    per_split, slot, rest,
    FINE: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # as above, with the gradients of scores for weights; G, GROW, GCOL: the gradient of the output, separated;
    # LSE and DELTA (B, R)
    m, n, block, b, split, r0, r1 = _place(R, rows, blocks, B, per_split, BM, BW)
    k = tl.arange(0, K)
    mm = m < R
    u = tl.load(U + b * ub + m[:, None] * K + k[None, :], mask=mm[:, None], other=0.0)
    g = tl.load(G + (b * R + m[:, None]) * K + k[None, :], mask=mm[:, None], other=0.0)
    cols = tl.load(UCOL + b * cb + n[None, :].to(tl.int64) * R + m[:, None], mask=mm[:, None], other=0.0)
    gcols = tl.load(GCOL + (b * blocks * BW + n[None, :]) * R + m[:, None], mask=mm[:, None], other=0.0)
    lse = tl.load(LSE + b * R + m, mask=mm, other=0.0) * LOG2_OF_E
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
    tl.store(COLUMNS + ((split * B + b) * blocks * BW + n[None, :]) * R + m[:, None], along_rows, mask=mm[:, None])
    tl.store(SUMS + (((split * blocks + block) * B + b) * K + k[None, :]) * R + m[:, None], sums, mask=mm[:, None])


@triton.jit(
    do_not_specialize=['ub', 'rb', 'cb', 'db', 'dc', 'dr', 'R', 'rows', 'W', 'blocks', 'c', 'C', 'first', 'split'],
)
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
        cols = tl.load(UCOL + b * cb + n[:, None].to(tl.int64) * R + m[None, :], mask=mm[None, :], other=0.0)
        gcols = tl.load(GCOL + (b * blocks * BW + n[:, None]) * R + m[None, :], mask=mm[None, :], other=0.0)
        row = tl.load(UROW + b * rb + r.to(tl.int64) * R + m, mask=mm, other=0.0)
        grow = tl.load(GROW + line.to(tl.int64) * R + m, mask=mm, other=0.0)
        lse = tl.load(LSE + b * R + m, mask=mm, other=float('inf')) * LOG2_OF_E
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
    bias = tl.load(X + (line.to(tl.int64) * blocks * BW + n) * K + c + 3).to(tl.float32)
    total = tl.where((bias == 0.0)[:, None], total, 0.0)  # of masked positions also where a query is NaN
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
    (False, True): _Config(32, (32, 4, 2), (32, 4, 2), (32, 4, 2)),
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
    """Columns `begin` to `end` of a grid in the form that kernels read, and launches over them.

    Attributes:
        part: Table of the columns.
        x: Slots (B, rows, columns rounded up to blocks, K).
        rstd: (B, rows, columns rounded up to blocks) float32.
    """

    def __init__(
        self,
        content: torch.Tensor,
        tables: Tables,
        eps: Optional[float],
        mask: Optional[torch.Tensor],
        layout: Slots,
        begin: int,
        end: int,
    ):
        self.layout, self.normalised, self.config = layout, eps is not None, config(layout)
        self.tables, self.begin = tables, begin
        self.part = tables.columns[begin:end]
        content = _lines(content[..., begin:end])
        self.batch, c, self.rows, self.columns = content.shape
        self.blocks = triton.cdiv(self.columns, self.config.columns)
        width = self.blocks * self.config.columns
        size = (self.batch, self.rows, width)
        self.x = content.new_empty(*size, layout.width, dtype=layout.dtype)
        self.rstd = content.new_empty(size, dtype=torch.float32)
        maps = content if mask is None else _lines(mask[:, None, ..., begin:end])[:, 0].view(torch.uint8)
        self.channels = c + sum(tables.features)
        wide = triton.next_power_of_2(c) if self.normalised else 1
        block = min(self.config.columns, max(16, 1024 // layout.width))
        fourier_maps_fwd_kernel[(self.batch * self.rows * width // block,)](
            content, maps, tables.row_statistics, tables.column_statistics[begin:end], tables.shift, self.x, self.rstd,
            *content.stride(), *maps.stride()[:3], c, self.channels, tables.rows.shape[1],
            self.part.shape[1], self.rows, self.columns, width,
            eps or 0.0, layout.first, layout.split, NORM=self.normalised, HAS_MASK=mask is not None,
            HALF=layout.half, BN=block, BC=wide, K=layout.width, num_warps=1 if layout.width == 16 else 4, **FUSION,
        )  # fmt: skip

    def separate(
        self,
        given: torch.Tensor,
        factor: float,
        out: Optional[Sequence[torch.Tensor]] = None,
        tops: Optional[torch.Tensor] = None,
    ) -> Vectors:
        """As `Vectors.of`."""
        return Vectors.of(
            given, factor, self.tables, self.part, self.rstd.shape[2], self.layout, self.normalised, out, tops
        )

    def raise_tops(self, u: Vectors, tops: torch.Tensor) -> None:
        """Raise (B, R) to what to take off the scores so that their powers of 2 are finite and not all 0."""
        R = tops.shape[1]
        cut, grid, _ = self._cut(R, 'forward')
        _fourier_top_fwd_kernel[grid](
            *u.operands, self.x, self.rstd, u.more, tops, *u.strides, batch_stride(u.more),
            self.batch, R, self.rows, self.blocks, cut, SAFE=SAFE, K=self.layout.width,
            **self.config.options('forward'),
        )  # fmt: skip

    def weigh(self, u: Vectors, tops: torch.Tensor, unit: float) -> Sums:
        """Sums of 2^(score − unit · top), tops (B, R)."""
        cut, grid, splits = self._cut(tops.shape[1], 'forward')
        options = self.config.options('forward')
        sums = self._partial(tops, splits)
        _fourier_cross_attention_fwd_kernel[grid](
            *u.operands, self.x, self.rstd, tops, sums.slots, sums.rows, sums.columns, *u.strides, unit,
            self.batch, tops.shape[1], self.rows, self.blocks, cut, *self._rstd_slots(),
            AHEAD=options['num_warps'] == 1, FINE=self.layout.fine, K=self.layout.width, **options,
        )  # fmt: skip
        return sums

    def weigh_gradients(self, u: Vectors, g: Vectors, lse: torch.Tensor) -> Sums:
        """The same sums with the gradients of the scores for weights."""
        cut, grid, splits = self._cut(lse.shape[1], 'backward')
        sums = self._partial(lse, splits)
        _fourier_cross_attention_bwd_kernel[grid](
            *u.operands, *g.operands, self.x, self.rstd, lse, g.more, sums.slots, sums.rows, sums.columns, *u.strides,
            self.batch, lse.shape[1], self.rows, self.blocks, cut, *self._rstd_slots(),
            FINE=self.layout.fine, K=self.layout.width, **self.config.options('backward'),
        )  # fmt: skip
        return sums

    def input_gradients(self, u: Vectors, g: Vectors, lse: torch.Tensor, content: torch.Tensor) -> List[torch.Tensor]:
        """Write the gradient of content (B, c, rows, W); return what the normalisation takes from the tables."""
        layout = self.layout
        lost = [self.rstd.new_empty(self.batch, self.rows, self.columns) for _ in range(2)]
        _fourier_inputs_bwd_kernel[(self.batch * self.rows * self.blocks,)](
            *u.operands, *g.operands, self.x, self.rstd, lse, g.more, content, *lost, *u.strides,
            *content.stride(), lse.shape[1], self.rows, self.columns, self.blocks, layout.channels, self.channels,
            layout.first, layout.split, NORM=self.normalised, HALF=layout.half, FINE=layout.fine, K=layout.width,
            **self.config.options('inputs'),
        )  # fmt: skip
        return lost

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

    def _partial(self, like: torch.Tensor, splits: int) -> Sums:
        B, R = like.shape

        def new(*shape: int) -> torch.Tensor:
            return like.new_empty(shape, dtype=torch.float32)

        slots = new(splits * self.blocks, B, self.layout.width, R)
        return Sums(slots, new(self.blocks, B, self.rows, R), new(splits, B, self.rstd.shape[2], R))


def _lines(grid: torch.Tensor) -> torch.Tensor:
    """(B, c, *spatial) as (B, c, rows, W)."""
    return grid.reshape(*grid.shape[:2], -1, grid.shape[-1])


def forward(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `eager.forward`."""
    H, M, C = q.shape[1:]
    B, layout, tables = content.shape[0], slots(content.shape[1], q.dtype), Tables(axes, eps is not None)
    half, parts = q.dtype != torch.float32, chunks(B * H * M, content.shape[-1], LARGEST_MATRIX)
    out = q.new_empty(B, H, M, C)
    exact = q.new_empty(B, H, M, C, dtype=torch.float32) if half and len(parts) > 1 else None if half else out
    rest = q.new_empty(out.shape if half else 1)
    tops, *lse = (q.new_empty(B, H * M, dtype=torch.float32) for _ in range(3))  # a range writes one of two
    for i, (begin, end) in enumerate(parts):
        grid = _Positions(content, tables, eps, mask, layout, begin, end)
        u = grid.separate(q, scale * LOG2E, tops=tops)  # scores are powers of 2
        grid.raise_tops(u, tops)
        lse.reverse()
        softmax = Softmax(tops, *lse, rest)
        finish(grid.weigh(u, tops, 1.0), tables, grid.part, layout, exact, out if half else None, 1.0, i > 0, softmax)
    return out, lse[1].view(B, H, M), rest


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    out: torch.Tensor,
    rest: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
    needs_inputs: bool,
) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
    """As `eager.backward`."""
    layout, tables = slots(content.shape[1], q.dtype), Tables(axes, eps is not None)
    out = out.contiguous(), rest.contiguous()
    lse = lse.flatten(1, 2).contiguous()  # (B, R)
    parts = chunks(lse.numel(), content.shape[-1], LARGEST_MATRIX)
    dq = q.new_empty(q.shape)
    total = None if len(parts) == 1 else q.new_empty(q.shape, dtype=torch.float32)
    dcontent = content.new_empty(content.shape if needs_inputs else 0)
    inputs = TableGradients(tables, *lse.shape, len(parts), eps is not None) if needs_inputs else None
    for i, (begin, end) in enumerate(parts):
        grid = _Positions(content, tables, eps, mask, layout, begin, end)
        u, g = grid.separate(q, scale * LOG2E), grid.separate(grad, 1.0, out=out)
        sums = grid.weigh_gradients(u, g, lse)
        if inputs:
            lost = grid.input_gradients(u, g, lse, _lines(dcontent[..., begin:end]))
            inputs.add(i, begin, grid.part, u, g, scale, sums, grid.weigh(u, lse, LOG2E), lost)
        finish(sums, tables, grid.part, layout, total, dq if end == content.shape[-1] else None, scale, i > 0)
    return dq, dcontent, inputs.finish(axes) if inputs else []
