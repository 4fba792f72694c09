"""Cross-attention to a grid with separable position features, in plain PyTorch and bounded memory.

A token is x = [content, f₁(i), f₂(j), …]: each position feature depends on one axis alone. With x̂ = (x − mean) · rstd

    score  = rstd · (q₀·content + q₁·f₁(i) + q₂·f₂(j) + … − mean · Σq)
    output = [Σ P·rstd·content, (Σ over all but i of P·rstd) f₁, …] − Σ P·rstd·mean

so that a token costs as many multiplications as it has content channels, and neither tokens nor keys nor values exist.

Positions are taken as lines along the last axis. All terms of a score but that of the last axis are one matrix product
for each line, and so are rstd, the softmax's maximum and, as its logarithm, the factor rstd of P. A score is then
touched by two matrix products, one sum and three elementwise passes. The gradients have the same form.
"""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from .._grid import Grid, GridGradients, Tile, cut
from .._tiles import Memory, OnlineSoftmax, Range, batch_step, compute_dtype, ranges, tile_budget

LONGEST_LINE = 256
PREPARED = 1 << 15  # positions, of all items together, whose tokens are made at once


def forward(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """softmax(scale · q x̂ᵀ) x̂ over all positions, tile by tile.

    Args:
        q: Queries (B or 1, H, M, C), C = c + ΣFᵢ.
        content: (B, c, *spatial).
        axes: One table (Sᵢ, Fᵢ) per spatial axis.
        scale: Factor of the scores.
        eps: Added to the variance of a token; None for x̂ = x.
        mask: (B, *spatial), True where a position takes part.

    Returns:
        Output (B, H, M, C) in the dtype of q, log-sum-exp of the scores (B, H, M) in that of the arithmetic, and
        what rounding took off the output (B, H, M, C), or one 0 where nothing.
    """
    H, M, C = q.shape[1:]
    B = content.shape[0]
    grid = _TokenGrid(content, axes, compute_dtype(q, content, *axes), eps, mask)
    rows = (q.to(grid.dtype) * scale).flatten(1, 2)  # (B or 1, R, C), R = H·M
    out = rows.new_empty(B, H * M, C)
    lse = rows.new_empty(B, H * M)
    for (b0, b1), tiles in grid.tiles(H * M):
        queries = _Rows(_items(rows, b0, b1), grid)
        softmax = OnlineSoftmax((b1 - b0, H * M), rows)
        sums = _Sums(b1 - b0, H * M, grid)
        for tile, tokens in tiles:
            base = softmax.base()
            scores = queries.products(queries.factors(tile, -base, logs=True), tokens, tile)  # (b, L, R, n)
            factor = softmax.rise(scores.amax(-1).amax(1).unsqueeze(-1) + base)
            if factor is not None:
                scores.sub_((softmax.top - base)[:, None])
                sums.scale(factor)
            softmax.sum += sums.add(scores.exp_(), tokens, tile)
        denominator, lse[b0:b1] = softmax.finish()
        out[b0:b1] = sums.features() / denominator
    out, lse = out.view(B, H, M, C), lse.view(B, H, M)
    if q.dtype == out.dtype:
        return out, lse, out.new_zeros(1)
    rounded = out.to(q.dtype)
    return rounded, lse, (out - rounded).to(q.dtype)


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
    """Gradients of `forward`, from scores computed again.

    Args:
        grad: Gradient of the output (B, H, M, C).
        q: As in `forward`.
        content: As in `forward`.
        axes: As in `forward`.
        out: Output of `forward`.
        rest: What rounding took off it.
        lse: Log-sum-exp of `forward`.
        scale: As in `forward`.
        eps: As in `forward`.
        mask: As in `forward`.
        needs_inputs: Compute the gradients of content and tables.

    Returns:
        Gradients of q (B or 1, H, M, C), of content (B, c, *spatial) and of the tables, the latter two empty unless
        needed.
    """
    H, M = q.shape[1:3]
    grid = _TokenGrid(content, axes, compute_dtype(q, content, *axes), eps, mask)
    rows = (q.to(grid.dtype) * scale).flatten(1, 2)
    grad = grad.to(grid.dtype).flatten(1, 2)  # (B, R, C)
    out = out.to(grid.dtype) + rest.to(grid.dtype)
    delta = (grad * out.flatten(1, 2)).sum(-1, keepdim=True)  # (B, R, 1)
    lse = lse.flatten(1, 2).unsqueeze(-1)
    lse = lse.masked_fill(lse == float('inf'), 0.0)  # where nothing is attended to
    dq = rows.new_zeros(rows.shape)
    inputs = _InputGradients(grid) if needs_inputs else None
    for (b0, b1), tiles in grid.tiles(H * M):
        queries, grads = _Rows(_items(rows, b0, b1), grid), _Rows(grad[b0:b1], grid)
        sums = _Sums(b1 - b0, H * M, grid)
        weights = _Sums(b1 - b0, H * M, grid) if inputs else None
        for tile, tokens in tiles:
            by_queries = queries.factors(tile, -lse[b0:b1], logs=True)
            by_grads = grads.factors(tile, -delta[b0:b1], logs=False)
            logs = queries.products(by_queries, tokens, tile)  # (b, L, R, n), of P · rstd
            p = logs.exp() if inputs else logs.exp_()
            ds = grads.products(by_grads, tokens, tile).mul_(p)  # dS · rstd = P · (dP − delta) · rstd
            if inputs:
                inputs.add_tile(b0, b1, tile, tokens, by_queries, by_grads, logs, p, ds)
                weights.add(p, tokens, tile)
            sums.add(ds, tokens, tile)
        if inputs:
            inputs.add_tables(queries, grads, sums, weights)
        dq_part = sums.features()
        if rows.shape[0] == 1:
            dq += dq_part.sum(0, keepdim=True)
        else:
            dq[b0:b1] = dq_part
    dq = (dq * scale).view(q.shape).to(q.dtype)
    if inputs is None:
        return dq, content.new_empty(0), []
    return dq, *inputs.finish(content, axes)


def _items(q: torch.Tensor, b0: int, b1: int) -> torch.Tensor:
    return q.expand(b1 - b0, -1, -1) if q.shape[0] == 1 else q[b0:b1]


class _Tokens(NamedTuple):
    """What the tokens (b, L, n) of a tile are multiplied with; c content channels."""

    factors: torch.Tensor  # (b, L, c + 4, n): rstd · content, rstd · mean, rstd, 1, log rstd or far below where masked
    values: torch.Tensor  # (b, L, c + 3, n): content, mean, 1, 1 / rstd

    def cut(self, band: Tile, tile: Tile) -> '_Tokens':
        """Those of a tile within the band that these are of."""
        lines, along = (slice(t.start - b.start, t.stop - b.start) for t, b in zip(tile, band))
        return _Tokens(self.factors[:, lines, :, along], self.values[:, lines, :, along])

    @property
    def rstd(self) -> torch.Tensor:
        """Reciprocal deviations (b, L, n)."""
        return self.factors[:, :, -3]


class _TokenGrid(Grid):
    """Inputs in the form the loops need: a grid of tokens, some of which a mask (B, *spatial) may leave out."""

    def __init__(
        self,
        content: torch.Tensor,
        axes: Sequence[torch.Tensor],
        dtype: torch.dtype,
        eps: Optional[float],
        mask: Optional[torch.Tensor],
    ):
        super().__init__(content, axes, dtype, eps)
        self.mask = None if mask is None else mask.reshape(mask.shape[0], *self.content.shape[2:])

    def tiles(self, rows: int) -> Iterator[Tuple[Range, Iterator[Tuple[Tile, _Tokens]]]]:
        """Batch items to take together, and for each such group the tiles of positions."""
        B, _, lines, length = self.content.shape
        budget = tile_budget(self.content.device)
        step = batch_step(B, rows * lines * length, budget)
        n = max(16, budget // max(rows * step, 1))
        for b0, b1 in ranges(B, step):
            yield (b0, b1), self._tiles(b0, b1, n)

    def _tiles(self, b0: int, b1: int, n: int) -> Iterator[Tuple[Tile, _Tokens]]:
        """Tiles of about n positions, of several lines each: a sum along lines then touches little for each tile."""
        lines, length = self.content.shape[2:]
        longest = length if lines == 1 else LONGEST_LINE
        for band in cut(slice(0, lines), slice(0, length), max(n, PREPARED // (b1 - b0)), length):
            tokens = self._tokens(b0, b1, band)
            for tile in cut(*band, n, longest):
                yield tile, tokens.cut(band, tile)

    def _tokens(self, b0: int, b1: int, tile: Tile) -> _Tokens:
        """The tokens of a tile, of some items of the batch."""
        content = self.shifted(b0, b1, tile)
        b, L, c, n = content.shape
        out = None if self.mask is None else ~self.mask[b0:b1, tile.lines, tile.along]
        if out is not None:  # whatever a masked position holds, NaN among it, has no influence
            content.masked_fill_(out[:, :, None], 0.0)
        factors, values = content.new_ones(b, L, c + 4, n), content.new_ones(b, L, c + 3, n)
        mean, rstd = self.statistics(content, tile)
        values[:, :, :c], values[:, :, c] = content, mean
        values[:, :, -1] = rstd.reciprocal()
        torch.mul(values[:, :, : c + 2], rstd[:, :, None], out=factors[:, :, : c + 2])
        factors[:, :, -1] = rstd.log()
        if out is not None:
            factors[:, :, -1].masked_fill_(out, torch.finfo(self.dtype).min)
        return _Tokens(factors, values)


class _Rows:
    """Row vectors (b, R, C), to be multiplied with tokens: split by axes, and multiplied with the tables."""

    def __init__(self, rows: torch.Tensor, grid: _TokenGrid):
        own, *self.parts = rows.split([grid.content.shape[1], *grid.features], -1)
        along = [part @ grid.table(i).mT for i, part in enumerate(self.parts)]  # (b, R, Sᵢ) each
        self.lines = (along[0].unsqueeze(-1) + along[1].unsqueeze(-2)).flatten(2).mT  # (b, S₀·S₁, R)
        self.along = along[2][:, None]  # (b, 1, R, S₂)
        self.content = torch.cat([own, -rows.sum(-1, keepdim=True)], -1)[:, None]  # (b, 1, R, c + 1)
        self.memory = Memory(rows)

    def factors(self, tile: Tile, offset: torch.Tensor, logs: bool) -> torch.Tensor:
        """What the factors of a tile's tokens are multiplied with (b, L, R, c + 4).

        Args:
            tile: The tile.
            offset: Added to each row's products (b, R, 1).
            logs: Whether to add the logarithm of rstd.
        """
        lines = self.lines[:, tile.lines, :, None]
        ones = lines.new_full((), float(logs)).expand_as(lines)
        content = self.content.expand(-1, lines.shape[1], -1, -1)
        return torch.cat([content, lines, offset[:, None].expand_as(lines), ones], -1)

    def products(self, factors: torch.Tensor, tokens: _Tokens, tile: Tile) -> torch.Tensor:
        """Products with the normalised tokens of a tile (b, L, R, n), and what `factors` adds; until the next call."""
        left, right = factors.flatten(0, 1), tokens.factors.flatten(0, 1)
        products = torch.bmm(left, right, out=self.memory.take(*left.shape[:2], right.shape[2]))
        return products.unflatten(0, factors.shape[:2]).addcmul_(self.along[..., tile.along], tokens.rstd[:, :, None])


class _Sums:
    """Sums over positions of weights (b, L, R, n): with content and mean, and for each position of every axis."""

    def __init__(self, b: int, rows: int, grid: _TokenGrid):
        self.grid = grid
        _, c, lines, length = grid.content.shape
        self.content = grid.shift.new_zeros(b, rows, c + 1)
        self.lines = grid.shift.new_zeros(b, lines, rows)
        self.along = grid.shift.new_zeros(b, rows, length)

    def scale(self, factor: torch.Tensor) -> None:
        """Multiply all sums by (b, R, 1)."""
        self.content.mul_(factor)
        self.lines.mul_(factor.mT)
        self.along.mul_(factor)

    def add(self, weights: torch.Tensor, tokens: _Tokens, tile: Tile) -> torch.Tensor:
        """Add the weights of a tile; returns the sum of weights / rstd (b, R, 1)."""
        sums = torch.bmm(weights.flatten(0, 1), tokens.values.flatten(0, 1).mT).unflatten(0, weights.shape[:2])
        self.lines[:, tile.lines] += sums[..., -2]
        total = sums.sum(1)  # (b, R, c + 3)
        self.content += total[..., :-2]
        self.along[..., tile.along] += weights.sum(1)
        return total[..., -1:]

    def axes(self) -> List[torch.Tensor]:
        """Sums over all positions but one axis's (b, R, Sᵢ), of the three axes."""
        lines = self.lines.unflatten(1, self.grid.sizes[:2])
        return [lines.sum(2).mT, lines.sum(1).mT, self.along]

    def features(self) -> torch.Tensor:
        """Σ weights · (x − mean) (b, R, C)."""
        content, mean = self.content[..., :-1], self.content[..., -1:]
        return torch.cat([content, *(s @ self.grid.table(i) for i, s in enumerate(self.axes()))], -1) - mean


class _InputGradients(GridGradients):
    """Gradients of content and tables: Σ scale·dS·q + P·dO per token and channel, through the normalisation.

    The products of a token with its gradient sum up to Σ dS·s + P·dP.
    """

    def add_tile(
        self,
        b0: int,
        b1: int,
        tile: Tile,
        tokens: _Tokens,
        queries: torch.Tensor,
        grads: torch.Tensor,
        logs: torch.Tensor,
        p: torch.Tensor,
        ds: torch.Tensor,
    ) -> None:
        """Content of a tile, and what its normalisation takes from the tables.

        Args:
            b0: First of the batch's items.
            b1: Behind the last of them.
            tile: The tile.
            tokens: Its tokens.
            queries: Factors of the queries, with −lse and 1 behind them.
            grads: Factors of the gradients, with −delta and 0 behind them.
            logs: Logarithm of P · rstd (b, L, R, n); overwritten.
            p: P · rstd.
            ds: dS · rstd.
        """
        summed = _over_rows(queries, ds) + _over_rows(grads, p)  # (b, L, c + 4, n)
        gradient = summed[:, :, :-4]
        if self.grid.eps is not None:
            content, mean = tokens.values[:, :, :-3], tokens.values[:, :, -3]
            a = -summed[:, :, -4] / self.grid.channels
            b = logs.mul_(ds).sum(2) - summed[:, :, -2] + (1 - tokens.factors[:, :, -1]) * summed[:, :, -1]
            slope = tokens.rstd * b / self.grid.channels
            gradient = gradient - self.normalised(tile, content, mean, a, slope)
        if self.grid.mask is not None:  # 0 also where a query or a gradient of the output is NaN
            gradient = gradient.masked_fill(~self.grid.mask[b0:b1, tile.lines, tile.along][:, :, None], 0.0)
        self.add(b0, b1, tile, gradient)

    def add_tables(self, queries: _Rows, grads: _Rows, sums: _Sums, weights: _Sums) -> None:
        """What the tables get through scores and values, from the sums along their axes."""
        for table, q, grad, ds, p in zip(self.tables, queries.parts, grads.parts, sums.axes(), weights.axes()):
            table += (ds.mT @ q + p.mT @ grad).sum(0)


def _over_rows(factors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ over rows of factors (b, L, R, k) times weights (b, L, R, n): (b, L, k, n)."""
    return torch.bmm(factors.flatten(0, 1).mT, weights.flatten(0, 1)).unflatten(0, weights.shape[:2])
