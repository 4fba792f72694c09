"""Pretraining without labels: data, optimizer, schedule, processes, checkpoints."""

from .loop import METHODS, Pretrained, pretrain

__all__ = ['METHODS', 'Pretrained', 'pretrain']
