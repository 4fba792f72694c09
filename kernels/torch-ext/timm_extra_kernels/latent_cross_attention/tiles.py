"""How the kernels of `latent_cross_attention` cut their work, by what the GPU has and by channels."""

from typing import Dict

from .._launch import Tiles, cover
from .._target import INTERPRETER, Target

FORWARD = 1024  # channels that the forward kernel takes
BACKWARD = 512  # and those that the backward kernels take
# By matrix unit and kernel: up to so many channels, KiB of shared memory that a block must have, no piece smaller than,
# and rows, keys, stages and warps; the first that fits. These are the largest that compile without spills. mma.sync
# wants pieces of 64, and a tile of 16 x 8 scores for each warp: its warps would repeat work.
TABLES: Dict[str, Dict[str, list]] = {
    'mma.sync': dict(
        fwd=[
            (320, 99, 64, 32, 64, 2, 8),
            (384, 163, 64, 64, 64, 2, 8),
            (512, 163, 64, 64, 32, 2, 8),
            (384, 99, 64, 32, 64, 2, 8),
            (512, 99, 64, 32, 32, 2, 4),
            (1024, 99, 64, 32, 16, 2, 8),
        ],
        bwd_q=[(512, 163, 64, 32, 64, 2, 8), (384, 99, 64, 32, 32, 2, 4), (512, 99, 64, 32, 16, 2, 4)],
        bwd_x=[
            (320, 99, 64, 32, 32, 2, 8),
            (384, 163, 64, 64, 32, 2, 8),
            (512, 163, 64, 32, 32, 2, 8),
            (384, 99, 64, 32, 32, 2, 8),
            (512, 99, 64, 16, 32, 2, 4),
        ],
    ),
    'wgmma': dict(
        fwd=[
            (272, 227, 16, 128, 64, 3, 8),
            (384, 227, 64, 64, 64, 2, 8),
            (512, 227, 64, 64, 16, 3, 8),
            (1024, 227, 64, 32, 16, 2, 8),
        ],
        bwd_q=[(512, 227, 64, 32, 64, 2, 8)],
        bwd_x=[(512, 227, 64, 64, 32, 2, 8)],
    ),
    'tcgen05': dict(
        fwd=[
            (336, 227, 16, 128, 32, 3, 8),
            (512, 227, 64, 32, 64, 2, 8),
            (1024, 227, 64, 32, 16, 2, 8),
        ],
        bwd_q=[(336, 227, 16, 64, 32, 2, 4), (512, 227, 64, 32, 64, 2, 8)],
        bwd_x=[(336, 227, 16, 32, 64, 2, 4), (512, 227, 64, 64, 32, 2, 8)],
    ),
    'mfma': dict(
        fwd=[
            (272, 64, 16, 64, 64, 1, 4),
            (384, 64, 64, 64, 32, 2, 4),
            (512, 64, 64, 64, 16, 2, 4),
            (1024, 64, 64, 32, 16, 1, 4),
        ],
        bwd_q=[(336, 64, 16, 64, 32, 1, 4), (512, 64, 64, 64, 16, 2, 4)],
        bwd_x=[(272, 64, 16, 16, 64, 2, 4), (512, 64, 64, 16, 64, 1, 4)],
    ),
    INTERPRETER: {kernel: [(1024, 64, 16, 16, 32, 1, 8)] for kernel in ('fwd', 'bwd_q', 'bwd_x')},
}


def config(kernel: str, target: Target, CP: int) -> Tiles:
    """Tiles of the kernel fwd, bwd_q or bwd_x for padded channels."""
    for channels, shared, smallest, *rest in TABLES[target.unit][kernel]:
        if channels >= CP and shared <= target.shared:
            return Tiles(cover(CP, smallest), *rest)
    raise ValueError(f'{target.name} has no tiles for {CP} channels')
