"""Models. Importing this package registers them with timm."""

from .ceit import CeiT
from .perceiver import Perceiver, PerceiverIO

__all__ = ['CeiT', 'Perceiver', 'PerceiverIO']
