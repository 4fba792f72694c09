"""Layers shared by several models."""

from .attention import Attention
from .checkpoint import checkpoint

__all__ = ['Attention', 'checkpoint']
