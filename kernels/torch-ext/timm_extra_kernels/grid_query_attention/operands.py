"""What the kernels of `grid_query_attention` read."""

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

from .._grid import Grid, Tile, cut
from .._launch import Tiles
from .._tiles import tile_budget
from .naive import LOWEST


def product_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Dtype of the kernels' products: that of all tensors where it has 16 bits, else float32."""
    (dtype, *others) = {t.dtype for t in tensors}
    return torch.float32 if others else dtype


class Operands(NamedTuple):
    """What the kernels read, of I = B·H items and M keys, padded to MP.

    Attributes:
        grid: The grid.
        features: Features of the lines (lines, F₀ + F₁).
        parts: Keys that meet the content, the features of lines and those along them (I, M, ·) float32.
        content: (B or 1, c, N).
        keys: (I, MP, CP), those of the content.
        values: (I, MP, DP).
        along: Products of the features along lines (I, length, MP).
        lines: Products of the features of lines, and of the shift (I, lines, MP).
        sums: Of the keys over channels (I, MP).
        bias: (I, MP), less the largest of a head, in powers of 2.
        mean: Of the vectors (B or 1, N), less the shift.
        rstd: 1 / deviation (B or 1, N).
    """

    grid: Grid
    features: torch.Tensor
    parts: Tuple[torch.Tensor, ...]
    content: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    along: torch.Tensor
    lines: torch.Tensor
    sums: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    rstd: torch.Tensor

    @property
    def tensors(self) -> Tuple[torch.Tensor, ...]:
        """Those that kernels take, in their order."""
        return self[3:]

    def shared(self, D: int, tiles: Tiles) -> dict:
        """Sizes and constants that all kernels take."""
        c, N = self.content.shape[1:]
        return dict(
            c=c,
            N=N,
            length=self.along.shape[1],
            lines=self.lines.shape[1],
            MP=self.sums.shape[1],
            cb=0 if self.content.shape[0] == 1 else c * N,
            sb=0 if self.mean.shape[0] == 1 else N,
            D=D,
            DP=self.values.shape[2],
            CP=self.keys.shape[2],
            **tiles.constants,
        )


def operands(
    k: torch.Tensor,
    v: torch.Tensor,
    content: torch.Tensor,
    axes: Sequence[torch.Tensor],
    bias: torch.Tensor,
    eps: Optional[float],
    MP: int,
) -> Operands:
    """What the kernels read of the arguments of `forward`, keys padded to MP."""
    grid = Grid(content, axes, torch.float32, eps)
    c, missing = content.shape[1], MP - k.shape[2]
    dtype = product_dtype(k, v, content)
    wide = k.flatten(0, 1).float()
    own, of_lines, along = parts = wide.split([c, sum(grid.features[:2]), grid.features[2]], -1)
    features = grid.line_features(slice(0, grid.content.shape[2]))

    def padded(t: torch.Tensor, channels: int = 0, value: float = 0.0) -> torch.Tensor:
        """(I, M, …) with rows up to MP and more channels."""
        more = (0, channels, 0, missing) if t.ndim == 3 else (0, missing)
        return (F.pad(t, more, value=value) if channels or missing else t).contiguous()

    of_shift = (own.sum(-1) * grid.shift).unsqueeze(1)
    return Operands(
        grid,
        features,
        parts,
        grid.content.flatten(2).contiguous(),
        padded(k.flatten(0, 1)[..., :c].to(dtype), padded_channels(c) - c),
        padded(v.flatten(0, 1).to(dtype), -v.shape[3] % 16),
        F.pad(grid.table(2) @ along.mT, (0, missing)),
        F.pad(features @ of_lines.mT - of_shift, (0, missing)),
        padded(wide.sum(-1)),
        padded(_in_powers_of_2(bias.flatten(0, 1)), value=-math.inf),
        *_statistics(grid),
    )


def _in_powers_of_2(bias: torch.Tensor) -> torch.Tensor:
    """Biases (I, M) less the largest of their head, for scores in powers of 2.

    −∞ for keys that take no part, so that they weigh 0 where no other does.
    """
    wide = bias.float()
    return ((wide - wide.amax(-1, keepdim=True)) * math.log2(math.e)).masked_fill(bias <= LOWEST, -math.inf)


def padded_channels(c: int) -> int:
    """Channels of the content as the kernels have them, a power of 2."""
    return max(16, 1 << (c - 1).bit_length()) if c else 0


def _statistics(grid: Grid) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / deviation (B or 1, N) of the grid's vectors."""
    B = grid.content.shape[0]
    mean, rstd = (grid.shift.new_empty(B, *grid.content.shape[2:]) for _ in range(2))
    for tile in tiles_of(grid):
        place = slice(None), tile.lines, tile.along
        mean[place], rstd[place] = grid.statistics(grid.shifted(0, B, tile), tile)
    return mean.flatten(1), rstd.flatten(1)


def tiles_of(grid: Grid) -> List[Tile]:
    """Tiles of the grid whose content is no more than PyTorch should look at together."""
    B, c, lines, length = grid.content.shape
    n = max(1, tile_budget(grid.content.device) // (B * max(c, 1)))
    return list(cut(slice(0, lines), slice(0, length), n, length))
