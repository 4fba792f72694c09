"""What the kernels multiply: positions as rows of a few channels, queries as the weights of these, in plain PyTorch."""

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch

LOG2E = math.log2(math.e)
SAFE = 80.0  # powers of 2 to which unshifted scores may go: their sums over 2^31 positions stay finite


@dataclass(frozen=True)
class Slots:
    """Channels of a position: the normalised content, mean·rstd, rstd, 1, the bias of masked positions, and for 16-bit
    operands what rounding to bfloat16 has taken off some of them.

    Such a channel has three slots: rounded, the rest, and rounded once more; the weights there are rounded, rounded,
    and the rest of the weights. So a product keeps 16 bits.

    Attributes:
        channels: Content channels c. Slots 0 … c−1 are theirs, then follow mean·rstd, rstd, 1 and the bias.
        half: Whether operands are bfloat16, else they are float32.
        fine: Whether results are to have the digits of float16, so that weights of positions are split, too.
        first: Channels from this one to c, the mean, have three slots.
        width: Number of slots, filled up to a power of two.
    """

    channels: int
    half: bool
    fine: bool
    first: int
    width: int

    @property
    def split(self) -> int:
        """How many channels have three slots."""
        return self.channels + 1 - self.first if self.half else 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the operands."""
        return torch.bfloat16 if self.half else torch.float32


def slots(channels: int, dtype: torch.dtype) -> Slots:
    """Slots for queries of a dtype: all digits of float16, those of bfloat16 and more where they cost nothing."""
    half, fine = dtype != torch.float32, dtype == torch.float16
    least, most = _width(channels, half, channels), _width(channels, half, 0)
    first = 0 if fine or least == most else channels
    return Slots(channels, half, fine, first, _width(channels, half, first))


def _width(channels: int, half: bool, first: int) -> int:
    used = channels + 4 + (2 * (channels + 1 - first) + 1 if half else 0)
    return max(16, 1 << (used - 1).bit_length())


@dataclass
class Tables:
    """Position features as those of rows and those of columns.

    All axes but the last are one axis of rows, whose table has the features of all of them. A common shift of content
    and tables changes nothing; taking the tables' mean off both keeps digits that inputs with an offset would lose.

    Attributes:
        rows: (rows, Fr), shifted.
        columns: (W, Fc), shifted.
        shift: Scalar tensor.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    shift: torch.Tensor

    @staticmethod
    def of(axes: Sequence[torch.Tensor], normalised: bool) -> 'Tables':
        """From one table per axis."""
        tables = [t.float() for t in axes]
        if not normalised:
            shift = tables[0].new_zeros(())
        else:
            shift = sum(t.mean(0).sum() for t in tables) / max(sum(t.shape[1] for t in tables), 1)
            tables = [t - shift for t in tables]
        *others, columns = tables
        if len(others) == 2:
            t, h = (len(table) for table in others)
            rows = torch.cat([others[0].repeat_interleave(h, 0), others[1].repeat(t, 1)], 1)
        else:
            rows = others[0] if others else columns.new_zeros(1, 0)
        return Tables(rows.contiguous(), columns.contiguous(), shift)

    def statistics(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Sum and mean of features and squares about the mean, (rows, 3) and (W, 3)."""
        return _statistics(self.rows), _statistics(self.columns)

    def per_axis(self, rows: torch.Tensor, columns: torch.Tensor, axes: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Gradients of the tables of every axis from those of rows and columns."""
        if len(axes) == 1:
            return [columns.to(axes[0].dtype)]
        if len(axes) == 2:
            return [rows.to(axes[0].dtype), columns.to(axes[1].dtype)]
        t, h = axes[0].shape[0], axes[1].shape[0]
        first, second = rows.view(t, h, -1).split([axes[0].shape[1], axes[1].shape[1]], -1)
        return [first.sum(1).to(axes[0].dtype), second.sum(0).to(axes[1].dtype), columns.to(axes[2].dtype)]


def _statistics(table: torch.Tensor) -> torch.Tensor:
    total = table.sum(1, keepdim=True)
    mean = total / max(table.shape[1], 1)
    return torch.cat([total, mean, (table - mean).square().sum(1, keepdim=True)], 1)


@dataclass
class Weights:
    """Row vectors (b, R, C), separated.

    Attributes:
        slots: Their weights for the slots of a position (b, R, K).
        rows: Products with the table of rows (b, rows, R).
        columns: Products with the table of columns (b, R, W).
        parts: What they weigh content, rows' and columns' features with.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    parts: Tuple[torch.Tensor, ...]

    @staticmethod
    def of(vectors: torch.Tensor, tables: Tables, layout: Slots, bias: bool) -> 'Weights':
        """Separate vectors; with bias, masked positions get a product far below all others."""
        parts = vectors.split([layout.channels, tables.rows.shape[1], tables.columns.shape[1]], -1)
        tail = -vectors[..., layout.channels :].sum(-1, keepdim=True)
        values = torch.cat([parts[0], tail], -1)  # (b, R, c + 1)
        rounded = values.to(layout.dtype)
        zeros = rounded.new_zeros(*vectors.shape[:2], layout.width)
        pieces = [rounded, zeros[..., :2], zeros[..., :1] + float(bias)]
        if layout.half:
            cut = slice(layout.first, None)
            pieces += [rounded[..., cut], (values - rounded.float())[..., cut].to(layout.dtype)]
        used = sum(p.shape[-1] for p in pieces)
        weights = torch.cat([*pieces, zeros[..., : layout.width - used]], -1)
        rows, columns = tables.rows @ parts[1].mT, parts[2] @ tables.columns.mT
        return Weights(weights, rows.contiguous(), columns.contiguous(), parts)


def centred(vectors: torch.Tensor, factor: float, normalised: bool) -> torch.Tensor:
    """Vectors (b, H, M, C) times a factor as (b, R, C), centred where tokens are, which costs their products nothing
    and saves digits."""
    vectors = vectors.float().flatten(1, 2)
    if normalised:
        vectors = vectors - vectors.mean(-1, keepdim=True)
    return vectors * factor if factor != 1.0 else vectors


def bound(vectors: torch.Tensor, normalised: bool) -> torch.Tensor:
    """What products (b, R) of vectors with a token cannot exceed: a normalised one has a norm of at most √C."""
    if not normalised:
        return vectors.new_full(vectors.shape[:2], float('inf'))
    return vectors.norm(dim=-1).contiguous() * math.sqrt(vectors.shape[-1])


def features(sums: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, tables: Tables, layout: Slots):
    """Σ weights · x̂ (b, R, C) from sums of slots (b, R, K) and of weights · rstd along rows and columns."""
    c = layout.channels
    values = sums[..., : c + 1]
    if layout.split:
        rest = sums[..., c + 4 : c + 4 + layout.split]
        values = torch.cat([values[..., : layout.first], values[..., layout.first :] + rest], -1)
    content, mean = values[..., :c], values[..., c:]
    return torch.cat([content, rows.mT @ tables.rows - mean, columns @ tables.columns - mean], -1)


def merged(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """Tops (B, R), denominators (B, R) and sums (B, R, C) of two sets of positions as those of both."""
    tops = torch.maximum(first[0], second[0])
    a, b = torch.exp2(first[0] - tops), torch.exp2(second[0] - tops)
    return [tops, first[1] * a + second[1] * b, first[2] * a.unsqueeze(-1) + second[2] * b.unsqueeze(-1)]


def whole(partial: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, without a copy where there is one part."""
    return partial.sum(0) if len(partial) > 1 else partial[0]


def chunks(rows: int, columns: int, most: int) -> List[Tuple[int, int]]:
    """Ranges of columns such that a matrix (rows, columns of a range) has at most `most` elements."""
    step = max(1, min(columns, most // max(rows, 1)))
    return [(begin, min(begin + step, columns)) for begin in range(0, columns, step)]


def columns_of(
    content: torch.Tensor, axes: Sequence[torch.Tensor], mask: Optional[torch.Tensor], begin: int, end: int
) -> Tuple[torch.Tensor, List[torch.Tensor], Optional[torch.Tensor]]:
    """The same for some columns alone."""
    mask = None if mask is None else mask[..., begin:end]
    return content[..., begin:end], [*axes[:-1], axes[-1][begin:end]], mask


def pointers(weights: Weights) -> Tuple[torch.Tensor, ...]:
    return weights.slots, weights.rows, weights.columns


def batch_strides(weights: Weights) -> List[int]:
    return [batch_stride(t) for t in pointers(weights)]


def batch_stride(tensor: torch.Tensor) -> int:
    """Of a contiguous tensor, 0 where all items of the batch share it."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
