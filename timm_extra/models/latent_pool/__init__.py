"""Any timm model with attention pooling by learned queries as its head."""

from timm_extra.layers.latent_pool import LatentPool, LatentPoolConfig

from .features import Features, find_features, remove_classifier, to_tokens
from .idefics2 import from_idefics2
from .latent_pool import LatentPoolModel, latent_pool, with_latent_pool

__all__ = [
    'Features',
    'LatentPool',
    'LatentPoolConfig',
    'LatentPoolModel',
    'find_features',
    'from_idefics2',
    'latent_pool',
    'remove_classifier',
    'to_tokens',
    'with_latent_pool',
]
