"""Attention of a grid's positions to keys on a GPU: queries never exist, nor scores outside of registers.

With x = [content, features of the line, features along it] and x̂ = (x − mean) · rstd, a score is

    scale · rstd · (content·k₀ + line product + product along − mean · Σk) + bias

where the products of the features with their parts of the keys are matrices in float32, with a row for each line and
one for each position along it, and mean and rstd are made beforehand. What is left of a score is one product of the
content, in the dtype of the keys. Tables are moved by their mean as in `Grid`, content is as given: the product of the
shift with Σk₀ is part of the lines'.

Positions are a program's rows in the passes over keys. The pass for the gradients of keys walks over the lines with a
block of keys and one of positions along them: the weights' sums over lines stay in registers, those along lines are
stored, and the gradients of tables and of their parts of the keys are products of these sums. No sums are atomic.
Weights are rounded to the dtype of products before all of their sums, which so cancel where exact ones do.
"""

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .._grid import GridGradients
from .._launch import Tiles
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
from .._target import describe, target
from .operands import Operands, operands, padded_channels, tiles_of
from .tiles import config

LOWEST: tl.constexpr = tl.constexpr(-1e38)  # below every score, and finite so that scores of −inf weigh 0
LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
# Sizes, which change from call to call: a kernel that was compiled for one serves all, divisible by 16 or not.
SIZES = ['c', 'heads', 'items', 'N', 'length', 'lines', 'MP', 'blocks', 'each', 'cb', 'sb']


@triton.jit
def _content(CONTENT, b, n, cb, c, N, CP: tl.constexpr, LIKE):
    # (CP, positions) of content (B, c, N), zeros beyond c
    k = tl.arange(0, CP)
    place = CONTENT + b * cb + k[:, None].to(tl.int64) * N + n[None, :]
    return tl.load(place, mask=k[:, None] < c, other=0.0).to(LIKE.dtype.element_ty)


@triton.jit
def _before_weights(KEYS, ALONG, LINES, SUMS, i, m0, x, mean, col, line, length, lines, MP, CP: tl.constexpr,
                    BN: tl.constexpr):  # fmt: skip
    # (positions, BN): scores less bias, over scale · rstd; and the keys (BN, CP) of it
    m = m0 + tl.arange(0, BN)
    u = tl.load(ALONG + i * length * MP + col[:, None] * MP + m[None, :])
    u += tl.load(LINES + i * lines * MP + line[:, None] * MP + m[None, :])
    u -= mean[:, None] * tl.load(SUMS + i * MP + m)[None, :]
    if CP > 0:
        k = tl.load(KEYS + (i * MP + m)[:, None] * CP + tl.arange(0, CP)[None, :])
        u = tl.dot(tl.trans(x), tl.trans(k), u, input_precision='ieee')
        return u, k
    else:
        return u, u


@triton.jit
def _not_above_one(s):
    # 2^s of scores less their log-sum-exp, 1 where these are so large that their rounding leaves more
    return tl.exp2(tl.where(s > 0, 0.0, s))


@triton.jit(do_not_specialize=SIZES)
def _grid_query_fwd_kernel(
    CONTENT, KEYS, VALUES, ALONG, LINES, SUMS, BIAS, MEAN, RSTD, OUT, LSE, factor,
    c, heads, N, length, lines, MP, blocks, cb, sb,
    D: tl.constexpr, DP: tl.constexpr, CP: tl.constexpr,
    WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # CONTENT (B, c, N), of batch stride cb; KEYS (I, MP, CP), VALUES (I, MP, DP), ALONG (I, length, MP),
    # LINES (I, lines, MP), SUMS and BIAS (I, MP), −∞ in the padding; I = B · heads. MEAN and RSTD (B, N), of batch
    # stride sb; OUT (I, N, D), LSE (I, N). The factor makes scores powers of 2
    block = tl.program_id(0) % blocks
    i = (tl.program_id(0) // blocks).to(tl.int64)
    b = i // heads
    MP = tl.multiple_of(MP, 16)
    rows = tl.arange(0, BM)
    n = tl.minimum(block * BM + rows, N - 1)
    mean = tl.load(MEAN + b * sb + n)
    steep = tl.load(RSTD + b * sb + n) * factor
    x = mean
    if CP > 0:
        x = _content(CONTENT, b, n, cb, c, N, CP, KEYS)
    top = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    sums = zero_pieces(BM, WIDTHS)
    for m0 in tl.range(0, MP, BN, num_stages=STAGES):
        u, _ = _before_weights(
            KEYS, ALONG, LINES, SUMS, i, m0, x, mean, n % length, n // length, length, lines, MP, CP, BN
        )
        s = u * steep[:, None] + tl.load(BIAS + i * MP + m0 + tl.arange(0, BN))[None, :]
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        less = tl.exp2(top - new)
        total = total * less + tl.sum(p, 1)
        v = load_pieces(VALUES + (i * MP + m0) * DP, tl.arange(0, BN), DP, WIDTHS)
        sums = add_product(scale_pieces(sums, less[:, None]), p.to(VALUES.dtype.element_ty), v)
        top = new
    none = total == 0
    sums = scale_pieces(sums, (1.0 / tl.where(none, 1.0, total))[:, None])
    first = i * N + block.to(tl.int64) * BM
    inside = rows < N - block * BM
    store_pieces(OUT + first * D, sums, rows, inside, D, WIDTHS)
    lse = tl.where(none, float('inf'), (top + tl.log2(total)) / LOG2E)
    tl.store(LSE + first + rows, lse, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _grid_query_bwd_q_kernel(
    CONTENT, KEYS, VALUES, ALONG, LINES, SUMS, BIAS, MEAN, RSTD, G, LSE, DELTA, DCONTENT, WEIGHED, PRODUCTS, factor,
    c, heads, N, length, lines, MP, blocks, cb, sb,
    D: tl.constexpr, DP: tl.constexpr, CP: tl.constexpr,
    WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above; G (I, N, DP), LSE and DELTA (I, N). Of weights w, the gradient of a score times rstd: DCONTENT (I, c, N)
    # Σ w·k₀, WEIGHED (I, N) Σ w·Σk, and PRODUCTS (I, N) Σ w·u
    block = tl.program_id(0) % blocks
    i = (tl.program_id(0) // blocks).to(tl.int64)
    b = i // heads
    MP = tl.multiple_of(MP, 16)
    rows = tl.arange(0, BM)
    n = tl.minimum(block * BM + rows, N - 1)
    mean = tl.load(MEAN + b * sb + n)
    rstd = tl.load(RSTD + b * sb + n)
    lse = tl.load(LSE + i * N + n) * LOG2E
    delta = tl.load(DELTA + i * N + n)
    g = load_pieces(G + i * N * DP, n.to(tl.int64), DP, WIDTHS)
    x = mean
    if CP > 0:
        x = _content(CONTENT, b, n, cb, c, N, CP, KEYS)
        total = tl.zeros([BM, CP], tl.float32)
    weighed = tl.zeros([BM], tl.float32)
    products = tl.zeros([BM], tl.float32)
    for m0 in tl.range(0, MP, BN, num_stages=STAGES):
        u, k = _before_weights(
            KEYS, ALONG, LINES, SUMS, i, m0, x, mean, n % length, n // length, length, lines, MP, CP, BN
        )
        m = i * MP + m0 + tl.arange(0, BN)
        p = _not_above_one(u * (rstd * factor)[:, None] + tl.load(BIAS + m)[None, :] - lse[:, None])
        v = load_pieces(VALUES + (i * MP + m0) * DP, tl.arange(0, BN), DP, WIDTHS)
        w = (p * (product(g, v) - delta[:, None]) * rstd[:, None]).to(KEYS.dtype.element_ty)
        if CP > 0:
            total = tl.dot(w, k, total, input_precision='ieee')
        w = w.to(tl.float32)
        weighed += tl.sum(w * tl.load(SUMS + m)[None, :], 1)
        products += tl.sum(w * u, 1)
    first = i * N + n
    inside = block * BM + rows < N
    tl.store(WEIGHED + first, weighed, mask=inside)
    tl.store(PRODUCTS + first, products, mask=inside)
    if CP > 0:
        k = tl.arange(0, CP)
        place = DCONTENT + (i * c + k[None, :]) * N + n[:, None]
        tl.store(place, total, mask=inside[:, None] & (k < c)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _grid_query_bwd_k_kernel(
    CONTENT, KEYS, VALUES, ALONG, LINES, SUMS, BIAS, MEAN, RSTD, G, LSE, DELTA,
    DALONG, DLINES, DKEYS, MEANS, DBIAS, factor,
    c, heads, items, N, length, lines, MP, blocks, each, cb, sb,
    D: tl.constexpr, DP: tl.constexpr, CP: tl.constexpr,
    WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above, with scores (BN, BM) on their side, BM positions along a line; a part has `each` of these. Sums of w:
    # DALONG (I, length, MP) over lines, DLINES (blocks along, I, lines, MP) along them; of each part, DKEYS
    # (parts, I, MP, CP) Σ w·content, MEANS (parts, I, MP) Σ w·mean and DBIAS Σ w/rstd
    block = tl.program_id(0) % blocks
    rest = tl.program_id(0) // blocks
    i = (rest % items).to(tl.int64)
    part = rest // items
    b = i // heads
    MP = tl.multiple_of(MP, 16)
    keys = block * BN + tl.arange(0, BN)
    m = i * MP + keys
    v = load_pieces(VALUES + (i * MP + block * BN) * DP, tl.arange(0, BN), DP, WIDTHS)
    summed = tl.load(SUMS + m)
    bias = tl.load(BIAS + m)
    if CP > 0:
        k = tl.load(KEYS + m[:, None] * CP + tl.arange(0, CP)[None, :])
        dkeys = tl.zeros([BN, CP], tl.float32)
    means = tl.zeros([BN], tl.float32)
    dbias = tl.zeros([BN], tl.float32)
    start = tl.multiple_of(part * each, BM)
    for w0 in range(start, tl.minimum(start + each, length), BM):
        inside = w0 + tl.arange(0, BM) < length
        col = tl.minimum(w0 + tl.arange(0, BM), length - 1)
        at = i * length * MP + col[None, :] * MP + keys[:, None]
        along = tl.load(ALONG + at)
        dalong = tl.zeros([BN, BM], tl.float32)
        for line in tl.range(0, lines, num_stages=STAGES):
            n = line * length + col
            mean = tl.load(MEAN + b * sb + n)
            rstd = tl.load(RSTD + b * sb + n)
            lse = tl.load(LSE + i * N + n, mask=inside, other=float('inf')) * LOG2E  # beyond the line p is 0
            delta = tl.load(DELTA + i * N + n)
            g = load_pieces(G + i * N * DP, n.to(tl.int64), DP, WIDTHS)
            u = along + tl.load(LINES + i * lines * MP + line * MP + keys)[:, None]
            u -= summed[:, None] * mean[None, :]
            if CP > 0:
                x = _content(CONTENT, b, n, cb, c, N, CP, KEYS)
                u = tl.dot(k, x, u, input_precision='ieee')
            p = _not_above_one(u * (rstd * factor)[None, :] + bias[:, None] - lse[None, :])
            ds = p * (product(v, g) - delta[None, :])
            dbias += tl.sum(ds, 1)
            w = (ds * rstd[None, :]).to(KEYS.dtype.element_ty)
            if CP > 0:
                dkeys = tl.dot(w, tl.trans(x), dkeys, input_precision='ieee')
            wide = w.to(tl.float32)
            dalong += wide
            means += tl.sum(wide * mean[None, :], 1)
            to = (tl.cast(w0 // BM, tl.int64) * items + i) * lines + line
            tl.store(DLINES + to * MP + keys, tl.sum(wide, 1))
        tl.store(DALONG + at, dalong, mask=inside[None, :])
    to = part.to(tl.int64) * items * MP + m
    tl.store(MEANS + to, means)
    tl.store(DBIAS + to, dbias)
    if CP > 0:
        tl.store(DKEYS + to[:, None] * CP + tl.arange(0, CP)[None, :], dkeys)


@triton.jit(do_not_specialize=SIZES)
def _grid_query_bwd_v_kernel(
    CONTENT, KEYS, VALUES, ALONG, LINES, SUMS, BIAS, MEAN, RSTD, G, LSE, DELTA, DVALUES, factor,
    c, heads, items, N, length, lines, MP, blocks, each, cb, sb,
    D: tl.constexpr, DP: tl.constexpr, CP: tl.constexpr,
    WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # as above, with `each` positions of a part; DVALUES (parts, I, MP, D) Σ p·g
    block = tl.program_id(0) % blocks
    rest = tl.program_id(0) // blocks
    i = (rest % items).to(tl.int64)
    part = rest // items
    b = i // heads
    MP = tl.multiple_of(MP, 16)
    keys = block * BN + tl.arange(0, BN)
    m = i * MP + keys
    summed = tl.load(SUMS + m)
    bias = tl.load(BIAS + m)
    if CP > 0:
        k = tl.load(KEYS + m[:, None] * CP + tl.arange(0, CP)[None, :])
    sums = zero_pieces(BN, WIDTHS)
    start = tl.multiple_of(part * each, BM)
    for n0 in tl.range(start, tl.minimum(start + each, N), BM, num_stages=STAGES):
        inside = n0 + tl.arange(0, BM) < N
        n = tl.minimum(n0 + tl.arange(0, BM), N - 1)
        mean = tl.load(MEAN + b * sb + n)
        steep = tl.load(RSTD + b * sb + n) * factor
        lse = tl.load(LSE + i * N + n, mask=inside, other=float('inf')) * LOG2E
        u = tl.load(ALONG + i * length * MP + (n % length)[None, :] * MP + keys[:, None])
        u += tl.load(LINES + i * lines * MP + (n // length)[None, :] * MP + keys[:, None])
        u -= summed[:, None] * mean[None, :]
        if CP > 0:
            u = tl.dot(k, _content(CONTENT, b, n, cb, c, N, CP, KEYS), u, input_precision='ieee')
        p = _not_above_one(u * steep[None, :] + bias[:, None] - lse[None, :])
        g = load_pieces(G + i * N * DP, n.to(tl.int64), DP, WIDTHS)
        sums = add_product(sums, p.to(VALUES.dtype.element_ty), g)
    rows = part.to(tl.int64) * items * MP + m
    store_pieces(DVALUES, sums, rows, rows >= 0, D, WIDTHS)


def _tiles(kernel: str, v: torch.Tensor, content: torch.Tensor) -> Tiles:
    D, c = v.shape[3], content.shape[1]
    return config(kernel, describe(target(v.device)), round_up(D, 16), padded_channels(c))


def forward(
    k: torch.Tensor,
    v: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    bias: torch.Tensor,
    scale: float,
    eps: Optional[float],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """As `eager.forward`, with products in the dtype of k, v and content where they have one of 16 bits."""
    B, H, M, D = v.shape
    tiles = _tiles('fwd', v, content)
    given = operands(k, v, content, axes, bias, eps, round_up(M, tiles.keys))
    N = given.content.shape[2]
    blocks = triton.cdiv(N, tiles.rows)
    out, lse = (v.new_empty(shape, dtype=torch.float32) for shape in ((B, H, N, D), (B, H, N)))
    _grid_query_fwd_kernel[(B * H * blocks,)](
        *given.tensors, out, lse, scale * math.log2(math.e), heads=H, blocks=blocks, **given.shared(D, tiles)
    )
    return out, lse


def backward(
    grad: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    bias: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    eps: Optional[float],
    needs_keys: bool,
    needs_queries: bool,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, List[torch.Tensor], torch.Tensor]:
    """As `eager.backward`, with products as in `forward`."""
    H, M, D = v.shape[1:]
    tiles = {kernel: _tiles(kernel, v, content) for kernel in ('bwd_q', 'bwd_k', 'bwd_v')}
    given = operands(k, v, content, axes, bias, eps, round_up(M, max(t.keys for t in tiles.values())))
    g = F.pad(grad.flatten(0, 1).to(given.values.dtype), (0, given.values.shape[2] - D)).contiguous()
    # of the gradient as rounded for the products, so that what cancels there does cancel
    delta = (g[..., :D].float() * out.flatten(0, 1)).sum(-1)
    call = _Backward(given, (g, lse.flatten(0, 1).contiguous(), delta), H, M, D, scale)
    sums = call.key_sums(tiles['bwd_k'])
    dk, dv, dbias = (t.new_empty(t.shape if needs_keys else 0) for t in (k, v, bias))
    if needs_keys:
        for to, found in ((dk, call.keys(sums)), (dv, call.values(tiles['bwd_v'])), (dbias, sums.bias)):
            to.copy_(found[:, :M].view(to.shape))
    of_content, of_tables = content.new_empty(0), []
    if needs_queries:
        of_content, of_tables = call.queries(tiles['bwd_q'], sums).finish(content, axes)
    return dk, dv, of_content, of_tables, dbias


class _KeySums(NamedTuple):
    """Sums of weights over positions; what they are is said at `_grid_query_bwd_k_kernel`.

    Attributes:
        along: Over lines (I, length, MP).
        lines: Along lines (I, lines, MP).
        content: Of content (I, MP, CP).
        means: Of means (I, MP).
        bias: Of 1 / rstd (I, MP).
    """

    along: torch.Tensor
    lines: torch.Tensor
    content: torch.Tensor
    means: torch.Tensor
    bias: torch.Tensor


class _Backward(NamedTuple):
    """A call of `backward`: what its kernels read, heads H, keys M, channels D of values, and the scale.

    Attributes:
        given: As in the forward pass.
        beside: G, LSE and DELTA.
    """

    given: Operands
    beside: Tuple[torch.Tensor, ...]
    H: int
    M: int
    D: int
    scale: float

    def _launch(self, kernel: triton.JITFunction, tiles: Tiles, programs: int, *outs: torch.Tensor, **sizes) -> None:
        kernel[(programs,)](
            *self.given.tensors, *self.beside, *outs, self.scale * math.log2(math.e), heads=self.H, **sizes,
            **self.given.shared(self.D, tiles),
        )  # fmt: skip

    def _new(self, *shape: int) -> torch.Tensor:
        return self.given.sums.new_empty(shape)

    def key_sums(self, tiles: Tiles) -> _KeySums:
        """Sums of weights by key."""
        (items, MP), CP = self.given.sums.shape, self.given.keys.shape[2]
        length, lines, blocks = self.given.along.shape[1], self.given.lines.shape[1], MP // tiles.keys
        each, parts = split_loop(items * blocks, length, tiles.rows, self.given.sums.device)
        along, by_block = self._new(items, length, MP), self._new(triton.cdiv(length, tiles.rows), items, lines, MP)
        by_part = [self._new(parts, items, MP, *channels) for channels in ((CP,), (), ())]
        self._launch(
            _grid_query_bwd_k_kernel, tiles, items * blocks * parts, along, by_block, *by_part,
            items=items, blocks=blocks, each=each,
        )  # fmt: skip
        return _KeySums(along, by_block.sum(0), *(t.sum(0) for t in by_part))

    def keys(self, sums: _KeySums) -> torch.Tensor:
        """Gradients of the keys (I, MP, C)."""
        grid = self.given.grid
        own = sums.content[..., : self.given.content.shape[1]] - (sums.lines.sum(1) * grid.shift).unsqueeze(-1)
        dk = torch.cat([own, sums.lines.mT @ self.given.features, sums.along.mT @ grid.table(2)], -1)
        return (dk - sums.means.unsqueeze(-1)) * self.scale

    def values(self, tiles: Tiles) -> torch.Tensor:
        """Gradients of the values (I, MP, D)."""
        (items, MP), N = self.given.sums.shape, self.given.content.shape[2]
        blocks = MP // tiles.keys
        each, parts = split_loop(items * blocks, N, tiles.rows, self.given.sums.device)
        dv = self._new(parts, items, MP, self.D)
        self._launch(_grid_query_bwd_v_kernel, tiles, items * blocks * parts, dv, items=items, blocks=blocks, each=each)
        return dv.sum(0)

    def queries(self, tiles: Tiles, sums: _KeySums) -> GridGradients:
        """Gradients of content and tables."""
        grid, (_, of_lines, of_along) = self.given.grid, self.given.parts
        items, (B, c, N), sizes = self.given.sums.shape[0], self.given.content.shape, grid.content.shape[2:]
        blocks = triton.cdiv(N, tiles.rows)
        found = [self._new(*shape) for shape in ((items, c, N), (items, N), (items, N))]
        self._launch(_grid_query_bwd_q_kernel, tiles, items * blocks, *found, blocks=blocks)
        content, weighed, products = (self._of_positions(t) for t in found)
        mean, rstd = (t.unflatten(-1, sizes) for t in (self.given.mean, self.given.rstd))
        gradients = GridGradients(grid)
        gradients.content += content
        gradients.add_lines(slice(0, sizes[0]), (sums.lines[..., : self.M] @ of_lines).sum(0) * self.scale)
        gradients.tables[2] += (sums.along[..., : self.M] @ of_along).sum(0) * self.scale
        for tile in tiles_of(grid) if grid.eps is not None else ():
            place = slice(None), tile.lines, tile.along
            a, slope = weighed[place] / grid.channels, products[place] * rstd[place].square() / grid.channels
            shifted = grid.shifted(0, B, tile)
            gradients.add(0, B, tile, -gradients.normalised(tile, shifted, mean[place], a, slope))
        return gradients

    def _of_positions(self, t: torch.Tensor) -> torch.Tensor:
        """(I, …, N) to (B or 1, …, lines, length), times the scale."""
        t = t.unflatten(0, (-1, self.H)).sum(1)
        t = t if self.given.content.shape[0] > 1 else t.sum(0, keepdim=True)
        return t.unflatten(-1, self.given.grid.content.shape[2:]) * self.scale
