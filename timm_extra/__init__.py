"""timm_extra: a plugin for timm. Importing it registers its models, as `timm.create_model('ceit_small')`."""

from . import models
from ._version import __version__

__all__ = ['__version__', 'models']
