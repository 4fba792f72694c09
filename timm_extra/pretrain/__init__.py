"""Pretraining without labels: tasks (losses), views, data, optimizer and schedule, processes, checkpoints, probes."""

from .loop import METHODS, Pretrained, pretrain
from .tasks import BYOL, Denoise, Encoder, SimSiam, without_batchnorm

__all__ = ['BYOL', 'METHODS', 'Denoise', 'Encoder', 'Pretrained', 'SimSiam', 'pretrain', 'without_batchnorm']
