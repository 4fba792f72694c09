"""Attention of a grid's positions to keys, in plain PyTorch and bounded memory.

A query is x = [content, f₁(i), f₂(j), …]: each position feature depends on one axis alone. With x̂ = (x − mean) · rstd
and keys that were multiplied by the scale

    score = rstd · (content·k₀ + f₁(i)·k₁ + f₂(j)·k₂ + … − mean · Σk + bias / rstd)

so that a query costs as many multiplications per key as it has content channels, and queries never exist.

Positions are taken as lines along the last axis. The features' products are a row of keys for each line and one for
each position along it, whose sum the product of the rest is added to. All keys of a query are in one tile, and so its
softmax is one pass. The gradients have the same form.
"""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from .. import _dispatch
from .._grid import Grid, GridGradients, Tile, evenly
from .._tiles import Memory, Range, batch_step, compute_dtype, ranges, tile_budget
from ..linear import linear
from .naive import without_keys


@torch.no_grad()
def forward(
    k: torch.Tensor,
    v: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    bias: torch.Tensor,
    scale: float,
    eps: Optional[float],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale · x̂ kᵀ + bias) v, tile by tile over the queries.

    Args:
        k: Keys (B, H, M, C), C = c + ΣFᵢ.
        v: Values (B, H, M, D).
        content: (B or 1, c, *spatial).
        axes: One table (Sᵢ, Fᵢ) per spatial axis.
        bias: Added to the scores of each key (B, H, M), finite; `LOWEST` for keys that take no part.
        scale: Factor of the products.
        eps: Added to the variance of a query; None for x̂ = x.

    Returns:
        Output (B, H, N, D), N the product of the spatial sizes, and log-sum-exp (B, H, N) of the scores less the
        largest bias of their head, as a large one would take its digits; in the dtype of the arithmetic. Zeros and +inf
        for heads without keys. The log-sum-exp, which only kernels need, is empty
        on devices without them.
    """
    B, H, M, D = v.shape
    grid = Grid(content, axes, compute_dtype(k, v, content, *axes, bias), eps)
    out = grid.shift.new_empty(B, H, *grid.content.shape[2:], D)
    lse = out.new_empty(out.shape[:-1] if _dispatch.may_run_kernels(out.device) else 0)
    memories = [Memory(grid.shift) for _ in range(2)]
    for (b0, b1), columns in _tiles(grid, B, H * M):
        keys = _Keys(k[b0:b1], v[b0:b1], bias[b0:b1], grid, scale)
        for along, lines in columns:
            features = grid.table(2, along) @ keys.along.mT  # (b·H, n, M)
            for tile in (Tile(part, along) for part in lines):
                scores = keys.scores(_queries(grid, tile, b0, b1, H), features, memories[0])
                p = _softmax(scores, memories[1])
                place = slice(b0, b1), slice(None), tile.lines, tile.along
                _multiply(p, keys.v, keys.vt, out[place])
                if lse.numel():
                    lse[place] = _log_sum_exp(scores, p).view(lse[place].shape)
    if lse.numel():
        lse -= bias.amax(-1)[..., None, None]
        lse = lse.masked_fill_(without_keys(bias)[..., None, None], float('inf')).flatten(2, 3)
    return out.flatten(2, 3), lse


@torch.no_grad()
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
    """Gradients of `forward`, from scores computed again.

    Args:
        grad: Gradient of the output (B, H, N, D).
        k: As in `forward`.
        v: As in `forward`.
        content: As in `forward`.
        axes: As in `forward`.
        bias: As in `forward`.
        out: Output of `forward`, which only kernels need: here a tile has all keys, and its softmax is one pass.
        lse: Log-sum-exp of `forward`, which only kernels need.
        scale: As in `forward`.
        eps: As in `forward`.
        needs_keys: Compute the gradients of k, v and bias.
        needs_queries: Compute the gradients of content and tables.

    Returns:
        Gradients of k (B, H, M, C), of v (B, H, M, D), of content (B or 1, c, *spatial), of the tables and of bias
        (B, H, M), empty unless needed.
    """
    B, H, M = bias.shape
    grid = Grid(content, axes, compute_dtype(k, v, content, *axes, bias), eps)
    grads = grad.unflatten(2, grid.content.shape[2:])  # (B, H, lines, length, D)
    inputs = _QueryGradients(grid) if needs_queries else None
    dk, dv, dbias = (t.new_empty(t.shape if needs_keys else 0) for t in (k, v, bias))
    memories = [Memory(grid.shift) for _ in range(4)]
    for (b0, b1), columns in _tiles(grid, B, H * M):
        keys = _Keys(k[b0:b1], v[b0:b1], bias[b0:b1], grid, scale)
        sums = _KeySums(keys, grid) if needs_keys else None
        for along, lines in columns:
            features = grid.table(2, along) @ keys.along.mT  # (b·H, n, M)
            over_lines = torch.zeros_like(features) if len(lines) > 1 else None
            for tile in (Tile(part, along) for part in lines):
                queries = _queries(grid, tile, b0, b1, H)
                g = grads[b0:b1, :, tile.lines, tile.along].to(grid.dtype).flatten(2, 3).flatten(0, 1).contiguous()
                scores = keys.scores(queries, features, memories[0])
                p = _softmax(scores, memories[1])  # (b·H, L·n, M)
                dp = _multiply(g, keys.vt, keys.v, memories[2].take(*p.shape))
                ds = _softmax_backward(dp, p, memories[3])
                products = scores.mul_(ds).sum(-1) if inputs else None
                by_line = ds.mul_(queries.rstd).unflatten(1, queries.sizes)
                part = by_line.sum(1) if queries.sizes[0] > 1 else by_line[:, 0]
                over_lines = part if over_lines is None else over_lines.add_(part)
                by_line = by_line.sum(2)  # (b·H, L, M)
                if sums:
                    sums.add_tile(queries, g, p, ds, by_line)
                if inputs:
                    inputs.add_tile(_of_content(grid, b0, b1), tile, keys, queries, ds, by_line, products)
            if sums:
                sums.add_along(along, over_lines)
            if inputs:
                inputs.add_along(along, keys, over_lines)
        if sums:
            sums.vt.masked_fill_(keys.without, 0.0)
            for whole, part in zip((dk, dv, dbias), sums.finish(scale)):
                whole[b0:b1] = part.unflatten(0, (-1, H))
    of_content, of_tables = inputs.finish(content, axes) if inputs else (content.new_empty(0), [])
    return dk, dv, of_content, of_tables, dbias


def _tiles(grid: Grid, batch: int, rows: int) -> Iterator[Tuple[Range, Iterator[Tuple[slice, List[slice]]]]]:
    """Batch items to take together, and for each such group ranges along the last axis, each with ranges of lines.

    Args:
        grid: The grid.
        batch: Number of items.
        rows: Keys of all heads of an item.
    """
    lines, length = grid.content.shape[2:]
    budget = tile_budget(grid.content.device)
    step = batch_step(batch, rows * lines * length, budget)
    n = max(16, budget // max(rows * step, 1))
    along = evenly(length, n)
    parts = [slice(*part) for part in ranges(lines, evenly(lines, max(1, n // along)))]
    for items in ranges(batch, step):
        yield items, ((slice(*part), parts) for part in ranges(length, along))


class _Queries(NamedTuple):
    """The queries of a tile of L lines of n positions, for some items and all their heads."""

    content: torch.Tensor  # (b, L, c, n), b = 1 where all items share it
    mean: torch.Tensor  # (b, L, n)
    deviation: torch.Tensor  # (b, L, n), 1 / rstd
    features: torch.Tensor  # (L, F₀ + F₁), of the lines
    rows: torch.Tensor  # (b·H, c + 2, L·n): content, mean, deviation
    rstd: torch.Tensor  # (b·H, L·n, 1)

    @property
    def sizes(self) -> torch.Size:
        """(L, n)."""
        return self.mean.shape[1:]


def _queries(grid: Grid, tile: Tile, b0: int, b1: int, heads: int) -> _Queries:
    content = grid.shifted(*_of_content(grid, b0, b1), tile)
    mean, rstd = grid.statistics(content, tile)
    deviation = rstd.reciprocal()

    def for_all(t: torch.Tensor) -> torch.Tensor:
        """(b, k, L, n) to (b·H, k, L·n)."""
        return t.flatten(2).unsqueeze(1).expand(b1 - b0, heads, -1, -1).flatten(0, 1)

    rows = torch.cat([content.transpose(1, 2), mean.unsqueeze(1), deviation.unsqueeze(1)], 1)
    features = grid.line_features(tile.lines)
    return _Queries(content, mean, deviation, features, for_all(rows), for_all(rstd.unsqueeze(1)).mT)


def _of_content(grid: Grid, b0: int, b1: int) -> Range:
    """Items of the content for a range of items of the keys."""
    return (0, 1) if grid.content.shape[0] == 1 else (b0, b1)


class _Keys:
    """Keys and values of some items, for all their heads; the keys in the parts that meet those of the queries."""

    def __init__(self, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, grid: Grid, scale: float):
        k = k.flatten(0, 1).to(grid.dtype) * scale  # (b·H, M, C)
        own, *features = k.split([grid.content.shape[1], sum(grid.features[:2]), grid.features[2]], -1)
        self.lines, self.along = (part.contiguous() for part in features)  # (b·H, M, F₀ + F₁) and (b·H, M, F₂)
        parts = own.mT, -k.sum(-1).unsqueeze(1), bias.flatten(0, 1).to(grid.dtype).unsqueeze(1)
        self.rows = torch.cat(parts, 1)  # (b·H, c + 2, M), to be multiplied with those of the queries
        self.v = v.flatten(0, 1).to(grid.dtype).contiguous()  # (b·H, M, D)
        self.without = without_keys(bias).view(-1, 1, 1)  # (b·H, 1, 1)
        if self.without.device.type != 'cpu' or bool(self.without.any()):  # asking a GPU would cost more
            self.v = self.v.masked_fill(self.without, 0.0)
        self.vt = self.v.mT
        if self.v.shape[0] == 1:  # `linear` takes matrices in rows
            self.vt = self.vt.contiguous()

    def scores(self, queries: _Queries, along: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Scores of a tile (b·H, L·n, M), from the products (b·H, n, M) with the features along its lines."""
        of_lines = queries.features @ self.lines.mT  # (b·H, L, M)
        scores = memory.take(*of_lines.shape[:2], *along.shape[1:])
        torch.add(of_lines.unsqueeze(2), along.unsqueeze(1), out=scores)
        return scores.flatten(1, 2).baddbmm_(queries.rows.mT, self.rows).mul_(queries.rstd)


def _softmax(scores: torch.Tensor, memory: Memory) -> torch.Tensor:
    return torch.softmax(scores, -1, out=memory.take(*scores.shape))


def _log_sum_exp(scores: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Of each row, from its softmax p: its largest score, less the logarithm of that key's weight."""
    return scores.amax(-1) - p.amax(-1).log_()


def _softmax_backward(grad: torch.Tensor, p: torch.Tensor, memory: Memory) -> torch.Tensor:
    """p · (grad − Σ p · grad)."""
    return torch.ops.aten._softmax_backward_data.out(grad, p, -1, p.dtype, grad_input=memory.take(*p.shape))


def _multiply(a: torch.Tensor, b: torch.Tensor, bt: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write a b into `out`, of as many elements, of a (i, m, k), b (i, k, n) and its transpose; returns it."""
    shape = *a.shape[:2], b.shape[2]
    if a.shape[0] > 1 and out.is_contiguous():
        torch.bmm(a, b, out=out.view(shape))
        return out
    product = torch.bmm(a, b) if a.shape[0] > 1 else linear(a[0], bt[0])
    return out.copy_(product.view(out.shape))


class _KeySums:
    """Sums over queries for the gradients of keys, values and biases of some items."""

    def __init__(self, keys: _Keys, grid: Grid):
        self.grid = grid
        self.rows, self.lines, self.along, self.vt = (
            t.new_zeros(t.shape) for t in (keys.rows, keys.lines, keys.along, keys.vt)
        )

    def add_tile(
        self, queries: _Queries, grad: torch.Tensor, p: torch.Tensor, ds: torch.Tensor, by_line: torch.Tensor
    ) -> None:
        """Values, and keys but for the features along lines.

        Args:
            queries: The queries of the tile.
            grad: Gradient of their outputs (b·H, L·n, D).
            p: Their softmax (b·H, L·n, M).
            ds: Gradients of the scores, times rstd.
            by_line: Sums of these along lines (b·H, L, M).
        """
        self.vt.baddbmm_(grad.mT, p)
        self.rows.baddbmm_(queries.rows, ds)
        self.lines += by_line.mT @ queries.features

    def add_along(self, along: slice, over_lines: torch.Tensor) -> None:
        """What keys get from the features along lines, from sums of ds over these (b·H, n, M)."""
        self.along += over_lines.mT @ self.grid.table(2, along)

    def finish(self, scale: float) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of keys (b·H, M, C), values (b·H, M, D) and biases (b·H, M)."""
        own, mean, bias = self.rows.mT.split([self.rows.shape[1] - 2, 1, 1], -1)
        return (torch.cat([own, self.lines, self.along], -1) - mean) * scale, self.vt.mT, bias.squeeze(-1)


class _QueryGradients(GridGradients):
    """Gradients of content and tables, for all items."""

    def add_tile(
        self,
        items: Range,
        tile: Tile,
        keys: _Keys,
        queries: _Queries,
        ds: torch.Tensor,
        by_line: torch.Tensor,
        products: torch.Tensor,
    ) -> None:
        """Content, and features of the lines of a tile.

        Args:
            items: Items of the content.
            tile: The tile.
            keys: Keys of the items.
            queries: Queries of the tile.
            ds: Gradients of the scores, times rstd (b·H, L·n, M).
            by_line: Sums of these along lines (b·H, L, M).
            products: Sums over keys of scores times their gradients (b·H, L·n).
        """
        self.add_lines(tile.lines, (by_line @ keys.lines).sum(0))
        b, sizes = queries.mean.shape[0], queries.sizes
        summed = (keys.rows @ ds.mT).unflatten(0, (b, -1)).sum(1)  # (b, c + 2, L·n)
        summed = summed.unflatten(-1, sizes).transpose(1, 2)  # (b, L, c + 2, n)
        self.add(*items, tile, summed[:, :, :-2])
        if self.grid.eps is not None:
            a = -summed[:, :, -2] / self.grid.channels
            along = products.unflatten(0, (b, -1)).sum(1).unflatten(-1, sizes) - summed[:, :, -1] * queries.deviation
            slope = along / (self.grid.channels * queries.deviation.square())
            self.add(*items, tile, -self.normalised(tile, queries.content, queries.mean, a, slope))

    def add_along(self, along: slice, keys: _Keys, over_lines: torch.Tensor) -> None:
        """What the features along lines get, from sums of ds over these (b·H, n, M)."""
        self.tables[2][along] += (over_lines @ keys.along).sum(0)
