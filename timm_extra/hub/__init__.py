"""Weights in the Hugging Face Hub's format: saved to folders, pushed, pulled, converted and loaded again."""

from timm_extra.models.info import PLUGIN

from .checks import another_model
from .client import HubError
from .convert import convert
from .load import load
from .provenance import Provenance, base_model
from .published import check_repository, missing_weights
from .pull import pull
from .push import push
from .save import save

__all__ = [
    'PLUGIN',
    'HubError',
    'Provenance',
    'another_model',
    'base_model',
    'check_repository',
    'convert',
    'load',
    'missing_weights',
    'pull',
    'push',
    'save',
]
