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
    grid = _Grid(content, axes, compute_dtype(q, content, *axes), eps, mask)
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
    grid = _Grid(content, axes, compute_dtype(q, content, *axes), eps, mask)
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


class _Tile(NamedTuple):
    """Positions taken together: a range of lines, and a range of the positions along each."""

    lines: slice
    along: slice


class _Tokens(NamedTuple):
    """What the tokens (b, L, n) of a tile are multiplied with; c content channels."""

    factors: torch.Tensor  # (b, L, c + 4, n): rstd · content, rstd · mean, rstd, 1, log rstd or far below where masked
    values: torch.Tensor  # (b, L, c + 3, n): content, mean, 1, 1 / rstd

    def cut(self, band: _Tile, tile: _Tile) -> '_Tokens':
        """Those of a tile within the band that these are of."""
        lines, along = (slice(t.start - b.start, t.stop - b.start) for t, b in zip(tile, band))
        return _Tokens(self.factors[:, lines, :, along], self.values[:, lines, :, along])

    @property
    def rstd(self) -> torch.Tensor:
        """Reciprocal deviations (b, L, n)."""
        return self.factors[:, :, -3]


class _Features:
    """Position features of lines, or along them: how many, their mean and their squared deviations from it.

    Args:
        tables: Tables (Sᵢ, Fᵢ); with several, for each combination of their positions.
    """

    def __init__(self, *tables: torch.Tensor):
        first, *others = tables
        self.count = first.shape[1]
        self.mean = first.mean(1) if self.count else first.new_zeros(first.shape[0])
        self.squares = (first - self.mean[:, None]).square().sum(1)
        for other in map(_Features, others):
            count = max(self.count + other.count, 1)
            apart = self.mean[:, None] - other.mean
            self.squares = self.squares[:, None] + other.squares + self.count * other.count / count * apart.square()
            self.mean = (self.count * self.mean[:, None] + other.count * other.mean) / count
            self.squares, self.mean = self.squares.flatten(), self.mean.flatten()
            self.count += other.count


class _Grid:
    """Inputs in the form the loops need: lines along the last axis, moved to the tables' mean.

    A common shift of content and tables changes nothing. Taking the tables' mean off both keeps digits that inputs
    with a large offset would lose.

    Attributes:
        sizes: (S₀, S₁, S₂); missing axes are of size 1 and come first.
        content: (B, c, S₀·S₁, S₂), as given.
        tables: Three tables (Sᵢ, Fᵢ), with Fᵢ = 0 for missing axes.
        mask: (B, S₀·S₁, S₂) or None.
    """

    def __init__(
        self,
        content: torch.Tensor,
        axes: Sequence[torch.Tensor],
        dtype: torch.dtype,
        eps: Optional[float],
        mask: Optional[torch.Tensor],
    ):
        missing = 3 - len(axes)
        self.dtype, self.eps = dtype, eps
        self.sizes = (*[1] * missing, *content.shape[2:])
        self.channels = content.shape[1] + sum(t.shape[1] for t in axes)
        lines, length = self.sizes[0] * self.sizes[1], self.sizes[2]
        self.content = content.reshape(*content.shape[:2], lines, length)
        self.mask = None if mask is None else mask.reshape(mask.shape[0], lines, length)
        tables = [t.to(dtype) for t in axes]
        if eps is None:
            self.shift = torch.zeros((), dtype=dtype, device=content.device)
        else:
            self.shift = sum(t.mean(0).sum() for t in tables) / max(sum(t.shape[1] for t in tables), 1)
        empty = torch.zeros(1, 0, dtype=dtype, device=content.device)
        self.tables = [empty] * missing + [t - self.shift for t in tables]
        self.lines, self.along = _Features(*self.tables[:2]), _Features(self.tables[2])

    def tiles(self, rows: int) -> Iterator[Tuple[Range, Iterator[Tuple[_Tile, _Tokens]]]]:
        """Batch items to take together, and for each such group the tiles of positions."""
        B, _, lines, length = self.content.shape
        budget = tile_budget(self.content.device)
        step = batch_step(B, rows * lines * length, budget)
        n = max(16, budget // max(rows * step, 1))
        for b0, b1 in ranges(B, step):
            yield (b0, b1), self._tiles(b0, b1, n)

    def _tiles(self, b0: int, b1: int, n: int) -> Iterator[Tuple[_Tile, _Tokens]]:
        """Tiles of about n positions, of several lines each: a sum along lines then touches little for each tile."""
        lines, length = self.content.shape[2:]
        longest = length if lines == 1 else LONGEST_LINE
        for band in _cut(slice(0, lines), slice(0, length), max(n, PREPARED // (b1 - b0)), length):
            tokens = self._tokens(b0, b1, band)
            for tile in _cut(*band, n, longest):
                yield tile, tokens.cut(band, tile)

    def _tokens(self, b0: int, b1: int, tile: _Tile) -> _Tokens:
        """The tokens of a tile, of some items of the batch."""
        content = self.content[b0:b1, :, tile.lines, tile.along].transpose(1, 2).to(self.dtype) - self.shift
        b, L, c, n = content.shape
        out = None if self.mask is None else ~self.mask[b0:b1, tile.lines, tile.along]
        if out is not None:  # whatever a masked position holds, NaN among it, has no influence
            content.masked_fill_(out[:, :, None], 0.0)
        factors, values = content.new_ones(b, L, c + 4, n), content.new_ones(b, L, c + 3, n)
        if self.eps is None:
            mean, rstd = content.new_zeros(b, L, n), content.new_ones(b, L, n)
        else:
            mean, rstd = self._statistics(content, tile)
        values[:, :, :c], values[:, :, c] = content, mean
        values[:, :, -1] = rstd.reciprocal()
        torch.mul(values[:, :, : c + 2], rstd[:, :, None], out=factors[:, :, : c + 2])
        factors[:, :, -1] = rstd.log()
        if out is not None:
            factors[:, :, -1].masked_fill_(out, torch.finfo(self.dtype).min)
        return _Tokens(factors, values)

    def _statistics(self, content: torch.Tensor, tile: _Tile) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and reciprocal deviation of tokens, from separate sums of squares that are all centred."""
        c = content.shape[2]
        features = [
            (self.lines.count, self.lines.mean[tile.lines, None], self.lines.squares[tile.lines, None]),
            (self.along.count, self.along.mean[tile.along], self.along.squares[tile.along]),
        ]
        own = content.mean(2)  # (b, L, n)
        mean = (c * own + sum(count * centre for count, centre, _ in features)) / self.channels
        squares = (content - own[:, :, None]).square_().sum(2) + c * (own - mean).square_()
        for count, centre, around in features:
            squares += around + count * (centre - mean).square_()
        return mean, torch.rsqrt(squares / self.channels + self.eps)


class _Rows:
    """Row vectors (b, R, C), to be multiplied with tokens: split by axes, and multiplied with the tables."""

    def __init__(self, rows: torch.Tensor, grid: _Grid):
        own, *self.parts = rows.split([grid.content.shape[1], *(t.shape[1] for t in grid.tables)], -1)
        along = [part @ table.mT for part, table in zip(self.parts, grid.tables)]  # (b, R, Sᵢ) each
        self.lines = (along[0].unsqueeze(-1) + along[1].unsqueeze(-2)).flatten(2).mT  # (b, S₀·S₁, R)
        self.along = along[2][:, None]  # (b, 1, R, S₂)
        self.content = torch.cat([own, -rows.sum(-1, keepdim=True)], -1)[:, None]  # (b, 1, R, c + 1)
        self.memory = Memory(rows)

    def factors(self, tile: _Tile, offset: torch.Tensor, logs: bool) -> torch.Tensor:
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

    def products(self, factors: torch.Tensor, tokens: _Tokens, tile: _Tile) -> torch.Tensor:
        """Products with the normalised tokens of a tile (b, L, R, n), and what `factors` adds; until the next call."""
        left, right = factors.flatten(0, 1), tokens.factors.flatten(0, 1)
        products = torch.bmm(left, right, out=self.memory.take(*left.shape[:2], right.shape[2]))
        return products.unflatten(0, factors.shape[:2]).addcmul_(self.along[..., tile.along], tokens.rstd[:, :, None])


class _Sums:
    """Sums over positions of weights (b, L, R, n): with content and mean, and for each position of every axis."""

    def __init__(self, b: int, rows: int, grid: _Grid):
        self.grid = grid
        _, c, lines, length = grid.content.shape
        self.content = grid.tables[0].new_zeros(b, rows, c + 1)
        self.lines = grid.tables[0].new_zeros(b, lines, rows)
        self.along = grid.tables[0].new_zeros(b, rows, length)

    def scale(self, factor: torch.Tensor) -> None:
        """Multiply all sums by (b, R, 1)."""
        self.content.mul_(factor)
        self.lines.mul_(factor.mT)
        self.along.mul_(factor)

    def add(self, weights: torch.Tensor, tokens: _Tokens, tile: _Tile) -> torch.Tensor:
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
        return torch.cat([content, *(s @ table for s, table in zip(self.axes(), self.grid.tables))], -1) - mean


class _InputGradients:
    """Gradients of content and tables, through the layer normalisation of the tokens.

    With A = Σ scale·dS·q + P·dO per token and channel, a its sum over channels and b = Σ dS·s + P·dP,
    the gradient of a token is rstd · (A − a/C − x̂·b/C).
    """

    def __init__(self, grid: _Grid):
        self.grid = grid
        self.content = grid.content.new_empty(grid.content.shape, dtype=grid.dtype)
        self.tables = [t.new_zeros(t.shape) for t in grid.tables]
        lines, length = grid.content.shape[2:]
        # what each feature of a line, or along it, loses to the mean; and for each unit of its value, to the deviation
        self.lines, self.along = self.content.new_zeros(2, lines), self.content.new_zeros(2, length)

    def add_tile(
        self,
        b0: int,
        b1: int,
        tile: _Tile,
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
            gradient = gradient - a[:, :, None] - (content - mean[:, :, None]) * slope[:, :, None]
            lost = torch.stack([a - slope * mean, slope])  # (2, b, L, n)
            self.lines[:, tile.lines] += lost.sum((1, 3))
            self.along[:, tile.along] += lost.sum((1, 2))
        if self.grid.mask is not None:  # 0 also where a query or a gradient of the output is NaN
            gradient = gradient.masked_fill(~self.grid.mask[b0:b1, tile.lines, tile.along][:, :, None], 0.0)
        self.content[b0:b1, :, tile.lines, tile.along] = gradient.transpose(1, 2)

    def add_tables(self, queries: _Rows, grads: _Rows, sums: _Sums, weights: _Sums) -> None:
        """What the tables get through scores and values, from the sums along their axes."""
        for table, q, grad, ds, p in zip(self.tables, queries.parts, grads.parts, sums.axes(), weights.axes()):
            table += (ds.mT @ q + p.mT @ grad).sum(0)

    def finish(self, content: torch.Tensor, axes: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Gradients in the shapes and dtypes of the inputs."""
        lines = self.lines.unflatten(1, self.grid.sizes[:2])
        lost = [lines.sum(2), lines.sum(1), self.along]  # (2, Sᵢ) each
        tables = [
            gradient - apart[:, None] - table * slope[:, None]
            for gradient, table, (apart, slope) in zip(self.tables, self.grid.tables, lost)
        ]
        tables = [t.to(given.dtype) for t, given in zip(tables[3 - len(axes) :], axes)]
        return self.content.view(content.shape).to(content.dtype), tables


def _over_rows(factors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ over rows of factors (b, L, R, k) times weights (b, L, R, n): (b, L, k, n)."""
    return torch.bmm(factors.flatten(0, 1).mT, weights.flatten(0, 1)).unflatten(0, weights.shape[:2])


def _cut(lines: slice, along: slice, n: int, longest: int) -> Iterator[_Tile]:
    """Parts of a tile, of about n positions in lines of at most `longest`, all of about one size."""
    length = _evenly(along.stop - along.start, min(n, longest))
    for l0, l1 in ranges(lines.stop - lines.start, _evenly(lines.stop - lines.start, max(1, n // length))):
        for w0, w1 in ranges(along.stop - along.start, length):
            yield _Tile(slice(lines.start + l0, lines.start + l1), slice(along.start + w0, along.start + w1))


def _evenly(size: int, most: int) -> int:
    """Size of parts of at most `most`, as few and as equal as can be."""
    return -(-size // -(-size // most))
