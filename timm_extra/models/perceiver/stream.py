"""Cross-attention to an image that is never in memory: tile by tile, merged by the logarithms of their denominators.

The softmax over all positions is that over each tile, weighted by the tile's share of the denominator. So the result
is the one of the whole image but for rounding, and so are its gradients, for which tiles are read again.
"""

import hashlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike, atomic_file
from timm_extra._progress import progress_bar
from timm_extra_kernels.fourier_cross_attention import OPERATORS, prepare

from .._size import fitting
from .cross_attention import StreamedInputs
from .fourier import fourier_table

TILE = 1024  # pixels along each side of a tile, about, where the source has no tiles of its own
SAVE_SECONDS = 30.0  # between two saved states
RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0}


class TileSource(Protocol):
    """An image that is read in parts.

    Attributes:
        name: What errors call it.
        shape: Height, width and channels.
        tile: Height and width of the parts that are best read at once.

    A `version`, if it has one, tells states of one image from those of another with the same name and shape.
    """

    name: str
    shape: Tuple[int, int, int]
    tile: Tuple[int, int]

    def read(self, rows: slice, columns: slice) -> Any:
        """A NumPy array (height, width, channels) of uint8, uint16, or floating-point numbers from 0 to 1."""


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
        mean: What pixels from 0 to 1 are normalised with, one number or one for each channel.
        std: Likewise.
        passes: How often the source is read.
        like: Gives dtype and device of the content.
        state: File that the state is written to, so that another run of the same call goes on from there.
        about: What a saved state must belong to.
        progress: Show a bar on stderr.

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
    ):
        self.stem, self.source, self.like = stem, source, like
        self.patch = stem.naflex_patch_size()
        self.shape = tuple(source.shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f'{source.name} must be (height, width, channels), got {self.shape}')
        if self.shape[2] != stem.in_chans:
            raise ValueError(f'{source.name} has {self.shape[2]} channels, the model takes {stem.in_chans}')
        self.dtype = torch.float64 if like.dtype == torch.float64 else torch.float32  # of normalising
        self.mean, self.std = (like.new_tensor(values, dtype=self.dtype).view(-1, 1, 1) for values in (mean, std))
        sizes = self.shape[:2]
        if stem.kind == 'patches' and any(s % p for s, p in zip(sizes, self.patch, strict=True)):
            raise ValueError(f'{source.name} is {sizes[0]} × {sizes[1]}, no multiple of patches of {self.patch}')
        self.grid = tuple(-(-s // p) for s, p in zip(sizes, self.patch, strict=True))
        self.tables = [
            fourier_table(size, stem.num_bands, resolution, like.device, like.dtype)
            for size, resolution in zip(self.grid, stem.max_resolution, strict=True)
        ]
        self.tiles = list(self._cut())
        self.passes, self.done, self.progress = passes, 0, progress
        self.state = _State(state, about, len(self.tiles), like) if state is not None else None

    def finish(self) -> None:
        """Remove the state: all is done."""
        if self.state is not None:
            self.state.path.unlink(missing_ok=True)

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
        out = q.new_zeros(q.shape, dtype=torch.float64)
        lse = q.new_full(q.shape[:3], -math.inf, dtype=torch.float64)
        begin, held = 0, self.state and self.state.resume(self.done)
        if held:
            begin, out, lse = held
        for k, content, axes in self.read(begin):
            part, log, rest = OPERATORS.outputs(prepare(q, content, axes, scale, eps, None))
            merged = torch.logaddexp(lse, log.double())
            part = part.double() + rest.double()
            out = out * (lse - merged).exp().unsqueeze(-1) + part * (log - merged).exp().unsqueeze(-1)
            lse = merged
            if self.state:
                self.state.save(self.done, k + 1, out, lse)
        self.done += 1
        rounded = out.to(q.dtype)
        rest = out.new_zeros(1) if q.dtype == self.dtype else out - rounded  # as the operator has them
        return rounded, rest.to(q.dtype), lse.to(self.dtype)

    def read(self, begin: int = 0, grad: bool = False) -> Iterator[Tuple[int, torch.Tensor, List[torch.Tensor]]]:
        """Number, content (1, c, *grid) and position features of all tiles from one on; the next is read meanwhile.

        Args:
            begin: The first tile.
            grad: Let the content have gradients of the stem.
        """
        if tuple(self.source.shape) != self.shape:
            raise ValueError(f'{self.source.name} was {self.shape} and is now {tuple(self.source.shape)}')
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

    def _pixels(self, tile: _Tile) -> torch.Tensor:
        """Pixels (height, width, channels) of a tile, as they are stored."""
        name = self.source.name
        try:
            pixels = torch.as_tensor(self.source.read(tile.rows, tile.columns))
        except Exception as e:  # what readers raise of broken files is of nearly any type
            raise ValueError(f'{name}: the tile of {tile} cannot be read: {str(e) or type(e).__name__}') from e
        expected = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start, self.shape[2])
        if tuple(pixels.shape) != expected:
            raise ValueError(f'{name}: the tile of {tile} is {tuple(pixels.shape)}, not {expected}')
        if not pixels.is_floating_point() and pixels.dtype not in RANGES:
            raise ValueError(f'{name}: pixels are {pixels.dtype}, not uint8, uint16 or floating-point')
        return pixels

    def _content(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.to(self.like.device).permute(2, 0, 1).to(self.dtype) / RANGES.get(pixels.dtype, 1.0)
        x = ((x - self.mean) / self.std).to(self.like.dtype)
        return self.stem(x.unsqueeze(0))[0].content


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
        dq = q.new_zeros(q.shape, dtype=torch.float64)
        sums = [p.new_zeros(p.shape, dtype=torch.float64) for p in needed]
        for _, content, axes in ctx.stream.read(grad=bool(needed)):
            given = prepare(q, content.detach(), axes, ctx.scale, ctx.eps, None)
            part, of_content, _ = OPERATORS.gradients(grad, given, (out, lse, rest), bool(needed))
            dq += part
            if needed:
                for total, one in zip(sums, torch.autograd.grad(content, needed, of_content.to(content)), strict=True):
                    total += one
        found = iter(total.to(p.dtype) for total, p in zip(sums, needed, strict=True))
        return dq.to(q.dtype), None, None, None, *(next(found) if p.requires_grad else None for p in ctx.parameters)


class _State:
    """What of a stream is done, in a file: finished passes, and the running softmax of the one under way.

    Args:
        path: The file; of one that is there the stream goes on.
        about: What it must belong to.
        tiles: Number of tiles.
        like: Gives the device.

    Raises:
        ValueError: It is of another image or model, or cannot be read.
    """

    def __init__(self, path: PathLike, about: str, tiles: int, like: torch.Tensor):
        self.path, self.about, self.tiles = Path(path), about, tiles
        self.finished: List[Tuple[torch.Tensor, torch.Tensor]] = []
        self.running: Optional[Tuple[int, torch.Tensor, torch.Tensor]] = None
        self._saved = time.monotonic()
        if self.path.exists():
            held = self._load(like.device)
            self.finished, self.running = held['finished'], held['running']

    def _load(self, device: torch.device) -> Dict[str, Any]:
        try:
            held = torch.load(self.path, map_location=device, weights_only=True)
            about = held['about']
        except Exception as e:  # what broken files raise is of nearly any type
            raise ValueError(f'{self.path} is no state of a stream: {" ".join(str(e).split())[:200]}') from e
        if about != self.about:
            raise ValueError(
                f'{self.path} is the state of another model, image or preprocessing: remove it to begin anew'
            )
        return held

    def resume(self, done: int) -> Optional[Tuple[int, torch.Tensor, torch.Tensor]]:
        """Tiles that the pass after `done` others has behind it, and its sums and log-sum-exp."""
        if done < len(self.finished):
            return (self.tiles, *self.finished[done])
        return self.running if done == len(self.finished) else None

    def save(self, done: int, tiles: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Note what a pass has behind it; written every half minute, and at its end."""
        if tiles == self.tiles:
            self.finished, self.running = [*self.finished[:done], (out, lse)], None
        else:
            self.running = tiles, out, lse
        if tiles == self.tiles or time.monotonic() - self._saved > SAVE_SECONDS:
            with atomic_file(self.path) as aside:
                torch.save(dict(about=self.about, finished=self.finished, running=self.running), aside)
            self._saved = time.monotonic()


def identity(model: nn.Module, source: TileSource, *options: Any) -> str:
    """A digest of weights, image and options: what a saved state belongs to."""
    version = getattr(source, 'version', None)
    arguments = sorted(getattr(model, '_model_args', {}).items()), model.num_blocks, model.num_cross_attends
    about = source.name, tuple(source.shape), tuple(source.tile), version, options, arguments, repr(model)
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def normalisation(
    model: nn.Module, mean: Optional[Sequence[float]], std: Optional[Sequence[float]]
) -> List[List[float]]:
    """Those given, or those of the model's configuration."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    channels = model.in_chans
    found = [
        fitting(config.get(name, (default,)), channels) if given is None else given
        for name, given, default in (('mean', mean, 0.0), ('std', std, 1.0))
    ]
    for name, values in zip(('mean', 'std'), found, strict=True):
        if len(values) not in (1, channels):
            raise ValueError(f'`{name}` has {len(values)} values for {channels} channels')
    return [list(values) for values in found]
