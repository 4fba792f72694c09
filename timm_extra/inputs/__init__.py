"""Files of any kind as inputs of a model: images, audio, point clouds."""

from .inputs import Inputs, inputs_of

__all__ = ['Inputs', 'inputs_of']
