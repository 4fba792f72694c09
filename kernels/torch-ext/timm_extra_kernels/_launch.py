"""How a kernel that sums over channels in pieces cuts its work."""

from typing import NamedTuple, Tuple

from ._target import FUSION


class Tiles(NamedTuple):
    """How one kernel cuts its work.

    Attributes:
        widths: Channels of the sums that a program holds, in pieces.
        rows: Queries at once.
        keys: Keys at once.
        stages: Tiles under way.
        warps: Warps of a program.
    """

    widths: Tuple[int, ...]
    rows: int
    keys: int
    stages: int
    warps: int

    @property
    def constants(self) -> dict:
        """What the kernels take."""
        return dict(WIDTHS=self.widths, BM=self.rows, BN=self.keys, STAGES=self.stages, num_warps=self.warps, **FUSION)


def cover(channels: int, smallest: int) -> Tuple[int, ...]:
    """Powers of two that sum up to no fewer channels, largest first and none above 256; at most three different ones
    below 512, two where they are 64 and more."""
    total = max(-(-channels // smallest) * smallest, 16)
    while bin(total).count('1') > (3 if smallest < 64 else 2):
        total += total & -total
    whole, rest = divmod(total, 256)
    return (256,) * whole + tuple(1 << i for i in reversed(range(8)) if rest >> i & 1)
