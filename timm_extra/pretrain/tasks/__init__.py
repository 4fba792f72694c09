"""Training without labels, as `timm.task.TrainingTask`s."""

from .byol import BYOL
from .denoise import Denoise
from .encoder import Encoder
from .simsiam import SimSiam
from .without_batchnorm import without_batchnorm

__all__ = ['BYOL', 'Denoise', 'Encoder', 'SimSiam', 'without_batchnorm']
