"""What it takes to begin: importing the package, creating a model."""

import os
import subprocess
import sys
from functools import partial
from typing import Callable, List

import timm
import torch
from torch import nn

import timm_extra  # noqa: F401
from tests.reference.perceiver import PUBLISHED

from ..case import OURS, Call, Case, Implementation, Ready

IMPORT = 'import time, {}\nbegin = time.perf_counter()\nimport {}\nprint(time.perf_counter() - begin)'
COMPILED = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}  # as installed packages are


def _import(before: str, package: str, device: str) -> Ready:
    """Seconds that importing a package takes where another has been imported, in a new process each time."""

    def seconds() -> float:
        command = [sys.executable, '-c', IMPORT.format(before, package)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=COMPILED).stdout)

    return Ready(lambda: torch.zeros(()), seconds=seconds)


def _create(build: Callable[[], nn.Module], device: str) -> Call:
    return lambda: build() and torch.zeros(())


def _timm(name: str) -> Implementation:
    return Implementation(f"timm.create_model('{name}')", partial(_create, partial(timm.create_model, name)), True)


def _transformers() -> nn.Module:
    from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

    return PerceiverForImageClassificationFourier(PerceiverConfig(**PUBLISHED))


def _glom() -> nn.Module:
    from glom_pytorch import Glom

    return Glom(dim=512, levels=6, image_size=224, patch_size=14)


IMPORTS = {
    OURS: Implementation('import timm_extra, where timm has been imported', partial(_import, 'timm', 'timm_extra')),
    'timm': Implementation('import timm, where torch has been imported', partial(_import, 'torch', 'timm'), True),
}
HF = Implementation('the Fourier classifier from its config', partial(_create, _transformers), True, 'transformers')
GLOM = Implementation("glom-pytorch's Glom of the same size", partial(_create, _glom), True, 'glom_pytorch')
CREATED = {
    'ceit_small': ('deit', _timm('deit_small_patch16_224')),
    'perceiver_io_base': ('transformers', HF),
    'glom_base': ('glom-pytorch', GLOM),
}
CASES: List[Case] = [
    Case('start/import', IMPORTS),
    *(Case(f'start/create_model/{n}', {OURS: _timm(n), other: one}) for n, (other, one) in CREATED.items()),
]
