"""Layers shared by the models."""

from .attention import Attention
from .checkpoint import checkpoint
from .consensus import ConsensusAttention, columns_beyond, columns_themselves
from .cross_attention import CrossAttention
from .fourier import fourier_features, fourier_table, grid_tokens
from .fuse import fold_batchnorm
from .image2tokens import Image2Tokens
from .lca import LayerwiseClassAttention
from .leff import LeFF
from .operators import has_hooks

__all__ = [
    'Attention',
    'ConsensusAttention',
    'CrossAttention',
    'Image2Tokens',
    'LayerwiseClassAttention',
    'LeFF',
    'checkpoint',
    'columns_beyond',
    'columns_themselves',
    'fold_batchnorm',
    'fourier_features',
    'fourier_table',
    'grid_tokens',
    'has_hooks',
]
