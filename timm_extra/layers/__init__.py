"""Layers shared by several models."""

from .attention import Attention
from .checkpoint import checkpoint
from .linear import AcceleratedLinear, accelerate

__all__ = ['AcceleratedLinear', 'Attention', 'accelerate', 'checkpoint']
