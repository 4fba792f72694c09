"""Perceiver (https://arxiv.org/abs/2103.03206) and Perceiver IO (https://arxiv.org/abs/2107.14795)."""

from .blocks import CrossAttentionBlock, SelfAttentionBlock
from .checkpoint_filter import checkpoint_filter_fn
from .cross_attention import CrossAttention, Inputs
from .fourier import fourier_features, fourier_table, grid_tokens
from .perceiver import (
    Perceiver,
    PerceiverIO,
    naflex_perceiver_io_small,
    naflex_perceiver_small,
    perceiver_audio,
    perceiver_base,
    perceiver_io_base,
    perceiver_io_base_conv,
    perceiver_io_base_learned,
    perceiver_io_flow,
    perceiver_io_small,
    perceiver_pointcloud,
    perceiver_small,
    test_perceiver,
    test_perceiver_io,
)
from .positions import Positions
from .stems import (
    STEMS,
    Conv1x1Stem,
    ConvStem,
    FramesStem,
    PatchEmbedStem,
    PatchStem,
    PixelStem,
    PointStem,
    Stem,
    TokenStem,
)
from .tile_source import TileSource

__all__ = [
    'STEMS',
    'Conv1x1Stem',
    'ConvStem',
    'CrossAttention',
    'CrossAttentionBlock',
    'FramesStem',
    'Inputs',
    'PatchEmbedStem',
    'PatchStem',
    'Perceiver',
    'PerceiverIO',
    'PixelStem',
    'PointStem',
    'Positions',
    'SelfAttentionBlock',
    'Stem',
    'TileSource',
    'TokenStem',
    'checkpoint_filter_fn',
    'fourier_features',
    'fourier_table',
    'grid_tokens',
    'naflex_perceiver_io_small',
    'naflex_perceiver_small',
    'perceiver_audio',
    'perceiver_base',
    'perceiver_io_base',
    'perceiver_io_base_conv',
    'perceiver_io_base_learned',
    'perceiver_io_flow',
    'perceiver_io_small',
    'perceiver_pointcloud',
    'perceiver_small',
    'test_perceiver',
    'test_perceiver_io',
]
