"""Training without labels, as `timm.task.TrainingTask`s."""

from ._batchfree import without_batchnorm
from .byol import BYOL
from .simsiam import SimSiam

__all__ = ['BYOL', 'SimSiam', 'without_batchnorm']
