"""Weights in the Hugging Face Hub's format: saved to folders, pushed, pulled, converted and loaded again."""

from timm_extra.models.info import PLUGIN

from .client import HubError
from .convert import convert
from .load import load
from .pull import pull
from .push import push
from .save import save

__all__ = ['PLUGIN', 'HubError', 'convert', 'load', 'pull', 'push', 'save']
