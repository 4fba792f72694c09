"""What the kernels multiply: positions as rows of a few channels, queries as the weights of these."""

import math
from dataclasses import dataclass
from typing import List, Tuple

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


def chunks(rows: int, columns: int, most: int) -> List[Tuple[int, int]]:
    """Ranges of columns such that a matrix (rows, columns of a range) has at most `most` elements."""
    step = max(1, min(columns, most // max(rows, 1)))
    return [(begin, min(begin + step, columns)) for begin in range(0, columns, step)]


def batch_stride(tensor: torch.Tensor) -> int:
    """0 where all items of the batch share it."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
