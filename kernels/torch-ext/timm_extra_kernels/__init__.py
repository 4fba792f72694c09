"""Operations of timm-extra: fused Triton kernels on GPUs, PyTorch everywhere else, with the same results."""

from . import layers
from ._dispatch import Path
from ._spec import explain
from .class_attention import class_attention
from .fourier_cross_attention import fourier_cross_attention
from .grid_query_attention import grid_query_attention
from .latent_cross_attention import latent_cross_attention
from .leff_depthwise import leff_depthwise
from .leff_depthwise_train import leff_depthwise_train
from .linear import linear

__all__ = [
    'Path',
    'class_attention',
    'explain',
    'fourier_cross_attention',
    'grid_query_attention',
    'latent_cross_attention',
    'layers',
    'leff_depthwise',
    'leff_depthwise_train',
    'linear',
]
