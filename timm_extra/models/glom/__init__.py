"""GLOM: part-whole hierarchies (https://arxiv.org/abs/2102.12627), and measures of its islands."""

from .checkpoint_filter import checkpoint_filter_fn
from .consensus import ConsensusAttention
from .glom import GLOM, glom_base, glom_small, glom_tiny, test_glom
from .islands import adjusted_rand_index, island_counts, island_labels, neighbour_cosine

__all__ = [
    'GLOM',
    'ConsensusAttention',
    'adjusted_rand_index',
    'checkpoint_filter_fn',
    'glom_base',
    'glom_small',
    'glom_tiny',
    'island_counts',
    'island_labels',
    'neighbour_cosine',
    'test_glom',
]
