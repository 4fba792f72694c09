"""Models at work: classes of images, and models for other runtimes."""

from .export import Export, export
from .predict import Guess, Prediction, predict, predict_stream

__all__ = ['Export', 'Guess', 'Prediction', 'export', 'predict', 'predict_stream']
