"""How the kernels of `latent_cross_attention` cut their work, by target, dtype and channels."""

from typing import Dict, NamedTuple, Tuple

import torch

from .._target import FUSION


class Tiles(NamedTuple):
    """How one kernel cuts its work.

    Attributes:
        widths: Channels of the sums that a program holds, in pieces; those of all rows, or those of one slice.
        rows: Queries at once.
        keys: Inputs at once.
        stages: Tiles under way.
        warps: Warps of a program.
        chunk: Channels of a step of the scores where `widths` is one slice; 0 where it is all channels.
    """

    widths: Tuple[int, ...]
    rows: int
    keys: int
    stages: int
    warps: int
    chunk: int = 0

    @property
    def holds_norm(self) -> bool:
        """Whether the gradient of x̂ can go through the layer normalisation in the program that has summed it up; with
        four warps it would spill."""
        return not self.chunk and self.warps == 8

    def slices(self, CP: int) -> int:
        """Programs that share the channels."""
        return -(-CP // self.widths[0]) if self.chunk else 1

    def constants(self, CP: int) -> dict:
        """What the kernels take."""
        return dict(
            WHOLE=not self.chunk,
            WIDTHS=self.widths,
            SLICES=self.slices(CP),
            BM=self.rows,
            BN=self.keys,
            CHUNK=self.chunk,
            STAGES=self.stages,
            num_warps=self.warps,
            **FUSION,
        )


# Products of 16 bits, all channels in a program: up to so many of them, no piece smaller than, and rows, keys, stages
# and warps. The largest that compile without spills; mma.sync wants pieces of 64: its warps would repeat work.
WHOLE = {
    'sm_80': dict(
        fwd=[(320, 64, 32, 64, 2, 8), (384, 64, 64, 64, 2, 8), (512, 64, 64, 32, 2, 8)],
        bwd_q=[(512, 64, 32, 64, 2, 8)],
        bwd_x=[(320, 64, 32, 32, 2, 8), (384, 64, 64, 32, 2, 8), (512, 64, 32, 32, 2, 8)],
    ),
    'sm_90': dict(
        fwd=[(272, 16, 128, 64, 3, 8), (336, 16, 128, 32, 2, 8), (512, 64, 64, 32, 3, 8)],
        bwd_q=[(272, 16, 64, 32, 2, 4), (512, 64, 32, 64, 2, 8)],
        bwd_x=[(272, 16, 32, 64, 2, 4), (512, 64, 64, 32, 2, 8)],
    ),
    'sm_100': dict(
        fwd=[(272, 16, 128, 64, 3, 8), (336, 16, 128, 64, 2, 8), (512, 64, 64, 32, 3, 8)],
        bwd_q=[(336, 16, 64, 32, 2, 4), (512, 64, 32, 64, 2, 8)],
        bwd_x=[(336, 16, 32, 64, 2, 4), (512, 64, 64, 32, 2, 8)],
    ),
    'gfx942': dict(
        fwd=[(272, 16, 64, 64, 1, 4), (320, 64, 64, 32, 2, 4), (336, 16, 128, 32, 1, 4), (512, 64, 64, 32, 2, 4)],
        bwd_q=[(272, 16, 64, 64, 1, 4), (336, 16, 64, 32, 1, 4), (512, 64, 64, 16, 2, 4)],
        bwd_x=[(272, 16, 32, 64, 2, 4), (512, 64, 16, 64, 2, 4)],
    ),
}
# Products of 16 bits and of 32, a slice of the channels in a program: small enough for any other target, too.
SLICED = {
    16: dict(
        fwd=Tiles((128,), 64, 64, 2, 8, chunk=64),
        bwd_q=Tiles((64,), 32, 32, 2, 4, chunk=32),
        bwd_x=Tiles((128,), 32, 32, 2, 8, chunk=64),
    ),
    32: dict(
        fwd=Tiles((128,), 64, 32, 2, 8, chunk=32),
        bwd_q=Tiles((64,), 32, 32, 2, 4, chunk=16),
        bwd_x=Tiles((64,), 32, 32, 2, 8, chunk=32),
    ),
}


def config(name: str, dtype: torch.dtype, CP: int) -> Dict[str, Tiles]:
    """Tiles of the kernels fwd, bwd_q and bwd_x for a target, the dtype of the products and padded channels."""
    if name == 'interpreter':
        tiles = Tiles(cover(CP, 16), 16, 32, 1, 8) if CP <= 128 else Tiles((64,), 16, 16, 1, 4, chunk=64)
        return dict(fwd=tiles, bwd_q=tiles, bwd_x=tiles)
    bits = 32 if dtype == torch.float32 else 16
    tiles = dict(SLICED[bits])
    if bits == 16 and CP <= 512:
        for kernel, table in WHOLE.get(name, {}).items():
            smallest, *rest = next(row[1:] for row in table if row[0] >= CP)
            tiles[kernel] = Tiles(cover(CP, smallest), *rest)
    return tiles


def cover(channels: int, smallest: int) -> Tuple[int, ...]:
    """At most three powers of two, two of 64 and more, that sum up to no fewer channels; largest first."""
    total = max(-(-channels // smallest) * smallest, 16)
    while bin(total).count('1') > (3 if smallest < 64 else 2):
        total += total & -total
    return tuple(1 << i for i in reversed(range(total.bit_length())) if total >> i & 1)
