"""Layers shared by the models."""

from .attention import Attention
from .checkpoint import checkpoint
from .leff import LeFF

__all__ = ['Attention', 'LeFF', 'checkpoint']
