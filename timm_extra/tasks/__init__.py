"""Training without labels, as `timm.task.TrainingTask`s."""

from ._batchfree import without_batchnorm
from ._encoder import Encoder
from .byol import BYOL
from .denoise import Denoise
from .simsiam import SimSiam

__all__ = ['BYOL', 'Denoise', 'Encoder', 'SimSiam', 'without_batchnorm']
