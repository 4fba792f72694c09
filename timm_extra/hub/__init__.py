"""Weights in the Hugging Face Hub's format: saved to folders, pushed, pulled and loaded again."""

from ..info import PLUGIN
from .client import HubError
from .loading import load
from .remote import pull, push
from .saving import save

__all__ = ['PLUGIN', 'HubError', 'load', 'pull', 'push', 'save']
