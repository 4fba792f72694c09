"""Any timm model with attention pooling by learned queries as its head."""

from timm_extra.layers.latent_pool import LatentPool, LatentPoolConfig

from .idefics2 import from_idefics2
from .latent_pool import LatentPoolModel, latent_pool, with_latent_pool

__all__ = [
    'LatentPool',
    'LatentPoolConfig',
    'LatentPoolModel',
    'from_idefics2',
    'latent_pool',
    'with_latent_pool',
]
