"""Training without labels, as `timm.task.TrainingTask`s."""

from .byol import BYOL
from .denoise import Denoise
from .encoder import Encoder
from .simsiam import SimSiam
from .without_batchnorm import without_batchnorm

METHODS = {'byol': BYOL, 'simsiam': SimSiam, 'glom': Denoise}

__all__ = ['BYOL', 'METHODS', 'Denoise', 'Encoder', 'SimSiam', 'without_batchnorm']
