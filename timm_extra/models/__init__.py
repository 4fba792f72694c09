"""Models. Importing this package registers them with timm."""

from .ceit import CeiT
from .glom import GLOM
from .latent_pool import LatentPoolModel, with_latent_pool
from .perceiver import Perceiver, PerceiverIO

__all__ = ['GLOM', 'CeiT', 'LatentPoolModel', 'Perceiver', 'PerceiverIO', 'with_latent_pool']
