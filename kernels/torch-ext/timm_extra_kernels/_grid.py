"""Grids whose positions have channels of their own and features that depend on one axis each, taken tile by tile.

A position's vector is x = [content, f₁(i), f₂(j), …]. It is never built: mean and deviation are put together from those
of its parts, and so is what their gradients take from each part.
"""

from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ._tiles import ranges

PREPARED = 1 << 14  # positions of an axis whose features are looked at together


class Tile(NamedTuple):
    """Positions taken together: a range of lines, and a range of the positions along each."""

    lines: slice
    along: slice


class Features(NamedTuple):
    """Position features of lines, or along them: how many, their mean and their squared deviations from it."""

    count: int
    mean: torch.Tensor  # (S,)
    squares: torch.Tensor  # (S,)

    def joined(self, other: 'Features') -> 'Features':
        """Those of each combination of positions of two axes."""
        count = self.count + other.count
        apart = self.mean[:, None] - other.mean
        squares = self.squares[:, None] + other.squares + self.count * other.count / max(count, 1) * apart.square()
        mean = (self.count * self.mean[:, None] + other.count * other.mean) / max(count, 1)
        return Features(count, mean.flatten(), squares.flatten())


class Grid:
    """A grid as lines along its last axis, moved to the tables' mean.

    A common shift of content and tables changes nothing where vectors are normalised. Taking the tables' mean off both
    keeps digits that inputs with a large offset would lose.

    Args:
        content: (B, c, *spatial), 1 to 3 axes.
        axes: One table (Sᵢ, Fᵢ) per axis.
        dtype: Of the arithmetic.
        eps: Added to the variance; None where vectors are not normalised.

    Attributes:
        sizes: (S₀, S₁, S₂); missing axes are of size 1 and come first.
        channels: C = c + ΣFᵢ.
        content: (B, c, S₀·S₁, S₂), as given.
        shift: What is taken off content and tables.
        features: How many features each of the three axes has, 0 for missing ones.
    """

    def __init__(self, content: torch.Tensor, axes: Sequence[torch.Tensor], dtype: torch.dtype, eps: Optional[float]):
        missing = 3 - len(axes)
        self.dtype, self.eps = dtype, eps
        self.sizes = (*[1] * missing, *content.shape[2:])
        self.channels = content.shape[1] + sum(t.shape[1] for t in axes)
        lines, length = self.sizes[0] * self.sizes[1], self.sizes[2]
        self.content = content.reshape(*content.shape[:2], lines, length)
        self.features = (*[0] * missing, *(t.shape[1] for t in axes))
        if eps is None:
            self.shift = torch.zeros((), dtype=dtype, device=content.device)
        else:
            self.shift = sum(t.mean(0, dtype=dtype).sum() for t in axes) / max(sum(self.features), 1)
        self._tables = [content.new_empty(1, 0)] * missing + list(axes)
        first, second, self.along = map(self._moments, range(3))
        self.lines = first.joined(second)

    def table(self, axis: int, rows: Any = slice(None)) -> torch.Tensor:
        """Rows (…, Fᵢ) of the table of one of the three axes, shifted."""
        return self._tables[axis][rows].to(self.dtype) - self.shift

    def _moments(self, axis: int) -> Features:
        mean, squares = (self.shift.new_zeros(self.sizes[axis]) for _ in range(2))
        if self.features[axis]:
            for part in self.parts(axis):
                table = self.table(axis, part)
                mean[part] = table.mean(1)
                squares[part] = table.sub_(mean[part, None]).square_().sum(1)
        return Features(self.features[axis], mean, squares)

    def parts(self, axis: int) -> Iterator[slice]:
        """Ranges of positions of an axis: a table may be as large as all positions together."""
        return (slice(*part) for part in ranges(self.sizes[axis], PREPARED))

    def line_features(self, lines: slice) -> torch.Tensor:
        """Features (L, F₀ + F₁) of a range of lines, shifted."""
        n = torch.arange(lines.start, lines.stop, device=self.content.device)
        return torch.cat([self.table(0, n // self.sizes[1]), self.table(1, n % self.sizes[1])], -1)

    def shifted(self, b0: int, b1: int, tile: Tile) -> torch.Tensor:
        """Content (b, L, c, n) of a tile, of some items."""
        return self.content[b0:b1, :, tile.lines, tile.along].transpose(1, 2).to(self.dtype) - self.shift

    def statistics(self, content: torch.Tensor, tile: Tile) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and reciprocal deviation (b, L, n) of a tile's vectors: 0 and 1 where they are not normalised.

        From separate sums of squares that are all centred.

        Args:
            content: As `shifted` returns it.
            tile: The tile.
        """
        b, L, c, n = content.shape
        if self.eps is None:
            return content.new_zeros(b, L, n), content.new_ones(b, L, n)
        features = [
            (self.lines.count, self.lines.mean[tile.lines, None], self.lines.squares[tile.lines, None]),
            (self.along.count, self.along.mean[tile.along], self.along.squares[tile.along]),
        ]
        own = content.sum(2) / max(c, 1)
        mean = (c * own + sum(count * centre for count, centre, _ in features)) / self.channels
        squares = (content - own[:, :, None]).square_().sum(2) + c * (own - mean).square_()
        for count, centre, around in features:
            squares += around + count * (centre - mean).square_()
        return mean, torch.rsqrt(squares / self.channels + self.eps)


class GridGradients:
    """Gradients of content and tables, through the normalisation of the vectors.

    Let y be the gradient of x̂ times rstd, with a its mean over channels, and b the mean of products of x̂ and its
    gradient. The gradient of x is then y − a − (x − mean) · slope, with slope = b · rstd².

    Attributes:
        content: (B, c, S₀·S₁, S₂).
        tables: Three tables (Sᵢ, Fᵢ), what they get but for the normalisation: callers add it.
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        self.content = grid.content.new_zeros(grid.content.shape, dtype=grid.dtype)
        self.tables = [grid.shift.new_zeros(shape) for shape in zip(grid.sizes, grid.features)]
        lines, length = grid.content.shape[2:]
        # what each feature of a line, or along it, loses to the mean; and for each unit of its value, to the deviation
        self.lines, self.along = self.content.new_zeros(2, lines), self.content.new_zeros(2, length)

    def add(self, b0: int, b1: int, tile: Tile, gradient: torch.Tensor) -> None:
        """Add y (b, L, c, n) to the content of a tile."""
        self.content[b0:b1, :, tile.lines, tile.along] += gradient.transpose(1, 2)

    def add_lines(self, lines: slice, gradient: torch.Tensor) -> None:
        """Add (L, F₀ + F₁) to the features of a range of lines."""
        n = torch.arange(lines.start, lines.stop, device=gradient.device)
        first, second = gradient.split(self.grid.features[:2], -1)
        self.tables[0].index_add_(0, n // self.grid.sizes[1], first)
        self.tables[1].index_add_(0, n % self.grid.sizes[1], second)

    def normalised(
        self, tile: Tile, content: torch.Tensor, mean: torch.Tensor, a: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """What the normalisation takes off the content of a tile (b, L, c, n); notes what it takes off the tables.

        Args:
            tile: The tile.
            content: (b, L, c, n), as `Grid.shifted` returns it.
            mean: Of the vectors (b, L, n).
            a: Mean of y over channels (b, L, n).
            slope: Mean of products of x̂ and its gradient, times rstd² (b, L, n).
        """
        lost = torch.stack([a - slope * mean, slope])  # (2, b, L, n)
        self.lines[:, tile.lines] += lost.sum((1, 3))
        self.along[:, tile.along] += lost.sum((1, 2))
        return a[:, :, None] + (content - mean[:, :, None]) * slope[:, :, None]

    def finish(self, content: torch.Tensor, axes: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Gradients in the shapes and dtypes of the inputs."""
        lines = self.lines.unflatten(1, self.grid.sizes[:2])
        lost = [lines.sum(2), lines.sum(1), self.along]  # (2, Sᵢ) each
        for i, (gradient, (apart, slope)) in enumerate(zip(self.tables, lost)):
            for part in self.grid.parts(i):
                gradient[part] -= apart[part, None] + self.grid.table(i, part) * slope[part, None]
        tables = [t.to(given.dtype) for t, given in zip(self.tables[3 - len(axes) :], axes)]
        return self.content.view(content.shape).to(content.dtype), tables


def cut(lines: slice, along: slice, n: int, longest: int) -> Iterator[Tile]:
    """Parts of a tile, of about n positions in lines of at most `longest`, all of about one size."""
    length = evenly(along.stop - along.start, min(n, longest))
    for l0, l1 in ranges(lines.stop - lines.start, evenly(lines.stop - lines.start, max(1, n // length))):
        for w0, w1 in ranges(along.stop - along.start, length):
            yield Tile(slice(lines.start + l0, lines.start + l1), slice(along.start + w0, along.start + w1))


def evenly(size: int, most: int) -> int:
    """Size of parts of at most `most`, as few and as equal as can be."""
    return -(-size // -(-size // most))
