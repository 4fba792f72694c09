"""CeiT against the paper's modules in plain PyTorch with the same weights, and against timm's DeiT as a baseline."""

from functools import partial
from typing import Callable, List

import timm
import torch
from torch import nn

import timm_extra
from tests.reference.ceit import OfficialCeiT, randomize

from ..case import OURS, Call, Case, Implementation, images

BATCH = 4
SETTING = f'batch {BATCH} at 224 × 224'
SCALE = 1e4  # of gradients, to be of the size of one
SIZES = {'tiny': (192, 3), 'small': (384, 6)}  # width and heads
PLAIN = (
    "the paper's modules in plain PyTorch: 1×1 convolutions on NCHW maps with permutes, explicit attention "
    'matrices, unfused BatchNorm, all tokens in all blocks'
)


def _plain(size: str) -> nn.Module:
    dim, heads = SIZES[size]
    return randomize(OfficialCeiT(dim=dim, heads=heads))


def _ours(size: str, fuse: bool = False) -> nn.Module:
    """Our model with the weights of the plain one."""
    overlay = dict(state_dict=_plain(size).state_dict())
    model = timm.create_model(f'ceit_{size}', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    return timm_extra.accelerate(model.fuse() if fuse else model)


def _inference(build: Callable[[], nn.Module], device: str) -> Call:
    model, x = build().to(device).eval(), images(BATCH, device)
    return torch.inference_mode()(lambda: model(x))


def _step(build: Callable[[], nn.Module], device: str) -> Call:
    """Forward in training mode and backward; the gradient of what first sees the image."""
    model, x = build().to(device).train(), images(BATCH, device)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))

    def call() -> torch.Tensor:
        model.zero_grad()
        model(x).square().mean().backward()
        return SCALE * first.weight.grad

    return call


def _case(size: str, what: str, how: str, run: Callable[..., Call], fuse: bool = False) -> Case:
    implementations = {
        OURS: Implementation(f'ceit_{size} {how}, accelerated, {SETTING}', partial(run, partial(_ours, size, fuse))),
        'plain': Implementation(PLAIN, partial(run, partial(_plain, size))),
    }
    if not fuse:
        deit = f'deit_{size}_patch16_224'
        make = partial(run, partial(timm.create_model, deit))
        words = f"timm's {deit}, a network without LeFF and LCA"
        implementations['deit'] = Implementation(words, make, baseline=True)
    return Case(f'ceit/{size}/{what}', implementations, 1e-4, memory=size == 'small' and not fuse)


CASES: List[Case] = [
    case
    for size in SIZES
    for case in (
        _case(size, 'inference', 'as created', _inference),
        _case(size, 'training-step', 'as created, forward in training mode and backward', _step),
        _case(size, 'inference/fused', 'after fuse()', _inference, fuse=True),
    )
]
