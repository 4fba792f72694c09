"""Cross-attention whose keys and values are one tensor x̂, which a tile's two products read once.

x̂ is first written in the dtype of the products, its rows padded to a multiple of 16 elements: odd rows can only be
loaded element by element, and normalising within the loop would repeat for every block of queries. Heads and queries
are one axis of rows, as all of them attend to the same x̂. A program holds its queries and sums over all channels in
pieces (the widths of `Tiles`); where registers do not allow that, it holds one slice of the output's channels and
forms the scores from memory, chunk by chunk.
"""

import functools
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .._target import FUSION, INTERPRETER, target
from .tiles import config

LOWEST: tl.constexpr = tl.constexpr(-1e38)  # below every score, and finite so that scores of −inf weigh 0
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
BLOCK = 4096  # elements that a program of the row-wise kernels holds


@triton.constexpr_function
def _before(widths, i):
    return sum(widths[:i])


@triton.jit
def _tile(ptr, rows, inside, at, CP: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    # (rows, WIDTH) of rows of CP elements, from channel `at`; EVEN if it does not end beyond CP
    c = at + tl.arange(0, WIDTH)
    if EVEN:
        valid = inside[:, None]
    else:
        valid = inside[:, None] & (c[None, :] < CP)
    return tl.load(ptr + rows[:, None] * CP + c[None, :], mask=valid, other=0.0)


@triton.jit
def _tiles(ptr, rows, inside, CP: tl.constexpr, WIDTHS: tl.constexpr):
    # all CP channels in pieces, the last of which may reach beyond them
    out = ()
    for i in tl.static_range(len(WIDTHS)):
        out += (_tile(ptr, rows, inside, _before(WIDTHS, i), CP, WIDTHS[i], _before(WIDTHS, i + 1) <= CP),)
    return out


@triton.jit
def _product(a, b):
    # Σ aᵢ bᵢᵀ over pieces
    s = tl.dot(a[0], tl.trans(b[0]), input_precision='ieee')
    for i in tl.static_range(1, len(b)):
        s = tl.dot(a[i], tl.trans(b[i]), s, input_precision='ieee')
    return s


@triton.jit
def _product_from_memory(A, B, rows, rows_inside, cols, cols_inside, CP: tl.constexpr, CHUNK: tl.constexpr):
    s = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    for at in range(0, CP, CHUNK):
        a = _tile(A, rows, rows_inside, at, CP, CHUNK, CP % CHUNK == 0)
        b = _tile(B, cols, cols_inside, at, CP, CHUNK, CP % CHUNK == 0)
        s = tl.dot(a, tl.trans(b), s, input_precision='ieee')
    return s


@triton.jit
def _zero(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    return tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def _zeros(ROWS: tl.constexpr, WIDTHS: tl.constexpr):
    out = ()
    for i in tl.static_range(len(WIDTHS)):
        out += (_zero(ROWS, WIDTHS[i]),)  # Triton 3.6 takes no element of a tuple into a list
    return out


@triton.jit
def _add(sums, weights, values):
    # sumsᵢ + weights @ valuesᵢ
    out = ()
    for i in tl.static_range(len(values)):
        out += (tl.dot(weights, values[i], sums[i], input_precision='ieee'),)
    return out


@triton.jit
def _scale(sums, factor):
    out = ()
    for i in tl.static_range(len(sums)):
        out += (sums[i] * factor,)
    return out


@triton.jit
def _store(ptr, sums, rows, inside, at, C: tl.constexpr, WIDTHS: tl.constexpr):
    # into rows of C elements, from channel `at`
    for i in tl.static_range(len(WIDTHS)):
        c = at + _before(WIDTHS, i) + tl.arange(0, WIDTHS[i])
        valid = inside[:, None] & (c[None, :] < C)
        tl.store(ptr + rows[:, None] * C + c[None, :], sums[i].to(ptr.dtype.element_ty), mask=valid)


@triton.jit
def _attended(MASK, at, n, N):
    inside = n < N
    if MASK is not None:
        inside = inside & (tl.load(MASK + at + n, mask=inside, other=0) > 0)
    return inside


@triton.jit
def _program(blocks, slices, splits):
    # block of rows fastest: neighbours read the same keys
    pid = tl.program_id(0)
    part = pid // blocks // slices
    return pid % blocks, pid // blocks % slices, part % splits, (part // splits).to(tl.int64)


@triton.jit
def _latent_attention_fwd_kernel(
    Q, X, MASK, OUT, LSE, scale, batch, R, N, q_batch, blocks, keys, splits,
    C: tl.constexpr, CP: tl.constexpr, WHOLE: tl.constexpr, WIDTHS: tl.constexpr, SLICES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Q (B, R, CP), or 1 by a batch stride of 0; X (B, N, CP); OUT (splits, B, R, C), LSE (splits, B, R)
    block, part, split, b = _program(blocks, SLICES, splits)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    rows_inside = block * BM + rows < R
    q_at = Q + b * q_batch + block.to(tl.int64) * BM * CP
    if WHOLE:
        q = _tiles(q_at, rows, rows_inside, CP, WIDTHS)
    top = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    sums = _zeros(BM, WIDTHS)
    for n0 in tl.range(split * keys, tl.minimum(split * keys + keys, N), BN, num_stages=STAGES):
        inside = n0 + cols < N
        x_at = X + (b * N + n0) * CP
        if WHOLE:
            x = _tiles(x_at, cols, inside, CP, WIDTHS)
            s = _product(q, x)
        else:
            s = _product_from_memory(q_at, x_at, rows, rows_inside, cols, inside, CP, CHUNK)
            x = (_tile(x_at, cols, inside, part * WIDTHS[0], CP, WIDTHS[0], CP % WIDTHS[0] == 0),)
        attended = _attended(MASK, b * N, n0 + cols, N)
        s = tl.where(attended[None, :], s * (scale * LOG2E), -float('inf'))
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        factor = tl.exp2(top - new)
        total = total * factor + tl.sum(p, 1)
        sums = _add(_scale(sums, factor[:, None]), p.to(X.dtype.element_ty), x)
        top = new
    none = total == 0
    first = (split * batch + b) * R + block.to(tl.int64) * BM
    sums = _scale(sums, (1.0 / tl.where(none, 1.0, total))[:, None])
    _store(OUT + first * C, sums, rows, rows_inside, part * WIDTHS[0], C, WIDTHS)
    if part == 0:
        lse = tl.where(none, float('inf'), (top + tl.log2(total)) / LOG2E)
        tl.store(LSE + first + rows, lse, mask=rows_inside)


@triton.jit
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


@triton.jit
def _latent_attention_bwd_q_kernel(
    Q, X, MASK, G, LSE, DELTA, DQ, scale, R, N, q_batch, blocks, keys, splits,
    C: tl.constexpr, CP: tl.constexpr, WHOLE: tl.constexpr, WIDTHS: tl.constexpr, SLICES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above; G (B, R, CP), LSE and DELTA (B, R); DQ (B, splits, R, C)
    block, part, split, b = _program(blocks, SLICES, splits)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    rows_inside = block * BM + rows < R
    q_at = Q + b * q_batch + block.to(tl.int64) * BM * CP
    first = b * R + block.to(tl.int64) * BM
    g_at = G + first * CP
    if WHOLE:
        q = _tiles(q_at, rows, rows_inside, CP, WIDTHS)
        g = _tiles(g_at, rows, rows_inside, CP, WIDTHS)
    lse = tl.load(LSE + first + rows, mask=rows_inside, other=float('inf')) * LOG2E
    delta = tl.load(DELTA + first + rows, mask=rows_inside, other=0.0)
    sums = _zeros(BM, WIDTHS)
    for n0 in tl.range(split * keys, tl.minimum(split * keys + keys, N), BN, num_stages=STAGES):
        inside = n0 + cols < N
        x_at = X + (b * N + n0) * CP
        if WHOLE:
            x = _tiles(x_at, cols, inside, CP, WIDTHS)
            s = _product(q, x)
            dp = _product(g, x)
        else:
            s = _product_from_memory(q_at, x_at, rows, rows_inside, cols, inside, CP, CHUNK)
            dp = _product_from_memory(g_at, x_at, rows, rows_inside, cols, inside, CP, CHUNK)
            x = (_tile(x_at, cols, inside, part * WIDTHS[0], CP, WIDTHS[0], CP % WIDTHS[0] == 0),)
        attended = _attended(MASK, b * N, n0 + cols, N)
        p = tl.where(attended[None, :], tl.exp2(s * (scale * LOG2E) - lse[:, None]), 0.0)
        ds = p * (dp - delta[:, None])
        sums = _add(sums, ds.to(X.dtype.element_ty), x)
    at = ((b * splits + split) * R + block.to(tl.int64) * BM) * C
    _store(DQ + at, _scale(sums, scale), rows, rows_inside, part * WIDTHS[0], C, WIDTHS)


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


@triton.jit
def _latent_attention_bwd_x_kernel(
    Q, X, RSTD, MASK, G, LSE, DELTA, DX, scale, batch, R, N, q_batch, blocks, rows_each, splits,
    C: tl.constexpr, CP: tl.constexpr, WHOLE: tl.constexpr, WIDTHS: tl.constexpr, SLICES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above, with scores (BN, BM) on their side and splits of the rows; DX (splits, B, N, C), the gradient of x̂,
    # or of x with its 1 / deviation RSTD (B, N), where a program has all of its channels and rows
    block, part, split, b = _program(blocks, SLICES, splits)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    n = block * BN + cols
    inside = n < N
    attended = _attended(MASK, b * N, n, N)
    x_at = X + (b * N + block * BN) * CP
    if WHOLE:
        x = _tiles(x_at, cols, inside, CP, WIDTHS)
    sums = _zeros(BN, WIDTHS)
    for m0 in tl.range(split * rows_each, tl.minimum(split * rows_each + rows_each, R), BM, num_stages=STAGES):
        rows_inside = m0 + rows < R
        q_at = Q + b * q_batch + tl.cast(m0, tl.int64) * CP
        first = b * R + m0
        g_at = G + first * CP
        if WHOLE:
            q = _tiles(q_at, rows, rows_inside, CP, WIDTHS)
            g = _tiles(g_at, rows, rows_inside, CP, WIDTHS)
            s = _product(x, q)
            dp = _product(x, g)
        else:
            s = _product_from_memory(x_at, q_at, cols, inside, rows, rows_inside, CP, CHUNK)
            dp = _product_from_memory(x_at, g_at, cols, inside, rows, rows_inside, CP, CHUNK)
            q = (_tile(q_at, rows, rows_inside, part * WIDTHS[0], CP, WIDTHS[0], CP % WIDTHS[0] == 0),)
            g = (_tile(g_at, rows, rows_inside, part * WIDTHS[0], CP, WIDTHS[0], CP % WIDTHS[0] == 0),)
        lse = tl.load(LSE + first + rows, mask=rows_inside, other=float('inf')) * LOG2E
        delta = tl.load(DELTA + first + rows, mask=rows_inside, other=0.0)
        p = tl.where(attended[:, None], tl.exp2(s * (scale * LOG2E) - lse[None, :]), 0.0)
        ds = p * (dp - delta[None, :]) * scale
        sums = _add(sums, p.to(X.dtype.element_ty), g)
        sums = _add(sums, ds.to(X.dtype.element_ty), q)
    if RSTD is not None:
        sums = _through_norm(sums, x, tl.load(RSTD + b * N + n, mask=inside, other=0.0), C)
    at = ((split * batch + b) * N + block * BN) * C
    _store(DX + at, sums, cols, inside, part * WIDTHS[0], C, WIDTHS)


@triton.jit
def _row_of(X, r, c, inside, N, xb, xn, xc, C: tl.constexpr):
    # float32 (BR, BC) of X (B, N, C), r over B · N
    at = X + (r // N)[:, None] * xb + (r % N)[:, None] * xn + c[None, :] * xc
    return tl.load(at, mask=inside[:, None] & (c[None, :] < C), other=0.0).to(tl.float32)


@triton.jit
def _normalised(x, c, eps, C: tl.constexpr):
    x = tl.where(c[None, :] < C, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / C + eps)
    return x * rstd[:, None], rstd


@triton.jit
def _latent_normalise_fwd_kernel(
    X, XH, RSTD, eps, rows, N, xb, xn, xc,
    C: tl.constexpr, CP: tl.constexpr, NORM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # X (B, N, C) by its strides; XH (B, N, CP), RSTD (B, N) if wanted
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    inside = r < rows
    x = _row_of(X, r, c, inside, N, xb, xn, xc, C)
    if NORM:
        x, rstd = _normalised(x, c, eps, C)
        if RSTD is not None:
            tl.store(RSTD + r, rstd, mask=inside)
    valid = inside[:, None] & (c[None, :] < CP)
    tl.store(XH + r[:, None] * CP + c[None, :], x.to(XH.dtype.element_ty), mask=valid)


@triton.jit
def _latent_normalise_bwd_kernel(
    X, PARTS, DX, eps, rows, N, splits, xb, xn, xc,
    C: tl.constexpr, CP: tl.constexpr, NORM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # X as above; PARTS (splits, B, N, CP) sum up to the gradient of x̂; DX (B, N, C)
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    inside = r < rows
    valid = inside[:, None] & (c[None, :] < C)
    grad = tl.zeros([BR, BC], tl.float32)
    for i in range(splits):
        at = (tl.cast(i, tl.int64) * rows + r)[:, None] * CP + c[None, :]
        grad += tl.load(PARTS + at, mask=valid, other=0.0)
    if NORM:
        xh, rstd = _normalised(_row_of(X, r, c, inside, N, xb, xn, xc, C), c, eps, C)
        shared = (tl.sum(grad, 1) / C)[:, None] + xh * (tl.sum(grad * xh, 1) / C)[:, None]
        grad = (grad - shared) * rstd[:, None]
    tl.store(DX + r[:, None] * C + c[None, :], grad.to(DX.dtype.element_ty), mask=valid)


def forward(
    q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """As `eager.forward`, with products in the dtype of q."""
    H, M, C = q.shape[1:]
    B, N = x.shape[:2]
    R = H * M
    CP = triton.cdiv(C, 16) * 16
    tiles = config(target(), q.dtype, CP)['fwd']
    rows, (xh, _) = _padded_rows(q, CP, q.dtype), _normalise(x, eps, CP, q.dtype)
    mask = None if mask is None else mask.contiguous().view(torch.uint8)
    blocks, slices = triton.cdiv(R, tiles.rows), tiles.slices(CP)
    keys, splits = _split(B * blocks * slices, N, tiles.keys, x.device)
    out, lse = (x.new_empty(shape, dtype=torch.float32) for shape in ((B, H, M, C), (B, H, M)))
    parts, lses = out, lse
    if splits > 1:
        parts, lses = (x.new_empty(shape, dtype=torch.float32) for shape in ((splits, B, R, C), (splits, B, R)))
    _latent_attention_fwd_kernel[(B * blocks * slices * splits,)](
        rows, xh, mask, parts, lses, scale, B, R, N, _batch_stride(rows), blocks, keys, splits,
        C, CP, **tiles.constants(CP),
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
    CP = triton.cdiv(q.shape[-1], 16) * 16
    rows, g = _padded_rows(q, CP, q.dtype), _padded_rows(grad, CP, q.dtype)
    xh, rstd = _normalise(x, eps, CP, q.dtype, needs_x)
    # of the gradient as rounded for the products, so that what cancels there does cancel
    delta = (g[..., : q.shape[-1]].float() * out.flatten(1, 2)).sum(-1)
    mask = None if mask is None else mask.contiguous().view(torch.uint8)
    given = rows, xh, mask, g, lse.contiguous(), delta, scale
    return _backward_q(q, given), _backward_x(x, eps, rstd, given) if needs_x else x.new_empty(0)


def _backward_q(q: torch.Tensor, given: tuple) -> torch.Tensor:
    H, M, C = q.shape[1:]
    rows, xh = given[:2]
    B, N, CP = xh.shape
    tiles = config(target(), q.dtype, CP)['bwd_q']
    blocks, slices = triton.cdiv(H * M, tiles.rows), tiles.slices(CP)
    keys, splits = _split(B * blocks * slices, N, tiles.keys, q.device)
    whole = splits == 1 and q.shape[0] == B
    parts = q.new_empty(q.shape) if whole else q.new_empty((B, splits, H, M, C), dtype=torch.float32)
    _latent_attention_bwd_q_kernel[(B * blocks * slices * splits,)](
        rows, xh, *given[2:6], parts, given[6], H * M, N, _batch_stride(rows), blocks, keys, splits,
        C, CP, **tiles.constants(CP),
    )  # fmt: skip
    if whole:
        return parts
    return (parts.sum(1) if q.shape[0] == B else parts.sum((0, 1)).unsqueeze(0)).to(q.dtype)


def _backward_x(x: torch.Tensor, eps: Optional[float], rstd: Optional[torch.Tensor], given: tuple) -> torch.Tensor:
    rows, xh = given[:2]
    B, N, C = x.shape
    R, CP = rows.shape[1:]
    tiles = config(target(), xh.dtype, CP)['bwd_x']
    blocks, slices = triton.cdiv(N, tiles.keys), tiles.slices(CP)
    each, splits = _split(B * blocks * slices, R, tiles.rows, x.device)
    dx = x.new_empty(x.shape)
    whole = splits == 1 and (eps is None or tiles.holds_norm)
    parts = dx if whole else x.new_empty((splits, B, N, CP), dtype=torch.float32)
    _latent_attention_bwd_x_kernel[(B * blocks * slices * splits,)](
        rows, xh, rstd if whole else None, *given[2:6], parts, given[6], B, R, N, _batch_stride(rows), blocks,
        each, splits, parts.shape[-1], CP, **tiles.constants(CP),
    )  # fmt: skip
    if not whole:
        step = _rows_at_once(CP)
        _latent_normalise_bwd_kernel[(triton.cdiv(B * N, step['BR']),)](
            x, parts, dx, eps or 0.0, B * N, N, splits, *x.stride(), C, CP, eps is not None, **step
        )
    return dx


def _normalise(
    x: torch.Tensor, eps: Optional[float], CP: int, dtype: torch.dtype, needs_rstd: bool = False
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """x̂ (B, N, CP) in that dtype, zeros in the padding, or x where that is the same; and 1 / deviation (B, N)."""
    B, N, C = x.shape
    if eps is None and C == CP and x.dtype == dtype and x.is_contiguous():
        return x, None
    xh = x.new_empty((B, N, CP), dtype=dtype)
    rstd = x.new_empty((B, N), dtype=torch.float32) if needs_rstd and eps is not None else None
    step = _rows_at_once(CP)
    _latent_normalise_fwd_kernel[(triton.cdiv(B * N, step['BR']),)](
        x, xh, rstd, eps or 0.0, B * N, N, *x.stride(), C, CP, eps is not None, **step
    )
    return xh, rstd


def _padded_rows(t: torch.Tensor, CP: int, dtype: torch.dtype) -> torch.Tensor:
    """(B or 1, H, M, C) to (B or 1, H · M, CP), zeros in the padding."""
    rows, missing = t.to(dtype).flatten(1, 2), CP - t.shape[-1]
    return (F.pad(rows, (0, missing)) if missing else rows).contiguous()


def _batch_stride(rows: torch.Tensor) -> int:
    return 0 if rows.shape[0] == 1 else rows.stride(0)


def _rows_at_once(channels: int) -> Dict[str, int]:
    block = triton.next_power_of_2(channels)
    return dict(BR=max(1, BLOCK // block), BC=block, num_warps=4, **FUSION)


def _split(programs: int, size: int, step: int, device: torch.device) -> Tuple[int, int]:
    """Length of the parts that a loop over `size` is split into, a multiple of its step, and their number."""
    each = _steps_each(programs, triton.cdiv(size, step), _processors(device))
    return each * step, triton.cdiv(triton.cdiv(size, step), each)


@functools.lru_cache(maxsize=4096)
def _steps_each(programs: int, steps: int, processors: int) -> int:
    """Steps of a part, by which all processors finish earliest; what is not a step takes a program four of them."""
    most = min(steps, max(1, triton.cdiv(4 * processors, programs)))
    return min(
        (triton.cdiv(steps, parts) for parts in range(1, most + 1)),
        key=lambda each: triton.cdiv(programs * triton.cdiv(steps, each), processors) * (each + 4),
    )


def _processors(device: torch.device) -> int:
    """Processors of the device; few in the interpreter, so that small inputs are split too."""
    if device.type != 'cuda':
        return 4 if target() == INTERPRETER else 132
    return torch.cuda.get_device_properties(device).multi_processor_count
