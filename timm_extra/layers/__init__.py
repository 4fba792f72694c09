"""Layers shared by several models."""

from .attention import Attention
from .checkpoint import checkpoint
from .latent_pool import LatentPool, LatentPoolConfig
from .linear import AcceleratedLinear, accelerate

__all__ = ['AcceleratedLinear', 'Attention', 'LatentPool', 'LatentPoolConfig', 'accelerate', 'checkpoint']
