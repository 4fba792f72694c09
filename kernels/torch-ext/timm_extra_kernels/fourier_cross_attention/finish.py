"""What separable cross-attention computes after it has attended: partial sums to outputs and gradients.

Each kernel adds up the parts that programs left, in a fixed order, and multiplies them with the tables.
"""

from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Sequence

import torch
import triton
import triton.language as tl

from .._target import FUSION, INTERPRETER, target
from .operands import Slots, batch_stride
from .separate import Tables, Vectors, added, products, row_pointers

PROGRAMS = 512  # for gradients of tables; fewer are split along items and queries

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _slot(SUMS, slot, parts, items, B, b, m, inside, R, K: tl.constexpr, MANY: tl.constexpr):
    # sum of one slot over parts and over items from b on
    total = tl.zeros_like(m).to(tl.float32)
    for i0 in range(0, parts * items, MANY):
        i = i0 + tl.arange(0, MANY)
        at = ((i // items).to(tl.int64) * B + b + i % items) * K + slot
        held = (i < parts * items)[:, None] & inside[None, :]
        total += tl.sum(tl.load(SUMS + at[:, None] * R + m[None, :], mask=held, other=0.0), 0)
    return total


@triton.jit
def _slots(SUMS, slots, held, parts, items, B, b, m, inside, R, K: tl.constexpr, MANY: tl.constexpr):
    # the same for several slots (slots, queries)
    total = tl.zeros([slots.shape[0], m.shape[0]], tl.float32)
    held = held[None, :, None] & inside[None, None, :]
    for i0 in range(0, parts * items, MANY):
        i = i0 + tl.arange(0, MANY)
        at = ((i // items).to(tl.int64) * B + b + i % items) * K
        at = (at[:, None, None] + slots[None, :, None]) * R + m[None, None, :]
        total += tl.sum(tl.load(SUMS + at, mask=held & (i < parts * items)[:, None, None], other=0.0), 0)
    return total


@triton.jit
def _weights(PARTIAL, step, parts, items, B, b, m, inside, R, p, P, height, MANY: tl.constexpr):
    # Σ over some parts and items from b on of weights (parts, B, height, R): (positions p, queries m)
    i = step * MANY + tl.arange(0, MANY)
    item = (i // items).to(tl.int64) * B + b + i % items
    at = (item[:, None, None] * height + p[None, :, None]) * R + m[None, None, :]
    held = (i < parts * items)[:, None, None] & (p < P)[None, :, None] & inside[None, None, :]
    return tl.sum(tl.load(PARTIAL + at, mask=held, other=0.0), 0)


@triton.jit
def _features(
    PARTIAL, TABLE, parts, items, B, b, m, inside, R, f, F, P, height, TF32: tl.constexpr, BK: tl.constexpr,
    MANY: tl.constexpr,
):  # fmt: skip
    # Σ over positions of weights times features f of a table (P, F): (queries, features)
    total = tl.zeros([m.shape[0], f.shape[0]], tl.float32)
    steps = tl.cdiv(parts * items, MANY)
    for step in range(0, tl.cdiv(P, BK) * steps):
        p = step // steps * BK + tl.arange(0, BK)
        weights = _weights(PARTIAL, step % steps, parts, items, B, b, m, inside, R, p, P, height, MANY)
        at = p[:, None].to(tl.int64) * F + f[None, :]
        table = tl.load(TABLE + at, mask=(p < P)[:, None] & (f < F)[None, :], other=0.0)
        total = added(total, tl.trans(weights), table, TF32)
    return total


@triton.jit
def _put(
    values, own, earlier, EXACT, OUT, REST, to, held, KEEP: tl.constexpr, ROUND: tl.constexpr, SPLIT: tl.constexpr,
    MERGE: tl.constexpr,
):  # fmt: skip
    # write values, merged with what other columns gave
    if MERGE:
        values = values * own[:, None] + tl.load(EXACT + to, mask=held, other=0.0) * earlier[:, None]
    if KEEP:
        tl.store(EXACT + to, values, mask=held)
    if ROUND:
        rounded = values.to(OUT.dtype.element_ty)
        tl.store(OUT + to, rounded, mask=held)
        if SPLIT:
            tl.store(REST + to, (values - rounded.to(tl.float32)).to(REST.dtype.element_ty), mask=held)


@triton.jit
def _log_sum_exp(TOP, LSE, BEFORE, total, at, inside, write, MERGE: tl.constexpr):
    # natural logarithm of the sum of exponentials, +inf where there are none, and with earlier columns the weights of
    # these and of those
    lowest = float('-inf')
    top = tl.load(TOP + at, mask=inside, other=0.0)
    lse = tl.where(total == 0.0, lowest, (top + tl.log2(tl.where(total == 0.0, 1.0, total))) * LN2)
    own = tl.zeros_like(total) + 1.0
    earlier = tl.zeros_like(total)
    if MERGE:
        before = tl.load(BEFORE + at, mask=inside, other=0.0)
        before = tl.where(before == float('inf'), lowest, before)
        most = tl.maximum(lse, before)
        most = tl.where(most == lowest, 0.0, most)
        own, earlier = tl.exp(lse - most), tl.exp(before - most)
        both = own + earlier
        lse = tl.where(both == 0.0, lowest, most + tl.log(tl.where(both == 0.0, 1.0, both)))
        own, earlier = own / tl.where(both == 0.0, 1.0, both), earlier / tl.where(both == 0.0, 1.0, both)
    if write:
        tl.store(LSE + at, tl.where(lse == lowest, float('inf'), lse), mask=inside)
    return own, earlier


@triton.jit(
    do_not_specialize=[
        'parts', 'row_parts', 'column_parts', 'items', 'B', 'R', 'c', 'Fr', 'Fc', 'rows', 'W', 'width', 'first',
    ],
)  # fmt: skip
def fourier_finish_fwd_kernel(
    SUMS, ROW_SUMS, COLUMN_SUMS, ROWS, COLUMNS, TOP, BEFORE, LSE, EXACT, OUT, REST, parts, row_parts, column_parts,
    items, B, R, c, Fr, Fc, rows, W, width, first, factor, HALF: tl.constexpr, SOFTMAX: tl.constexpr,
    KEEP: tl.constexpr, ROUND: tl.constexpr, SPLIT: tl.constexpr, MERGE: tl.constexpr, TF32: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, MANY: tl.constexpr,
    MANY_SLOTS: tl.constexpr, MANY_PARTS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # factor · Σ weights · x̂ of each query, over one item or all, from SUMS (parts, B, K, R), ROW_SUMS (row_parts, B,
    # rows, R) and COLUMN_SUMS (column_parts, B, width, R); SOFTMAX: divided by the sum of the weights
    # in float32 to EXACT (b, R, C), in another dtype to OUT, what that takes off to REST, which without is one 0
    # LSE (B, R) follows BEFORE, that of other columns
    C = c + Fr + Fc
    content_tiles = tl.cdiv(c, BC)
    row_tiles = tl.cdiv(Fr, BF)
    tiles = content_tiles + row_tiles + tl.cdiv(Fc, BF)
    tile = tl.program_id(0) % tiles
    blocks = tl.cdiv(R, BM)
    m = tl.program_id(0) // tiles % blocks * BM + tl.arange(0, BM)
    b = (tl.program_id(0) // tiles // blocks).to(tl.int64)
    inside = m < R
    at = b * R + m
    own = tl.zeros([BM], tl.float32) + 1.0
    earlier, divisor = own, own
    if SOFTMAX:
        total = _slot(SUMS, c + 2, parts, items, B, b, m, inside, R, K, MANY)
        own, earlier = _log_sum_exp(TOP, LSE, BEFORE, total, at, inside, tile == 0, MERGE)
        divisor = tl.where(total == 0.0, 1.0, total)
        if not SPLIT:  # noqa: SIM102 (a constant and a value)
            if tl.program_id(0) == 0:
                tl.store(REST, 0.0)
    at = at * C
    if tile < content_tiles:
        j = tile * BC + tl.arange(0, BC)
        content = _slots(SUMS, j, j < c, parts, items, B, b, m, inside, R, K, MANY_SLOTS)
        if HALF:
            rest = c + 4 + j - first
            content += _slots(SUMS, rest, (j >= first) & (j < c), parts, items, B, b, m, inside, R, K, MANY_SLOTS)
        content = tl.trans(content) * factor / divisor[:, None]
        wanted = inside[:, None] & (j < c)[None, :]
        _put(content, own, earlier, EXACT, OUT, REST, at[:, None] + j[None, :], wanted, KEEP, ROUND, SPLIT, MERGE)
    else:
        mean = _slot(SUMS, c, parts, items, B, b, m, inside, R, K, MANY)
        if HALF:
            mean += _slot(SUMS, 2 * c + 4 - first, parts, items, B, b, m, inside, R, K, MANY)
        f = (tile - content_tiles) * BF + tl.arange(0, BF)
        PARTIAL, TABLE, some, F, P, height, channel = ROW_SUMS, ROWS, row_parts, Fr, rows, rows, c
        if tile >= content_tiles + row_tiles:
            f -= row_tiles * BF
            PARTIAL, TABLE, some, F, P, height, channel = COLUMN_SUMS, COLUMNS, column_parts, Fc, W, width, c + Fr
        values = _features(PARTIAL, TABLE, some, items, B, b, m, inside, R, f, F, P, height, TF32, BK, MANY_PARTS)
        values = (values - mean[:, None]) * factor / divisor[:, None]
        held = inside[:, None] & (f < F)[None, :]
        _put(
            values, own, earlier, EXACT, OUT, REST, at[:, None] + channel + f[None, :], held, KEEP, ROUND, SPLIT, MERGE
        )


@triton.jit
def _weighed(
    total, PARTIAL, parts, V, MEAN, sb, sh, sm, sc, ss, factor, i0, i1, B, R, M, p, P, height, f, F,
    TF32: tl.constexpr, BK: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    # total (positions, features) + Σ over blocks i0 … i1 of queries, of all items, of weights times channels of V
    blocks = tl.cdiv(R, BK)
    steps = tl.cdiv(parts, MANY)
    for i in range(i0 * steps, i1 * steps):
        b = (i // steps // blocks).to(tl.int64)
        m = i // steps % blocks * BK + tl.arange(0, BK)
        inside = m < R
        weights = _weights(PARTIAL, i % steps, parts, 1, B, b, m, inside, R, p, P, height, MANY)
        vectors = row_pointers(V, sb, sh, sm, b, m, M)
        held = inside[:, None] & (f < F)[None, :]
        value = tl.load(vectors[:, None] + f[None, :].to(tl.int64) * sc, mask=held, other=0.0).to(tl.float32)
        mean = tl.load(MEAN + b * ss + m, mask=inside, other=0.0)
        value = tl.where(held, (value - mean[:, None]) * factor, 0.0)
        total = added(total, weights, value, TF32)
    return total


@triton.jit
def _lost(LOST, s, splits, B, p, P, along, across, N, BN: tl.constexpr):
    # Σ over items s, s + splits, … and the N positions across of LOST (B, rows, W)
    total = tl.zeros_like(p).to(tl.float32)
    for b in range(s, B, splits):
        for n0 in range(0, N, BN):
            n = n0 + tl.arange(0, BN)
            at = tl.cast(b, tl.int64) * P * N + p[None, :].to(tl.int64) * along + n[:, None].to(tl.int64) * across
            total += tl.sum(tl.load(LOST + at, mask=(p < P)[None, :] & (n < N)[:, None], other=0.0), 0)
    return total


@triton.jit(
    do_not_specialize=[
        'row_parts_d', 'row_parts_p', 'column_parts_d', 'column_parts_p', 'B', 'R', 'M', 'c', 'Fr', 'Fc', 'rows', 'W',
        'splits', 'per_split', 'width', 'first_column', 'Wall', 'qb', 'qh', 'qm', 'gb', 'gh', 'gm', 'qs',
    ],
)  # fmt: skip
def fourier_tables_bwd_kernel(
    ROW_D, ROW_P, COLUMN_D, COLUMN_P, Q, QMEAN, G, GMEAN, LOST, SLOPE, ROW_GRADS, COLUMN_GRADS, ROW_LOST, COLUMN_LOST,
    qb, qh, qm, qc, qs, gb, gh, gm, gc, factor, row_parts_d, row_parts_p, column_parts_d, column_parts_p, B, R, M, c,
    Fr, Fc, rows, W, width, Wall, first_column, splits, per_split, NORM: tl.constexpr, TF32: tl.constexpr,
    BP: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr, MANY_PARTS: tl.constexpr,
):  # fmt: skip
    # partial gradients of the tables, through scores and values, over a part of items and queries each: ROW_GRADS
    # (splits, rows, Fr), COLUMN_GRADS (splits, Wall, Fc), from gradients D of scores and weights P, summed along the
    # other axis; and sums (splits, positions, 2) of LOST and SLOPE
    row_tiles = tl.cdiv(rows, BP) * tl.cdiv(Fr, BF)
    tiles = row_tiles + tl.cdiv(W, BP) * tl.cdiv(Fc, BF)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    i0 = split * per_split
    i1 = tl.minimum(i0 + per_split, B * tl.cdiv(R, BK))
    D, some_d, P, some_p, TO, TO_LOST = ROW_D, row_parts_d, ROW_P, row_parts_p, ROW_GRADS, ROW_LOST
    F, size, height, channel, at = Fr, rows, rows, c, split.to(tl.int64) * rows
    along, across, others = W, 1, W
    if tile >= row_tiles:
        tile -= row_tiles
        D, some_d, P, some_p = COLUMN_D, column_parts_d, COLUMN_P, column_parts_p
        TO, TO_LOST, at = COLUMN_GRADS, COLUMN_LOST, split.to(tl.int64) * Wall + first_column
        F, size, height, channel = Fc, W, width, c + Fr
        along, across, others = 1, W, rows
    wide = tl.cdiv(F, BF)
    f = tile % wide * BF + tl.arange(0, BF)
    p = tile // wide * BP + tl.arange(0, BP)
    total = tl.zeros([BP, BF], tl.float32)
    total = _weighed(
        total, D, some_d, Q + channel * qc, QMEAN, qb, qh, qm, qc, qs, factor, i0, i1, B, R, M, p, size, height, f, F,
        TF32, BK, MANY_PARTS,
    )  # fmt: skip
    total = _weighed(
        total, P, some_p, G + channel * gc, GMEAN, gb, gh, gm, gc, R, 1.0, i0, i1, B, R, M, p, size, height, f, F,
        TF32, BK, MANY_PARTS,
    )  # fmt: skip
    at += p
    tl.store(TO + at[:, None] * F + f[None, :], total, mask=(p < size)[:, None] & (f < F)[None, :])
    if NORM:  # noqa: SIM102 (a constant and a value)
        if tile % wide == 0:
            tl.store(TO_LOST + 2 * at, _lost(LOST, split, splits, B, p, size, along, across, others, BK), mask=p < size)
            slope = _lost(SLOPE, split, splits, B, p, size, along, across, others, BK)
            tl.store(TO_LOST + 2 * at + 1, slope, mask=p < size)


@triton.jit
def _table_gradient(
    GRADS, LOST, TABLE, TO, i, size, others, along, across, f, F, first, features, splits, P,
    NORM: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    # gradient (size, F) of a table whose position i stands at i · along + o · across, o < others, among P; its features
    # are first … first + F of `features`
    total = tl.zeros([i.shape[0], f.shape[0]], tl.float32)
    held = i < size
    for s0 in range(0, splits * others, MANY):
        s = s0 + tl.arange(0, MANY)
        p = i[None, :].to(tl.int64) * along + (s % others)[:, None].to(tl.int64) * across
        at = (s // others)[:, None].to(tl.int64) * P + p
        some = (s < splits * others)[:, None] & held[None, :]
        columns = (f < F)[None, None, :]
        channel = first + f[None, None, :]
        value = tl.load(GRADS + at[:, :, None] * features + channel, mask=some[:, :, None] & columns, other=0.0)
        if NORM:
            lost = tl.load(LOST + 2 * at, mask=some, other=0.0)
            slope = tl.load(LOST + 2 * at + 1, mask=some, other=0.0)
            table = tl.load(TABLE + p[:, :, None] * features + channel, mask=some[:, :, None] & columns, other=0.0)
            value = value - lost[:, :, None] - table * slope[:, :, None]
        total += tl.sum(value, 0)
    to = TO + i[:, None].to(tl.int64) * F + f[None, :]
    tl.store(to, total.to(TO.dtype.element_ty), mask=held[:, None] & (f < F)[None, :])


@triton.jit(do_not_specialize=['S0', 'S1', 'W', 'F0', 'F1', 'F2', 'row_splits', 'column_splits'])
def fourier_axes_bwd_kernel(
    ROW_GRADS, COLUMN_GRADS, ROW_LOST, COLUMN_LOST, ROWS, COLUMNS, FIRST, SECOND, LAST, S0, S1, W, F0, F1, F2,
    row_splits, column_splits, NORM: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    # gradients FIRST (S0, F0), SECOND (S1, F1), LAST (W, F2) of the tables, from partial ones
    first_tiles = tl.cdiv(S0, BP) * tl.cdiv(F0, BF)
    second_tiles = tl.cdiv(S1, BP) * tl.cdiv(F1, BF)
    tile = tl.program_id(0)
    position, feature = tl.arange(0, BP), tl.arange(0, BF)
    features, P = F0 + F1, S0 * S1
    if tile < first_tiles:
        wide = tl.cdiv(F0, BF)
        i, f = tile // wide * BP + position, tile % wide * BF + feature
        _table_gradient(
            ROW_GRADS, ROW_LOST, ROWS, FIRST, i, S0, S1, S1, 1, f, F0, 0, features, row_splits, P, NORM, MANY
        )
    elif tile < first_tiles + second_tiles:
        tile -= first_tiles
        wide = tl.cdiv(F1, BF)
        i, f = tile // wide * BP + position, tile % wide * BF + feature
        _table_gradient(
            ROW_GRADS, ROW_LOST, ROWS, SECOND, i, S1, S0, 1, S1, f, F1, F0, features, row_splits, P, NORM, MANY
        )
    else:
        tile -= first_tiles + second_tiles
        wide = tl.cdiv(F2, BF)
        i, f = tile // wide * BP + position, tile % wide * BF + feature
        _table_gradient(
            COLUMN_GRADS, COLUMN_LOST, COLUMNS, LAST, i, W, 1, 1, 1, f, F2, 0, F2, column_splits, W, NORM, MANY
        )


@dataclass
class Sums:
    """Sums of weights over positions, in parts that are yet to be added up.

    Attributes:
        slots: With the slots (parts, B, K, R).
        rows: Times rstd along each row (parts, B, rows, R).
        columns: Times rstd along each column (parts, B, columns rounded up to blocks, R).
    """

    slots: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


class Softmax(NamedTuple):
    """What the sums of a softmax are finished with.

    Attributes:
        tops: What was taken off the scores, in powers of 2 (B, R).
        before: Log-sum-exp of other columns; anything where there are none (B, R).
        lse: To be written: log-sum-exp of all (B, R).
        rest: To be written: what rounding takes off the output, in its shape, or one 0.
    """

    tops: torch.Tensor
    before: torch.Tensor
    lse: torch.Tensor
    rest: torch.Tensor


def finish(
    sums: Sums,
    tables: Tables,
    columns: torch.Tensor,
    layout: Slots,
    exact: Optional[torch.Tensor],
    out: Optional[torch.Tensor],
    factor: float,
    merge: bool,
    softmax: Optional[Softmax] = None,
) -> None:
    """Write factor · Σ weights · x̂ (b, H, M, C), over all items where b is 1 and they are more.

    Args:
        sums: Sums of the weights.
        tables: The position features.
        columns: Those of the columns that were summed over (W, Fc).
        layout: The slots.
        exact: Where to in float32, if anywhere.
        out: Where to in another dtype, if anywhere.
        factor: A factor.
        merge: Merge with what `exact` holds of other columns.
        softmax: Divide by the sum of the weights.
    """
    parts, B, K, R = sums.slots.shape
    to = exact if out is None else out
    b = len(to)
    items = B // b
    features, options = (tables.rows.shape[1], columns.shape[1]), products()
    interpreted = target() == INTERPRETER
    options.update(BM=16 if interpreted else 32, BF=16 if interpreted else 64, BC=16)
    tiles = triton.cdiv(layout.channels, options['BC']) + sum(triton.cdiv(n, options['BF']) for n in features)
    fourier_finish_fwd_kernel[(b * triton.cdiv(R, options['BM']) * tiles,)](
        sums.slots, sums.rows, sums.columns, tables.rows, columns, *(softmax or [to] * 3)[:3],
        to if exact is None else exact, to, softmax.rest if softmax else to, parts, len(sums.rows), len(sums.columns),
        items, B, R, layout.channels, *features, len(tables.rows), len(columns), sums.columns.shape[2], layout.first,
        factor, HALF=layout.half, SOFTMAX=softmax is not None, KEEP=exact is not None, ROUND=out is not None,
        SPLIT=softmax is not None and out is not None, MERGE=merge, MANY=32, MANY_SLOTS=8,
        MANY_PARTS=_at_once(features, items, sums), K=K, num_warps=4, num_stages=2, **options, **FUSION,
    )  # fmt: skip


def _at_once(features: Sequence[int], items: int, *sums: Sums) -> int:
    """How many parts to load at once, of the sums for tables that have features."""
    most = max(len(parts) for s in sums for n, parts in zip(features, (s.rows, s.columns)) if n)
    return 1 if most * items == 1 else 8


class TableGradients:
    """Gradients of the tables, from one range of columns after the other.

    Args:
        tables: The tables.
        batch: Items.
        queries: Queries of all heads.
        cuts: Ranges of columns.
        normalised: Whether tokens are.
    """

    def __init__(self, tables: Tables, batch: int, queries: int, cuts: int, normalised: bool):
        self.tables, self.normalised, options = tables, normalised, products()
        interpreted = target() == INTERPRETER
        self.options = dict(BP=16 if interpreted else 32, BF=16 if interpreted else 64, BK=options['BK'])
        self.tf32 = options['TF32']
        rows, columns = tables.rows, tables.columns
        tiles = self._tiles(rows) + self._tiles(columns)
        steps = batch * triton.cdiv(queries, options['BK'])
        self.per_split = triton.cdiv(steps, min(steps, max(1, PROGRAMS // tiles)))
        self.splits = triton.cdiv(steps, self.per_split)
        self.rows, self.row_lost = (rows.new_empty(cuts, self.splits, len(rows), n) for n in (rows.shape[1], 2))
        self.columns, self.column_lost = (rows.new_empty(self.splits, len(columns), n) for n in (columns.shape[1], 2))

    def _tiles(self, table: torch.Tensor) -> int:
        return triton.cdiv(table.shape[0], self.options['BP']) * triton.cdiv(table.shape[1], self.options['BF'])

    def add(
        self,
        cut: int,
        begin: int,
        columns: torch.Tensor,
        queries: Vectors,
        grads: Vectors,
        scale: float,
        d: Sums,
        p: Sums,
        lost: Sequence[torch.Tensor],
    ) -> None:
        """One range of columns.

        Args:
            cut: Which.
            begin: Its first column.
            columns: Its part of the table (W, Fc).
            queries: Queries.
            grads: Gradients of the output.
            scale: Factor of the scores.
            d: Sums of the scores' gradients.
            p: Sums of the weights.
            lost: What a position takes from its features, and from each for a unit of its value (B, rows, W).
        """
        rows, (B, R) = self.tables.rows, grads.mean.shape
        features = rows.shape[1], columns.shape[1]
        fourier_tables_bwd_kernel[((self._tiles(rows) + self._tiles(columns)) * self.splits,)](
            d.rows, p.rows, d.columns, p.columns, queries.given, queries.mean, grads.given, grads.mean, *lost,
            self.rows[cut], self.columns, self.row_lost[cut], self.column_lost, batch_stride(queries.given),
            *queries.given.stride()[1:], batch_stride(queries.mean), *grads.given.stride(), scale, len(d.rows),
            len(p.rows), len(d.columns), len(p.columns), B, R, grads.given.shape[2],
            grads.given.shape[3] - sum(features), *features, len(rows), len(columns), d.columns.shape[2],
            len(self.tables.columns), begin, self.splits, self.per_split, NORM=self.normalised, TF32=self.tf32,
            MANY_PARTS=_at_once(features, 1, d, p), num_warps=8, num_stages=1, **self.options, **FUSION,
        )  # fmt: skip

    def finish(self, axes: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """The gradients, in the dtypes of the tables."""
        tables = self.tables
        found = [t.new_empty(t.shape) for t in axes]
        to = [self.columns] * (3 - len(axes)) + found  # without features nothing is written
        block = dict(BP=16, BF=16 if target() == INTERPRETER else 32)
        tiles = sum(
            triton.cdiv(s, block['BP']) * triton.cdiv(f, block['BF']) for s, f in zip(tables.sizes, tables.features)
        )
        fourier_axes_bwd_kernel[(tiles,)](
            self.rows, self.columns, self.row_lost, self.column_lost, tables.rows, tables.columns, *to, *tables.sizes,
            *tables.features, len(self.rows) * self.splits, self.splits, NORM=self.normalised, MANY=8, num_warps=4,
            **block, **FUSION,
        )  # fmt: skip
        return found
