"""Cross-attention to an image that is never in memory: tile by tile, merged by the logarithms of their denominators.

The softmax over all positions is that over each tile, weighted by the tile's share of the denominator. So the result
is the one of the whole image but for rounding, and so are its gradients, for which tiles are read again.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike
from timm_extra._progress import progress_bar
from timm_extra_kernels.fourier_cross_attention import OPERATORS, prepare

from .cross_attention import StreamedInputs
from .fourier import fourier_table
from .stream_state import State
from .tile_source import TileSource

RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0}


class _Tile(NamedTuple):
    """A part of the image, in pixels and in tokens."""

    rows: slice
    columns: slice
    grid: Tuple[slice, slice]

    def __str__(self) -> str:
        return f'rows {self.rows.start} to {self.rows.stop}, columns {self.columns.start} to {self.columns.stop}'


class Stream:
    """Reads a source once for each cross-attend.

    Args:
        stem: What makes tokens of pixels: one that takes NaFlex batches, whose tokens see their own pixels alone.
        source: The image.
        mean: What pixels from 0 to 1 are normalised with, one value or as many as channels.
        std: Likewise.
        passes: How often the source is read.
        like: Gives dtype and device of the content.
        state: File that the state is written to, so that another run of the same call goes on from there.
        about: What a saved state must belong to.
        progress: Show a bar on stderr.
        cell: Pixels along each side of the cells whose attention is noted; none when None.

    Raises:
        ValueError: The stem takes no tiles, the source has other channels, or the state is of something else.
    """

    def __init__(
        self,
        stem: nn.Module,
        source: TileSource,
        mean: Sequence[float],
        std: Sequence[float],
        passes: int,
        like: torch.Tensor,
        state: Optional[PathLike] = None,
        about: str = '',
        progress: bool = False,
        cell: Optional[int] = None,
    ):
        self.stem, self.source, self.like = stem, source, like
        self.patch = stem.naflex_patch_size()
        self.shape = tuple(source.shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f'{source.name} must be (height, width, channels), got {self.shape}')
        if self.shape[2] != stem.in_chans:
            raise ValueError(f'{source.name} has {self.shape[2]} channels, the model takes {stem.in_chans}')
        self.dtype = torch.float64 if like.dtype == torch.float64 else torch.float32  # of normalising
        self.sums = torch.float32 if like.device.type == 'mps' else torch.float64  # of the softmax over tiles
        self.mean, self.std = (like.new_tensor(values, dtype=self.dtype).view(-1, 1, 1) for values in (mean, std))
        sizes = self.shape[:2]
        if stem.kind == 'patches' and any(s % p for s, p in zip(sizes, self.patch, strict=True)):
            raise ValueError(f'{source.name} is {sizes[0]} × {sizes[1]}, no multiple of patches of {self.patch}')
        self.grid = tuple(-(-s // p) for s, p in zip(sizes, self.patch, strict=True))
        self.tables = [
            fourier_table(size, stem.num_bands, resolution, like.device, like.dtype)
            for size, resolution in zip(self.grid, stem.max_resolution, strict=True)
        ]
        self.cell = self._cell_of(cell)
        self.masses: List[torch.Tensor] = []  # of each pass (H, M, rows, columns): what each cell has of the attention
        self.tiles = list(self._cut())
        self.version = getattr(source, 'version', None)
        self.passes, self.done, self.progress = passes, 0, progress
        self.state = State(state, about, len(self.tiles), like) if state is not None else None

    def finish(self) -> None:
        """Remove the state: all is done."""
        if self.state is not None:
            self.state.path.unlink(missing_ok=True)

    def _cell_of(self, cell: Optional[int]) -> Optional[Tuple[int, ...]]:
        """Tokens along each side of a cell."""
        if cell is None:
            return None
        if cell < 1 or any(cell % patch for patch in self.patch):
            raise ValueError(f'`cell` must be a positive multiple of patches of {self.patch}, got {cell}')
        return tuple(cell // patch for patch in self.patch)

    def _cut(self) -> Iterator[_Tile]:
        """Tiles in rows, each of whole patches."""
        steps = [max(1, tile // patch) for tile, patch in zip(self.source.tile, self.patch, strict=True)]  # in tokens
        for top in range(0, self.grid[0], steps[0]):
            for left in range(0, self.grid[1], steps[1]):
                grid = slice(top, min(top + steps[0], self.grid[0])), slice(left, min(left + steps[1], self.grid[1]))
                pixels = [
                    slice(part.start * patch, min(part.stop * patch, size))
                    for part, patch, size in zip(grid, self.patch, self.shape[:2], strict=True)
                ]
                yield _Tile(*pixels, grid)

    def inputs(self) -> StreamedInputs:
        """What queries attend to."""
        return StreamedInputs(self.like.new_empty(1, self.stem.in_chans, 0, 0), self.attend)

    def attend(self, q: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
        """Queries (1, H, M, C) to the weighted sums of normalised tokens (1, H, M, C), reading the source once."""
        if not torch.is_grad_enabled():
            return self.forward(q, scale, eps)[0]
        if self.state is not None:
            raise ValueError('a state is saved in inference alone: stream under torch.no_grad() or without a state')
        return _Attend.apply(q, self, scale, eps, *self.stem.parameters())

    def forward(self, q: torch.Tensor, scale: float, eps: float) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weighted sums, what rounding took off them, and log-sum-exp of the scores (1, H, M), float32 or float64."""
        out = q.new_zeros(q.shape, dtype=self.sums)
        lse = q.new_full(q.shape[:3], -math.inf, dtype=self.sums)
        begin, held = 0, self.state and self.state.resume(self.done)
        if held:
            begin, out, lse = held
        masses = None
        if self.cell:
            cells = [-(-size // cell) for size, cell in zip(self.grid, self.cell, strict=True)]
            masses = lse.new_full((*q.shape[1:3], *cells), -math.inf, dtype=self.dtype)
        for k, content, axes in self.read(begin):
            for cell, part in self._parts(self.tiles[k], content, axes):
                attended, log, rest = OPERATORS.outputs(prepare(q, *part, scale, eps, None))
                merged = torch.logaddexp(lse, log.to(self.sums))
                attended = attended.to(self.sums) + rest.to(self.sums)
                out = out * (lse - merged).exp().unsqueeze(-1) + attended * (log - merged).exp().unsqueeze(-1)
                lse = merged
                if masses is not None:
                    masses[(..., *cell)] = torch.logaddexp(masses[(..., *cell)], log[0])
            if self.state:
                self.state.save(self.done, k + 1, out, lse)
        if masses is not None:
            self.masses.append(masses.sub_(lse[0, ..., None, None]).exp_())
        self.done += 1
        rounded = out.to(q.dtype)
        rest = out.new_zeros(1) if q.dtype == self.dtype else out - rounded  # as the operator has them
        return rounded, rest.to(q.dtype), lse.to(self.dtype)

    def _parts(
        self, tile: _Tile, content: torch.Tensor, axes: List[torch.Tensor]
    ) -> Iterator[Tuple[Tuple[int, ...], Tuple[torch.Tensor, List[torch.Tensor]]]]:
        """Cells, by row and column, with what a tile has of them; or the tile."""
        if self.cell is None:
            yield (), (content, axes)
            return
        for i, rows in _pieces(tile.grid[0], self.cell[0]):
            for j, columns in _pieces(tile.grid[1], self.cell[1]):
                yield (i, j), (content[:, :, rows, columns], [axes[0][rows], axes[1][columns]])

    def read(self, begin: int = 0, grad: bool = False) -> Iterator[Tuple[int, torch.Tensor, List[torch.Tensor]]]:
        """Number, content (1, c, *grid) and position features of all tiles from one on; the next is read meanwhile.

        Args:
            begin: The first tile.
            grad: Let the content have gradients of the stem.
        """
        self._check_unchanged()
        words = 'tile' if self.passes == 1 else f'tile, pass {min(self.done + 1, self.passes)} of {self.passes}'
        left = self.tiles[begin:]
        with ThreadPoolExecutor(1) as ahead, progress_bar(len(self.tiles), words, self.progress) as update:
            update(begin)
            pending = [ahead.submit(self._pixels, tile) for tile in left[:1]]
            for k, tile in enumerate(left):
                pixels = pending.pop().result()
                pending = [ahead.submit(self._pixels, following) for following in left[k + 1 : k + 2]]
                axes = [table[part] for table, part in zip(self.tables, tile.grid, strict=True)]
                with torch.set_grad_enabled(grad):
                    content = self._content(pixels)
                yield begin + k, content, axes
                update(1)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        name, shape = self.source.name, tuple(self.source.shape)
        if shape != self.shape:
            raise ValueError(f'{name} was {self.shape} and is now {shape}')
        if getattr(self.source, 'version', None) != self.version:
            raise ValueError(f'{name} has changed while it was read')

    def _pixels(self, tile: _Tile) -> torch.Tensor:
        """Pixels (height, width, channels) of a tile, as they are stored."""
        name = self.source.name
        try:
            pixels = torch.as_tensor(self.source.read(tile.rows, tile.columns))
        except Exception as e:  # what readers raise of broken files is of nearly any type
            reason = ' '.join(str(e).split()) or type(e).__name__
            raise ValueError(f'{name}: the tile of {tile} cannot be read: {reason}') from e
        expected = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start, self.shape[2])
        if tuple(pixels.shape) != expected:
            raise ValueError(f'{name}: the tile of {tile} is {tuple(pixels.shape)}, not {expected}')
        if not pixels.is_floating_point() and pixels.dtype not in RANGES:
            raise ValueError(f'{name}: pixels are {pixels.dtype}, not uint8, uint16 or floating-point')
        if pixels.is_floating_point() and not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError(f'{name}: the tile of {tile} has floating-point numbers that are not from 0 to 1')
        return pixels

    def _content(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.to(self.like.device).permute(2, 0, 1).to(self.dtype) / RANGES.get(pixels.dtype, 1.0)
        x = ((x - self.mean) / self.std).to(self.like.dtype)
        return self.stem(x.unsqueeze(0))[0].content


def _pieces(part: slice, step: int) -> Iterator[Tuple[int, slice]]:
    """Multiples of `step` that a range meets, by number, with where they are within the range."""
    for i in range(part.start // step, -(-part.stop // step)):
        yield i, slice(max(i * step, part.start) - part.start, min((i + 1) * step, part.stop) - part.start)


class _Attend(torch.autograd.Function):
    """`Stream.forward`; the gradients are sums over tiles, which are read again, with the softmax of all of them."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, stream: Stream, scale: float, eps: float, *parameters: torch.Tensor):
        out, rest, lse = stream.forward(q, scale, eps)
        ctx.save_for_backward(q, out, rest, lse)
        ctx.stream, ctx.scale, ctx.eps, ctx.parameters = stream, scale, eps, parameters
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):
        q, out, rest, lse = ctx.saved_tensors
        needed = [p for p in ctx.parameters if p.requires_grad]
        dq = q.new_zeros(q.shape, dtype=ctx.stream.sums)
        sums = [p.new_zeros(p.shape, dtype=ctx.stream.sums) for p in needed]
        for _, content, axes in ctx.stream.read(grad=bool(needed)):
            given = prepare(q, content.detach(), axes, ctx.scale, ctx.eps, None)
            part, of_content, _ = OPERATORS.gradients(grad, given, (out, lse, rest), bool(needed))
            dq += part
            if needed:
                for total, one in zip(sums, torch.autograd.grad(content, needed, of_content.to(content)), strict=True):
                    total += one
        found = iter(total.to(p.dtype) for total, p in zip(sums, needed, strict=True))
        return dq.to(q.dtype), None, None, None, *(next(found) if p.requires_grad else None for p in ctx.parameters)
