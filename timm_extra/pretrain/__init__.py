"""Pretraining without labels: tasks (losses), views, data, optimizer and schedule, processes, checkpoints, probes."""

from .config import PretrainConfig
from .loop import Pretrained, pretrain
from .tasks import BYOL, METHODS, Denoise, Encoder, SimSiam, without_batchnorm

__all__ = [
    'BYOL',
    'METHODS',
    'Denoise',
    'Encoder',
    'PretrainConfig',
    'Pretrained',
    'SimSiam',
    'pretrain',
    'without_batchnorm',
]
