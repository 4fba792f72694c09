"""What separable cross-attention computes before it attends: tables, vectors and positions as kernels multiply them.

One launch each. Vectors are the rows of queries and of output gradients.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import triton
import triton.language as tl

from .._target import FUSION, INTERPRETER, target
from .operands import SAFE, Slots, batch_stride

MASKED: tl.constexpr = tl.constexpr(-1e30)  # score of a masked position, in powers of 2
NOTHING: tl.constexpr = tl.constexpr(-1e20)  # a maximum below this is of masked positions alone
SAMPLE: tl.constexpr = tl.constexpr(32)  # positions of a table from which the common shift is taken


@triton.jit
def rounded_to_tf32(values):
    # to nearest; the tensor core would cut off, and the sum of what that leaves would have a sign
    bits = (values.to(tl.int32, bitcast=True) + 4096) & -8192
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def added(total, a, b, TF32: tl.constexpr):
    # total + a · b with the digits of float32. Tensor cores have TF32: three products of halves of the operands. They
    # cut off sums, too, so a step's sum starts at 0 and joins the total in float32
    if TF32:
        a_most, b_most = rounded_to_tf32(a), rounded_to_tf32(b)
        here = tl.dot(a - a_most, b_most, input_precision='tf32')
        here = tl.dot(a_most, b - b_most, here, input_precision='tf32')
        total += tl.dot(a_most, b_most, here, input_precision='tf32')
    else:
        total = tl.dot(a, b, total, input_precision='ieee')
    return total


@triton.jit
def _sample(TABLE, ss, sf, S, F, BF: tl.constexpr):
    # sum of the means of the features over some positions, evenly spaced
    s = tl.arange(0, SAMPLE)
    at = tl.where(S > SAMPLE, s.to(tl.int64) * S // SAMPLE, s) * ss
    total = tl.zeros([SAMPLE, BF], tl.float32)
    for f0 in range(0, F, BF):
        f = f0 + tl.arange(0, BF)
        held = (s < S)[:, None] & (f < F)[None, :]
        total += tl.load(TABLE + at[:, None] + f[None, :].to(tl.int64) * sf, mask=held, other=0.0).to(tl.float32)
    return tl.sum(tl.sum(total, 1), 0) / tl.minimum(S, SAMPLE)


@triton.jit
def _moved(TABLE, TO, ss, sf, i, inside, F, at, shift, BF: tl.constexpr):
    # write the features of positions i, less the shift, to `at`; return their sums
    total = tl.zeros_like(i).to(tl.float32)
    for f0 in range(0, F, BF):
        f = f0 + tl.arange(0, BF)
        held = inside[:, None] & (f < F)[None, :]
        value = tl.load(TABLE + i[:, None].to(tl.int64) * ss + f[None, :].to(tl.int64) * sf, mask=held, other=0.0)
        value = tl.where(held, value.to(tl.float32) - shift, 0.0)
        tl.store(TO + at[:, None] + f[None, :], value, mask=held)
        total += tl.sum(value, 1)
    return total


@triton.jit
def _squares(TABLE, ss, sf, i, inside, F, shift, mean, BF: tl.constexpr):
    # Σ (feature − shift − mean)²
    total = tl.zeros_like(mean)
    for f0 in range(0, F, BF):
        f = f0 + tl.arange(0, BF)
        held = inside[:, None] & (f < F)[None, :]
        value = tl.load(TABLE + i[:, None].to(tl.int64) * ss + f[None, :].to(tl.int64) * sf, mask=held, other=0.0)
        value = tl.where(held, value.to(tl.float32) - shift - mean[:, None], 0.0)
        total += tl.sum(value * value, 1)
    return total


@triton.jit
def _store_statistics(TO, p, inside, total, mean, squares):
    tl.store(TO + 3 * p, total, mask=inside)
    tl.store(TO + 3 * p + 1, mean, mask=inside)
    tl.store(TO + 3 * p + 2, squares, mask=inside)


@triton.jit(do_not_specialize=['S0', 'S1', 'W', 'F0', 'F1', 'F2', 's0', 'f0', 's1', 'f1', 's2', 'f2'])
def fourier_tables_fwd_kernel(
    FIRST, SECOND, LAST, ROWS, COLUMNS, ROW_STATISTICS, COLUMN_STATISTICS, SHIFT, s0, f0, s1, f1, s2, f2,
    S0, S1, W, F0, F1, F2, NORM: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    # FIRST (S0, F0), SECOND (S1, F1), LAST (W, F2) by their strides, to ROWS (S0 · S1, F0 + F1) and COLUMNS (W, F2)
    # less SHIFT; statistics (…, 3) of these: sum and mean of the features and squares about the mean
    shift = 0.0
    if NORM:  # any shift is exact; one near the values keeps digits
        shift = _sample(FIRST, s0, f0, S0, F0, BF) + _sample(SECOND, s1, f1, S1, F1, BF)
        shift = (shift + _sample(LAST, s2, f2, W, F2, BF)) / tl.maximum(F0 + F1 + F2, 1)
    pid = tl.program_id(0)
    rows = S0 * S1
    row_tiles = tl.cdiv(rows, BP)
    if pid == 0:
        tl.store(SHIFT, shift)
    if pid < row_tiles:
        p = pid * BP + tl.arange(0, BP)
        inside = p < rows
        at = p.to(tl.int64) * (F0 + F1)
        total = _moved(FIRST, ROWS, s0, f0, p // S1, inside, F0, at, shift, BF)
        total += _moved(SECOND, ROWS, s1, f1, p % S1, inside, F1, at + F0, shift, BF)
        mean = total / tl.maximum(F0 + F1, 1)
        squares = _squares(FIRST, s0, f0, p // S1, inside, F0, shift, mean, BF)
        squares += _squares(SECOND, s1, f1, p % S1, inside, F1, shift, mean, BF)
        _store_statistics(ROW_STATISTICS, p, inside, total, mean, squares)
    else:
        p = (pid - row_tiles) * BP + tl.arange(0, BP)
        inside = p < W
        total = _moved(LAST, COLUMNS, s2, f2, p, inside, F2, p.to(tl.int64) * F2, shift, BF)
        mean = total / tl.maximum(F2, 1)
        squares = _squares(LAST, s2, f2, p, inside, F2, shift, mean, BF)
        _store_statistics(COLUMN_STATISTICS, p, inside, total, mean, squares)


@triton.jit
def row_pointers(V, sb, sh, sm, b, m, M):
    # of the vectors m, which are M for each head, of item b of V (B, H, M, C)
    h = m // M
    return V + b * sb + h.to(tl.int64) * sh + (m - h * M).to(tl.int64) * sm


@triton.jit
def _vector_slots(
    vectors, sc, mean, tail, factor, inside, c, first, split, bias, HALF: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    # weights of the slots: see `operands.Slots`
    k = tl.arange(0, K)
    extra = k - (c + 4)
    channel = tl.where(extra < 0, k, first + tl.where(extra < split, extra, extra - split))
    channel = tl.where(extra < 2 * split, channel, c + 1)  # c is the mean
    held = inside[:, None] & (channel < c)[None, :]
    value = tl.load(vectors[:, None] + channel[None, :].to(tl.int64) * sc, mask=held, other=0.0).to(tl.float32)
    value = tl.where(held, (value - mean[:, None]) * factor, 0.0)
    value = tl.where((channel == c)[None, :], tail[:, None], value)
    if HALF:
        rest = (extra >= split) & (extra < 2 * split)
        value = tl.where(rest[None, :], value - value.to(tl.bfloat16).to(tl.float32), value)
    return tl.where((k == c + 3)[None, :], bias, value)


@triton.jit(
    do_not_specialize=[
        'sb', 'sh', 'sm', 'M', 'R', 'c', 'Fr', 'Fc', 'rows', 'W', 'width', 'items', 'first', 'split',
    ],
)  # fmt: skip
def fourier_vectors_fwd_kernel(
    V, OUT, REST, ROWS, COLUMNS, SLOTS, VROW, VCOL, MEAN, MORE, TOP, sb, sh, sm, sc, factor, M, R, c, Fr, Fc, rows, W,
    width, items, first, split, bias, safe, NORM: tl.constexpr, HALF: tl.constexpr, GRADIENT: tl.constexpr,
    TF32: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # V (b, H, M, C) by its strides, less MEAN (b, R) and times a factor: SLOTS (b, R, K), products VROW (b, rows, R)
    # and VCOL (b, width, R) with the tables of rows and columns
    # MORE (b, R): of gradients the sum of products with OUT + REST (b, R, C), else what their products with a token
    # cannot exceed; TOP (items, R) is set to what a score is at least compared with
    row_tiles = tl.cdiv(rows, BP)
    tiles = row_tiles + tl.cdiv(width, BP)
    tile = tl.program_id(0) % tiles
    block = tl.program_id(0) // tiles
    blocks = tl.cdiv(R, BM)
    m = block % blocks * BM + tl.arange(0, BM)
    b = (block // blocks).to(tl.int64)
    inside = m < R
    vectors = row_pointers(V, sb, sh, sm, b, m, M)
    C = c + Fr + Fc
    k = tl.arange(0, BK)
    mean = tl.zeros([BM], tl.float32)
    if NORM:  # tokens have a sum of 0: centred vectors have the same products, with more digits
        total = tl.zeros([BM, BK], tl.float32)
        for c0 in range(0, C, BK):
            held = inside[:, None] & (c0 + k < C)[None, :]
            total += tl.load(vectors[:, None] + (c0 + k)[None, :].to(tl.int64) * sc, mask=held, other=0.0).to(
                tl.float32
            )
        mean = tl.sum(total, 1) / C
    at = b * R + m
    if tile == 0:
        tail = tl.zeros([BM, BK], tl.float32)
        more = tl.zeros([BM, BK], tl.float32)
        for c0 in range(0, C, BK):
            channel = c0 + k
            held = inside[:, None] & (channel < C)[None, :]
            value = tl.load(vectors[:, None] + channel[None, :].to(tl.int64) * sc, mask=held, other=0.0).to(tl.float32)
            value = tl.where(held, (value - mean[:, None]) * factor, 0.0)
            tail -= tl.where((channel >= c)[None, :], value, 0.0)
            if GRADIENT:
                to = at[:, None] * C + channel[None, :]
                out = tl.load(OUT + to, mask=held, other=0.0).to(tl.float32)
                if HALF:
                    out += tl.load(REST + to, mask=held, other=0.0).to(tl.float32)
                more += value * out
            else:
                more += value * value
        result = tl.sum(more, 1)
        if not GRADIENT:  # a normalised token has a norm of at most √C
            result = tl.sqrt(result) * tl.sqrt(C.to(tl.float32)) if NORM else tl.full([BM], float('inf'), tl.float32)
            for item in range(items):
                to = TOP + (b + item) * R + m
                tl.store(to, tl.where(result > safe, NOTHING, 0.0), mask=inside)
        tl.store(MORE + at, result, mask=inside)
        tl.store(MEAN + at, mean, mask=inside)
        tail = tl.sum(tail, 1)
        weights = _vector_slots(vectors, sc, mean, tail, factor, inside, c, first, split, bias, HALF, K)
        to = SLOTS + at[:, None] * K + tl.arange(0, K)[None, :]
        tl.store(to, weights.to(SLOTS.dtype.element_ty), mask=inside[:, None])
    p = tile * BP + tl.arange(0, BP)
    TABLE, TO, P, F, height, first_channel = ROWS, VROW, rows, Fr, rows, c
    if tile >= row_tiles:
        p -= row_tiles * BP
        TABLE, TO, P, F, height, first_channel = COLUMNS, VCOL, W, Fc, width, c + Fr
    products = _products(vectors + first_channel * sc, sc, mean, factor, inside, TABLE, p, P, F, TF32, BK)
    to = TO + (b * height + p[:, None]) * R + m[None, :]
    tl.store(to, products, mask=(p < height)[:, None] & inside[None, :])


@triton.jit
def _products(
    vectors, sc, mean, factor, inside, TABLE, p, P, F, TF32: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    # of the positions p of a table (P, F) with centred vectors
    total = tl.zeros([p.shape[0], inside.shape[0]], tl.float32)
    for f0 in range(0, F, BK):
        f = f0 + tl.arange(0, BK)
        held = inside[:, None] & (f < F)[None, :]
        value = tl.load(vectors[:, None] + f[None, :] * sc, mask=held, other=0.0).to(tl.float32)
        value = tl.where(held, (value - mean[:, None]) * factor, 0.0)
        at = p[:, None].to(tl.int64) * F + f[None, :]
        table = tl.load(TABLE + at, mask=(p < P)[:, None] & (f < F)[None, :], other=0.0)
        total = added(total, table, tl.trans(value), TF32)
    return total


@triton.jit(
    do_not_specialize=[
        'sb', 'sc', 'sr', 'mb', 'mr', 'mw', 'c', 'C', 'Fr', 'Fc', 'rows', 'W', 'width', 'first', 'split',
    ],
)  # fmt: skip
def fourier_maps_fwd_kernel(
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


def products() -> Dict[str, Any]:
    """How products with tables are computed on the current target: sizes of blocks, and whether in parts of TF32."""
    name = target()
    if name == INTERPRETER:
        return dict(BM=16, BK=16, TF32=True)
    return dict(BM=64, BK=32, TF32=name.startswith('sm_'))


class Tables:
    """Position features in float32, as those of rows, all axes but the last, and those of columns.

    A common shift of content and tables changes nothing; taking one near the tables' values off both keeps digits that
    inputs with an offset would lose.

    Attributes:
        sizes: Positions of each of three axes; missing ones come first and have one position.
        features: Features of each.
        rows: (rows, Fr), shifted.
        columns: (W, Fc), shifted.
        row_statistics: Sum and mean of features and squares about the mean (rows, 3).
        column_statistics: The same (W, 3).
        shift: (1,).
    """

    def __init__(self, axes: Sequence[torch.Tensor], normalised: bool):
        missing = 3 - len(axes)
        self.sizes = [1] * missing + [t.shape[0] for t in axes]
        self.features = [0] * missing + [t.shape[1] for t in axes]
        given = [axes[-1]] * missing + list(axes)  # without features nothing is read
        rows, W = self.sizes[0] * self.sizes[1], self.sizes[2]

        def new(*shape: int) -> torch.Tensor:
            return axes[-1].new_empty(shape, dtype=torch.float32)

        self.rows, self.columns = new(rows, sum(self.features[:2])), new(W, self.features[2])
        self.row_statistics, self.column_statistics, self.shift = new(rows, 3), new(W, 3), new(1)
        block = 16
        fourier_tables_fwd_kernel[(triton.cdiv(rows, block) + triton.cdiv(W, block),)](
            *given, self.rows, self.columns, self.row_statistics, self.column_statistics, self.shift,
            *(stride for t in given for stride in t.stride()), *self.sizes, *self.features,
            NORM=normalised, BP=block, BF=64, num_warps=4, **FUSION,
        )  # fmt: skip


@dataclass
class Vectors:
    """Queries or output gradients, separated.

    Attributes:
        given: (b, H, M, C).
        factor: What they are multiplied with.
        slots: Their weights for the slots of a position (b, R, K).
        rows: Products with the table of rows (b, rows, R).
        columns: Products with the table of columns (b, columns rounded up to blocks, R).
        mean: What is taken off them (b, R).
        more: What their products cannot exceed, or for gradients the sum of their products with the output (b, R).
    """

    given: torch.Tensor
    factor: float
    slots: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    mean: torch.Tensor
    more: torch.Tensor

    @property
    def operands(self) -> Tuple[torch.Tensor, ...]:
        return self.slots, self.rows, self.columns

    @property
    def strides(self) -> List[int]:
        """Steps of the operands from item to item."""
        return [batch_stride(t) for t in self.operands]

    @staticmethod
    def of(
        given: torch.Tensor,
        factor: float,
        tables: Tables,
        columns: torch.Tensor,
        width: int,
        layout: Slots,
        normalised: bool,
        out: Optional[Sequence[torch.Tensor]] = None,
        tops: Optional[torch.Tensor] = None,
    ) -> 'Vectors':
        """Separate queries, or with `out` gradients of that output.

        Args:
            given: (b, H, M, C).
            factor: What they are multiplied with.
            tables: The position features.
            columns: Those of the columns wanted (W, Fc).
            width: How many columns there are to be; those behind the last get products of 0.
            layout: The slots.
            normalised: Whether tokens are.
            out: (b, H, M, C), and what rounding took off it where it is not float32.
            tops: To be set (B, R): the least that the scores of a query are compared with.
        """
        b, H, M, _ = given.shape
        rows, W, R = len(tables.rows), len(columns), H * M

        def new(*shape: int) -> torch.Tensor:
            return given.new_empty(shape, dtype=torch.float32)

        slots = given.new_empty(b, R, layout.width, dtype=layout.dtype)
        made = Vectors(given, factor, slots, new(b, rows, R), new(b, width, R), new(b, R), new(b, R))
        options = products()
        block = options['BM']
        items = 0 if tops is None else len(tops) // b
        tiles = triton.cdiv(rows, block) + triton.cdiv(width, block)
        fourier_vectors_fwd_kernel[(b * triton.cdiv(R, block) * tiles,)](
            given, *(out or (given, given)), tables.rows, columns, *made.operands, made.mean, made.more,
            made.more if tops is None else tops, *given.stride(), factor, M, R, layout.channels, tables.rows.shape[1],
            columns.shape[1], rows, W, width, items, layout.first, layout.split, 1.0 if out is None else 0.0, SAFE,
            NORM=normalised, HALF=layout.half, GRADIENT=out is not None, TF32=options['TF32'], BM=block, BP=block,
            BK=16, K=layout.width, num_warps=8, **FUSION,
        )  # fmt: skip
        return made
