"""Pretraining without labels: tasks (losses), views, data, optimizer and schedule, processes, checkpoints, probes."""

from .config import PretrainConfig
from .loop import Pretrained, pretrain
from .tasks import BYOL, METHODS, Denoise, Encoder, MapEncoder, PixPro, SimSiam, without_batchnorm

__all__ = [
    'BYOL',
    'METHODS',
    'Denoise',
    'Encoder',
    'MapEncoder',
    'PixPro',
    'PretrainConfig',
    'Pretrained',
    'SimSiam',
    'pretrain',
    'without_batchnorm',
]
