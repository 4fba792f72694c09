"""GLOM: part-whole hierarchies (https://arxiv.org/abs/2102.12627), and measures of its islands."""

from .checkpoint_filter import checkpoint_filter_fn
from .consensus import ConsensusAttention
from .glom import GLOM, glom_base, glom_small, glom_tiny, test_glom
from .islands import adjusted_rand_index, island_counts, island_labels, neighbour_cosine
from .parsing import (
    Parse,
    choose_level_and_threshold,
    containment,
    foreground_adjusted_rand_index,
    mean_iou,
    segment_counts,
)

__all__ = [
    'GLOM',
    'ConsensusAttention',
    'Parse',
    'adjusted_rand_index',
    'checkpoint_filter_fn',
    'choose_level_and_threshold',
    'containment',
    'foreground_adjusted_rand_index',
    'glom_base',
    'glom_small',
    'glom_tiny',
    'island_counts',
    'island_labels',
    'mean_iou',
    'neighbour_cosine',
    'segment_counts',
    'test_glom',
]
