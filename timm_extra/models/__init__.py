"""Model families. Importing this package registers them with timm."""

from .ceit import CeiT

__all__ = ['CeiT']
