"""Cross-attention to a grid with separable position features, in plain PyTorch and bounded memory.

A token is x = [content, f₁(i), f₂(j), …]: each position feature depends on one axis alone. With x̂ = (x − mean) · rstd

    score  = rstd · (q₀·content + q₁·f₁(i) + q₂·f₂(j) + … − mean · Σq)
    output = [Σ P·rstd·content, (Σ over all but i of P·rstd) f₁, …] − Σ P·rstd·mean

so that a token costs as many multiplications as it has content channels, and neither tokens nor keys nor values exist.
The gradients have the same form.
"""

from typing import Iterator, List, Optional, Sequence, Tuple

import torch

from .._tiles import OnlineSoftmax, Range, batch_step, compute_dtype, ranges, tile_budget

Tile = Tuple[slice, slice, slice]
LONGEST_LINE = 256


def forward(
    q: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    scale: float,
    eps: Optional[float],
    mask: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale · q x̂ᵀ) x̂ over all positions, tile by tile.

    Args:
        q: Queries (B or 1, H, M, C), C = c + ΣFᵢ.
        content: (B, c, *spatial).
        axes: One table (Sᵢ, Fᵢ) per spatial axis.
        scale: Factor of the scores.
        eps: Added to the variance of a token; None for x̂ = x.
        mask: (B, *spatial), True where a position takes part.

    Returns:
        Output (B, H, M, C) and log-sum-exp of the scores (B, H, M), in the dtype of the arithmetic.
    """
    H, M, C = q.shape[1:]
    B = content.shape[0]
    grid = _Grid(content, axes, compute_dtype(q, content, *axes), eps, mask)
    rows = (q.to(grid.dtype) * scale).flatten(1, 2)  # (B or 1, R, C), R = H·M
    out = rows.new_empty(B, H * M, C)
    lse = rows.new_empty(B, H * M)
    for (b0, b1), tiles in grid.tiles(H * M):
        part = grid.items(b0, b1)
        queries = _Separated(_items(rows, b0, b1), part)
        softmax = OnlineSoftmax((b1 - b0, H * M), rows)
        sums = _Sums(b1 - b0, H * M, part)
        for tile in tiles:
            rstd = part.flat(part.rstd, tile)
            scores = queries.products(tile).mul_(rstd)  # (b, R, n)
            if part.mask is not None:
                scores.masked_fill_(~part.flat(part.mask, tile), -float('inf'))
            factor = softmax.add(scores)
            if factor is not None:
                sums.scale(factor)
            sums.add(scores.mul_(rstd), tile)
        denominator, lse[b0:b1] = softmax.finish()
        out[b0:b1] = sums.features() / denominator
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
    """Gradients of `forward`, from scores computed again.

    Args:
        grad: Gradient of the output (B, H, M, C).
        q: As in `forward`.
        content: As in `forward`.
        axes: As in `forward`.
        out: Output of `forward`.
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
    delta = (grad * out.flatten(1, 2)).sum(-1, keepdim=True)  # (B, R, 1)
    lse = lse.flatten(1, 2).unsqueeze(-1)
    dq = rows.new_zeros(rows.shape)
    inputs = _InputGradients(grid) if needs_inputs else None
    for (b0, b1), tiles in grid.tiles(H * M):
        part = grid.items(b0, b1)
        queries, grads = _Separated(_items(rows, b0, b1), part), _Separated(grad[b0:b1], part)
        sums = _Sums(b1 - b0, H * M, part)
        weights = _Sums(b1 - b0, H * M, part) if inputs else None
        for tile in tiles:
            rstd = part.flat(part.rstd, tile)
            scores = queries.products(tile).mul_(rstd)  # (b, R, n)
            p = (scores - lse[b0:b1]).exp_()
            if part.mask is not None:
                p.masked_fill_(~part.flat(part.mask, tile), 0.0)
            dp = grads.products(tile).mul_(rstd)
            ds = (dp - delta[b0:b1]).mul_(p)
            if inputs:
                inputs.add_tile(b0, b1, part, tile, queries, grads, scores, p, dp, ds)
                weights.add(p.mul_(rstd), tile)
            sums.add(ds.mul_(rstd), tile)
        if inputs:
            inputs.add_tables(part, queries, grads, sums, weights)
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


class _Grid:
    """Inputs in the form the loops need: three axes, moved to the tables' mean, with token means and deviations.

    A common shift of content and tables changes nothing. Taking the tables' mean off both keeps digits that inputs
    with a large offset would lose.

    Attributes:
        content: (B, c, S₀, S₁, S₂) in the dtype of the arithmetic; missing axes are of size 1 and come first.
        tables: Three tables (Sᵢ, Fᵢ), with Fᵢ = 0 for missing axes.
        features: Content and token mean (b, c + 1, S₀, S₁, S₂), of the items taken.
        rstd: Reciprocal deviation of tokens (b, S₀, S₁, S₂), of the items taken.
        mask: (B, S₀, S₁, S₂) or None.
    """

    features: torch.Tensor
    rstd: torch.Tensor

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
        self.channels = content.shape[1] + sum(t.shape[1] for t in axes)
        self.content = content.reshape(*content.shape[:2], *[1] * missing, *content.shape[2:])
        self.mask = None if mask is None else mask.reshape(mask.shape[0], *[1] * missing, *mask.shape[1:])
        self.axes = list(range(missing, 3))
        tables = [t.to(dtype) for t in axes]
        if eps is None:
            self.shift = torch.zeros((), dtype=dtype, device=content.device)
        else:
            self.shift = sum(t.mean(0).sum() for t in tables) / max(sum(t.shape[1] for t in tables), 1)
        empty = torch.zeros(1, 0, dtype=dtype, device=content.device)
        self.tables = [empty] * missing + [t - self.shift for t in tables]

    def tiles(self, rows: int) -> Iterator[Tuple[Range, Iterator[Tile]]]:
        """Batch items to take together, and for each such group the tiles of positions."""
        B, sizes = self.content.shape[0], self.content.shape[2:]
        budget = tile_budget(self.content.device)
        step = batch_step(B, rows * sizes.numel(), budget)
        n = max(16, budget // max(rows * step, 1))
        for b0, b1 in ranges(B, step):
            yield (b0, b1), _cut(sizes, n)

    def items(self, b0: int, b1: int) -> '_Grid':
        """The same for some items of the batch, with their token means and deviations."""
        part = object.__new__(_Grid)
        part.__dict__.update(self.__dict__)
        part.content = content = self.content[b0:b1].to(self.dtype) - self.shift
        part.mask = None if self.mask is None else self.mask[b0:b1]
        if self.eps is None:
            mean, part.rstd = torch.zeros_like(content[:, 0]), torch.ones_like(content[:, 0])
        else:
            mean, part.rstd = self._statistics(content)
        part.features = torch.cat([content, mean[:, None]], 1)
        return part

    def _statistics(self, content: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and reciprocal deviation of tokens, from separate sums of squares that are all centred."""
        c = content.shape[1]
        mean = content.sum(1)  # (b, S₀, S₁, S₂)
        own = mean / c
        for axis, table in self._by_axis():
            mean = mean + _along(table.sum(-1), axis)
        mean = mean / self.channels
        squares = (content - own[:, None]).square_().sum(1) + c * (own - mean).square()
        for axis, table in self._by_axis():
            centre = table.mean(-1)
            squares = squares + _along((table - centre[:, None]).square().sum(-1), axis)
            squares = squares + table.shape[1] * (_along(centre, axis) - mean).square()
        return mean, torch.rsqrt(squares / self.channels + self.eps)

    def _by_axis(self) -> Iterator[Tuple[int, torch.Tensor]]:
        return ((axis, self.tables[axis]) for axis in self.axes if self.tables[axis].shape[1])

    @staticmethod
    def flat(maps: torch.Tensor, tile: Tile) -> torch.Tensor:
        """A tile of maps (b, S₀, S₁, S₂) as (b, 1, n), or of (b, k, S₀, S₁, S₂) as (b, k, n)."""
        cut = maps[(..., *tile)]
        return cut.flatten(-3) if maps.ndim == 5 else cut.flatten(-3)[:, None]


class _Separated:
    """Row vectors (b, R, C), split into their products with the tables and the part for content and mean."""

    def __init__(self, rows: torch.Tensor, grid: _Grid):
        c = grid.content.shape[1]
        self.grid = grid
        self.parts = rows.split([c, *(t.shape[1] for t in grid.tables)], -1)
        self.content = torch.cat([self.parts[0], -rows.sum(-1, keepdim=True)], -1)  # (b, R, c + 1)
        self.along = [part @ table.mT for part, table in zip(self.parts[1:], grid.tables)]  # (b, R, Sᵢ) each

    def products(self, tile: Tile) -> torch.Tensor:
        """Products with x − mean of the tokens of a tile (b, R, n), in memory of its own."""
        b, R = self.content.shape[:2]
        shape = [s.stop - s.start for s in tile]
        terms = [
            self.along[axis][..., tile[axis]][(..., *[slice(None) if i == axis else None for i in range(3)])]
            for axis in self.grid.axes
        ]
        total = self.content.new_empty(b, R, *shape)
        if len(terms) == 1:
            total.copy_(terms[0].expand_as(total))
        else:  # the last axis is whole or nearly so: all others together are much smaller
            torch.add(sum(terms[1:-1], terms[0]), terms[-1], out=total)
        return total.flatten(2).baddbmm_(self.content, self.grid.flat(self.grid.features, tile))


class _Sums:
    """Sums over positions of weights (b, R, n): with content and mean, and along every axis."""

    def __init__(self, b: int, rows: int, grid: _Grid):
        self.grid = grid
        self.content = grid.content.new_zeros(b, rows, grid.features.shape[1])
        self.along = {a: grid.content.new_zeros(b, rows, grid.tables[a].shape[0]) for a in grid.axes}

    def scale(self, factor: torch.Tensor) -> None:
        """Multiply all sums by (b, R, 1)."""
        for total in (self.content, *self.along.values()):
            total.mul_(factor)

    def add(self, weights: torch.Tensor, tile: Tile) -> None:
        """Add the weights (b, R, n) of a tile."""
        self.content.baddbmm_(weights, self.grid.flat(self.grid.features, tile).mT)
        cube = weights.unflatten(2, [s.stop - s.start for s in tile])
        for axis, total in self.along.items():
            others = [i + 2 for i in range(3) if i != axis]
            total[..., tile[axis]] += cube.sum(others)

    def features(self) -> torch.Tensor:
        """Σ weights · (x − mean) (b, R, C)."""
        content, mean = self.content[..., :-1], self.content[..., -1:]
        return torch.cat([content, *(s @ self.grid.tables[a] for a, s in self.along.items())], -1) - mean


class _InputGradients:
    """Gradients of content and tables, through the layer normalisation of the tokens.

    With A = Σ scale·dS·q + P·dO per token and channel, a its sum over channels and b = Σ dS·s + P·dP,
    the gradient of a token is rstd · (A − a/C − x̂·b/C).
    """

    def __init__(self, grid: _Grid):
        self.content = grid.content.new_empty(grid.content.shape, dtype=grid.dtype)
        self.tables = {a: grid.tables[a].new_zeros(grid.tables[a].shape) for a in grid.axes}

    def add_tile(self, b0, b1, grid: _Grid, tile: Tile, queries, grads, scores, p, dp, ds) -> None:
        """Content of a tile, and what its normalisation takes from the tables; weights are (b, R, n) each."""
        summed = queries.content.mT @ ds + grads.content.mT @ p  # (b, c + 1, n), the last of them −a
        gradient = summed[:, :-1]
        shape = [s.stop - s.start for s in tile]
        if grid.eps is not None:
            rstd, features = grid.flat(grid.rstd, tile), grid.flat(grid.features, tile)
            mean = features[:, -1:]
            a = -summed[:, -1:] / grid.channels
            b = ((ds * scores).sum(1, keepdim=True) + (p * dp).sum(1, keepdim=True)) / grid.channels
            gradient = (gradient - a - (features[:, :-1] - mean) * rstd * b) * rstd
            lost, slope = (rstd * a - rstd.square() * b * mean), rstd.square() * b  # (b, 1, n)
            for axis, table in self.tables.items():
                others = [0, *(i + 1 for i in range(3) if i != axis)]
                own = lost.view(-1, *shape).sum(others)[:, None]
                table[tile[axis]] -= own + grid.tables[axis][tile[axis]] * slope.view(-1, *shape).sum(others)[:, None]
        self.content[(slice(b0, b1), slice(None), *tile)] = gradient.unflatten(2, shape)

    def add_tables(self, grid: _Grid, queries, grads, sums: _Sums, weights: _Sums) -> None:
        """What the tables get through scores and values, from the sums along their axes."""
        for axis, table in self.tables.items():
            table += (sums.along[axis].mT @ queries.parts[axis + 1]).sum(0)
            table += (weights.along[axis].mT @ grads.parts[axis + 1]).sum(0)

    def finish(self, content: torch.Tensor, axes: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Gradients in the shapes and dtypes of the inputs."""
        tables = [t.to(given.dtype) for t, given in zip(self.tables.values(), axes)]
        return self.content.view(content.shape).to(content.dtype), tables


def _along(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Values (S,) of one of three axes, to be broadcast over the others."""
    return values[tuple(slice(None) if i == axis else None for i in range(3))]


def _cut(sizes: Sequence[int], n: int) -> Iterator[Tile]:
    """Tiles of about n positions, of several lines each: a sum along lines then touches little memory for each tile."""
    lines = sizes[0] * sizes[1]
    steps, left = [], n
    for size, most in zip(reversed(sizes), (n if lines == 1 else LONGEST_LINE, n, n)):
        steps.insert(0, max(1, min(size, most, left)))
        left //= steps[0]
    for t0, t1 in ranges(sizes[0], steps[0]):
        for h0, h1 in ranges(sizes[1], steps[1]):
            for w0, w1 in ranges(sizes[2], steps[2]):
                yield slice(t0, t1), slice(h0, h1), slice(w0, w1)
