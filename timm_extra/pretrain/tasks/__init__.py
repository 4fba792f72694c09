"""Training without labels, as `timm.task.TrainingTask`s."""

from .byol import BYOL
from .denoise import Denoise
from .encoder import Encoder
from .maps import MapEncoder
from .pixpro import PixPro
from .simsiam import SimSiam
from .without_batchnorm import without_batchnorm

METHODS = {'byol': BYOL, 'simsiam': SimSiam, 'glom': Denoise, 'pixpro': PixPro}

__all__ = ['BYOL', 'METHODS', 'Denoise', 'Encoder', 'MapEncoder', 'PixPro', 'SimSiam', 'without_batchnorm']
