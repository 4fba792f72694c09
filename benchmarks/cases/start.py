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

from ..harness import Asked, Call, Case, Made, Side

IMPORT = 'import time, {}\nbegin = time.perf_counter()\nimport {}\nprint(time.perf_counter() - begin)'
COMPILED = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}  # as installed packages are
NOTHING = torch.zeros(())


def _import(before: str, package: str, device: str) -> Made:
    """Seconds that importing a package takes where another has been imported, in a new process each time."""

    def seconds() -> float:
        code = IMPORT.format(before, package)
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=COMPILED)
        return float(done.stdout)

    def call() -> torch.Tensor:
        seconds()
        return NOTHING

    return Made(call, seconds=seconds)


def _create(build: Callable[[], nn.Module], device: str) -> Call:
    def call() -> torch.Tensor:
        build()
        return NOTHING

    return call


def _transformers() -> nn.Module:
    from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

    from ..peers.perceiver import PUBLISHED

    return PerceiverForImageClassificationFourier(PerceiverConfig(**PUBLISHED))


def _glom() -> nn.Module:
    from glom_pytorch import Glom

    return Glom(dim=512, levels=6, image_size=224, patch_size=14)


def _created(name: str, peer: str, words: str, build: Callable[[], nn.Module], package: str = '') -> Case:
    return Case(
        f'start/create_model/{name}',
        Side(f"timm.create_model('{name}')", partial(_create, partial(timm.create_model, name))),
        {peer: Side(words, partial(_create, build), same=False, package=package)},
    )


CASES: List[Case] = [
    Case(
        'start/import',
        Side('import timm_extra, where timm has been imported', partial(_import, 'timm', 'timm_extra')),
        {'timm': Side('import timm, where torch has been imported', partial(_import, 'torch', 'timm'), same=False)},
        asked=(Asked('ms', 150),),
    ),
    _created(
        'ceit_small',
        'deit',
        "timm.create_model('deit_small_patch16_224')",
        partial(timm.create_model, 'deit_small_patch16_224'),
    ),
    _created(
        'perceiver_io_base', 'transformers', 'the Fourier classifier from its config', _transformers, 'transformers'
    ),
    _created('glom_base', 'glom-pytorch', "glom-pytorch's Glom of the same size", _glom, 'glom_pytorch'),
]
