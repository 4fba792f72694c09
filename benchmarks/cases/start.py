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


def _transformers() -> nn.Module:
    from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

    from ..peers.perceiver import PUBLISHED

    return PerceiverForImageClassificationFourier(PerceiverConfig(**PUBLISHED))


def _glom() -> nn.Module:
    from glom_pytorch import Glom

    return Glom(dim=512, levels=6, image_size=224, patch_size=14)


def _created(name: str, other: str, words: str, build: Callable[[], nn.Module], package: str = '') -> Case:
    ours = Implementation(f"timm.create_model('{name}')", partial(_create, partial(timm.create_model, name)))
    baseline = Implementation(words, partial(_create, build), baseline=True, package=package)
    return Case(f'start/create_model/{name}', {OURS: ours, other: baseline})


DEIT = 'deit_small_patch16_224'
CASES: List[Case] = [
    Case(
        'start/import',
        {
            OURS: Implementation('import timm_extra after timm', partial(_import, 'timm', 'timm_extra')),
            'timm': Implementation('import timm after torch', partial(_import, 'torch', 'timm'), baseline=True),
        },
    ),
    _created('ceit_small', 'deit', f"timm.create_model('{DEIT}')", partial(timm.create_model, DEIT)),
    _created(
        'perceiver_io_base', 'transformers', 'the Fourier classifier from its config', _transformers, 'transformers'
    ),
    _created('glom_base', 'glom-pytorch', "glom-pytorch's Glom of the same size", _glom, 'glom_pytorch'),
]
