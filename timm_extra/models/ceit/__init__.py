"""CeiT: Convolution-enhanced image Transformer (https://arxiv.org/abs/2103.11816)."""

from .ceit import (
    CeiT,
    ceit_base,
    ceit_small,
    ceit_small_384,
    ceit_tiny,
    ceit_tiny_384,
    ceit_tiny_article,
    test_ceit,
)
from .checkpoint_filter import checkpoint_filter_fn
from .image2tokens import Image2Tokens
from .lca import LayerwiseClassAttention
from .leff import LeFF

__all__ = [
    'CeiT',
    'Image2Tokens',
    'LayerwiseClassAttention',
    'LeFF',
    'ceit_base',
    'ceit_small',
    'ceit_small_384',
    'ceit_tiny',
    'ceit_tiny_384',
    'ceit_tiny_article',
    'checkpoint_filter_fn',
    'test_ceit',
]
