"""How the kernels of `grid_query_attention` cut their work, by what the GPU has and by channels."""

from typing import Dict

from .._launch import Tiles, cover
from .._target import INTERPRETER, Target

CHANNELS = 128  # of the content that the kernels take
VALUES = 512  # and of the values
# By matrix unit and kernel: up to so many channels of the values and of the content, KiB of shared memory that a block
# must have, no piece smaller than, and positions, keys, stages and warps; the first that fits. They compile without
# spills for all sizes tried but 261 channels of values and 40 of content on sm_120 (8 bytes in bwd_q); nothing else is
# known of them, as no GPU has run them.
TABLES: Dict[str, Dict[str, list]] = {
    'mma.sync': dict(
        fwd=[(384, 64, 99, 64, 32, 64, 2, 8), (512, 128, 99, 64, 32, 32, 2, 8)],
        bwd_q=[(384, 64, 163, 64, 32, 64, 2, 8), (512, 128, 99, 64, 32, 32, 2, 8)],
        bwd_k=[(512, 128, 99, 64, 16, 32, 2, 8)],
        bwd_v=[(384, 64, 99, 64, 32, 32, 2, 8), (512, 128, 99, 64, 16, 32, 2, 8)],
    ),
    'wgmma': dict(
        fwd=[(384, 64, 227, 64, 64, 32, 2, 8), (512, 128, 227, 64, 32, 32, 2, 8)],
        bwd_q=[(384, 64, 227, 64, 64, 32, 2, 8), (512, 128, 227, 64, 64, 16, 2, 8)],
        bwd_k=[(512, 128, 227, 64, 16, 32, 2, 8)],
        bwd_v=[(384, 64, 227, 64, 32, 64, 2, 8), (512, 128, 227, 64, 16, 64, 2, 8)],
    ),
    'tcgen05': dict(
        fwd=[(384, 64, 227, 64, 64, 32, 2, 8), (512, 128, 227, 64, 32, 32, 2, 8)],
        bwd_q=[(384, 64, 227, 64, 64, 32, 2, 8), (512, 128, 227, 64, 32, 32, 2, 8)],
        bwd_k=[(512, 128, 227, 64, 16, 32, 2, 8)],
        bwd_v=[(384, 64, 227, 64, 32, 64, 2, 8), (512, 128, 227, 64, 16, 32, 2, 8)],
    ),
    'mfma': dict(
        fwd=[(512, 128, 64, 64, 64, 32, 1, 4)],
        bwd_q=[(512, 128, 64, 64, 32, 32, 1, 4)],
        bwd_k=[(512, 128, 64, 64, 16, 32, 1, 4)],
        bwd_v=[(512, 128, 64, 64, 32, 32, 1, 4)],
    ),
    INTERPRETER: {kernel: [(512, 128, 64, 16, 16, 32, 1, 8)] for kernel in ('fwd', 'bwd_q', 'bwd_k', 'bwd_v')},
}


def config(kernel: str, target: Target, values: int, channels: int) -> Tiles:
    """Tiles of the kernel fwd, bwd_q, bwd_k or bwd_v for padded channels of values and of content."""
    for most_values, most_channels, shared, smallest, *rest in TABLES[target.unit][kernel]:
        if most_values >= values and most_channels >= channels and shared <= target.shared:
            return Tiles(cover(values, smallest), *rest)
    raise ValueError(f'{target.name} has no tiles for {values} channels of values and {channels} of content')
