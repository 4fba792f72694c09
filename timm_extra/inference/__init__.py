"""Models at work: classes of images, and models for other runtimes."""

from .export import Export, export
from .predict import Guess, Prediction, predict

__all__ = ['Export', 'Guess', 'Prediction', 'export', 'predict']
