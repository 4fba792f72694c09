"""timm_extra: a plugin for timm. Importing it registers its models, as `timm.create_model('ceit_small')`."""

import importlib
import sys
from pathlib import Path
from typing import Any, List

from ._version import __version__

try:
    from . import models
    from .layers import LatentPool, LatentPoolConfig, accelerate
    from .models import with_latent_pool
except KeyboardInterrupt:  # it takes seconds
    if Path(sys.argv[0]).stem not in ('timm-extra', '-m'):
        raise
    print('timm-extra: interrupted', file=sys.stderr)  # as the command says it
    sys.exit(130)

__all__ = ['LatentPool', 'LatentPoolConfig', '__version__', 'accelerate', 'models', 'with_latent_pool']

_LAZY = (
    'demo',
    'doctor',
    'finetune',
    'flow',
    'hub',
    'images',
    'inference',
    'inputs',
    'layers',
    'plot',
    'pretrain',
)  # imported when first used


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f'.{name}', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> List[str]:
    return sorted({*globals(), *_LAZY})
