"""Layers shared by the models."""

from .attention import Attention
from .checkpoint import checkpoint
from .fuse import fold_batchnorm
from .image2tokens import Image2Tokens
from .lca import LayerwiseClassAttention
from .leff import LeFF

__all__ = ['Attention', 'Image2Tokens', 'LayerwiseClassAttention', 'LeFF', 'checkpoint', 'fold_batchnorm']
