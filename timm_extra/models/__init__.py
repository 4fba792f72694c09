"""Models. Importing this package registers them with timm."""

from .ceit import CeiT
from .glom import GLOM
from .perceiver import Perceiver, PerceiverIO

__all__ = ['GLOM', 'CeiT', 'Perceiver', 'PerceiverIO']
