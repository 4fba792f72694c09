"""GLOM against glom-pytorch, with the same weights; the base model at the size of its README."""

import warnings
from functools import partial
from typing import Callable, List

import timm
import torch
from torch import nn

import timm_extra

from ..case import OURS, Call, Case, Implementation, images

PATCH = 14
SCALE = 1e5  # of gradients, to be of the size of one
ORIGINAL = 'glom-pytorch'
STEP = 'forward and backward of a decoder on the top level after 7 iterations'


SIZES = {'tiny': (192, 5), 'base': (512, 6)}  # width and levels


def _glom_pytorch(size: str) -> nn.Module:
    """glom-pytorch's model as it is initialised, but with longer outputs of its nets.

    As it is, what an image changes at the top is lost in rounding, and a wrong result would look right.
    """
    from glom_pytorch import Glom

    torch.manual_seed(0)
    dim, levels = SIZES[size]
    model = Glom(dim=dim, levels=levels, image_size=224, patch_size=PATCH)
    with torch.no_grad():
        for net in (model.bottom_up.net, model.top_down.net):
            net[3].weight.mul_(7.0)
    return model


def _model(ours: bool, size: str, device: str) -> nn.Module:
    """glom-pytorch's model, or ours with its weights."""
    model = _glom_pytorch(size)
    if ours:
        given = dict(compat='lucidrains', num_classes=0, pretrained_cfg_overlay=dict(state_dict=model.state_dict()))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the classifier is not used
            model = timm_extra.accelerate(timm.create_model(f'glom_{size}', pretrained=True, **given))
    return model.to(device)


def _inference(ours: bool, size: str, top: bool, device: str) -> Call:
    """States after twice as many iterations as levels, of all levels or of the top one."""
    model, x = _model(ours, size, device).eval(), images(4, device)
    if not ours:
        return torch.inference_mode()(lambda: model(x)[:, :, -1] if top else model(x))
    return torch.inference_mode()(lambda: model.forward_level(x) if top else model.forward_state(x))


def _step(ours: bool, size: str, checkpointing: bool, device: str) -> Call:
    """The denoising step of glom-pytorch's README: forward and backward from the top level after iteration 7.

    Compared are the gradients of what embeds the patches, at the very bottom.
    """
    model, x = _model(ours, size, device).train(), images(2, device)
    torch.manual_seed(1)
    decoder = nn.Linear(SIZES[size][0], PATCH * PATCH * 3).to(device)
    if ours:
        model.set_grad_checkpointing(checkpointing)

    def step() -> torch.Tensor:
        model.zero_grad()
        top = model.forward_level(x, iters=7) if ours else model(x, return_all=True)[7, :, :, -1]
        decoder(top).square().mean().backward()
        if ours:
            return SCALE * model.patch_embed.proj.weight.grad.permute(0, 2, 3, 1).flatten(1)
        return SCALE * model.image_to_tokens[1].weight.grad

    return step


def _case(size: str, name: str, words: str, other: str, make: Callable[..., Call], option: bool = False) -> Case:
    implementations = {
        OURS: Implementation(f'glom_{size}, accelerated, {words}', partial(make, True, size, option)),
        ORIGINAL: Implementation(
            f'{ORIGINAL} with the same weights{other}', partial(make, False, size, option), package='glom_pytorch'
        ),
    }
    return Case(f'glom/{size}/{name}', implementations, 1e-5, memory=size == 'base')


FOUR, TWO = 'batch 4 at 224 × 224', 'batch 2 at 224 × 224'
TOP = f'the top level after 12 iterations (what its classifier reads), {FOUR}'
CHECKPOINTED = f'{STEP}, with gradient checkpointing, {TWO}'
CASES: List[Case] = []
for _size, _count in (('tiny', 10), ('base', 12)):
    CASES += [
        _case(_size, 'inference', f'all levels after {_count} iterations, {FOUR}', '', _inference),
        _case(_size, 'training-step', f'{STEP}, {TWO}', f', which computes all {_count} iterations', _step),
    ]
CASES += [
    _case('base', 'inference/top-level', TOP, ', which computes all levels', _inference, True),
    _case('base', 'training-step/checkpointed', CHECKPOINTED, ', which has none', _step, True),
]
