"""GLOM against glom-pytorch, with the same weights; the base model at the size of its README."""

import warnings
from functools import partial
from typing import Callable, List, NamedTuple

import timm
import torch
from torch import nn

import timm_extra  # noqa: F401

from ..harness import Asked, Call, Case, Side

PATCH = 14
SCALE = 1e5  # of gradients, to be of the size of one
PEER = 'glom-pytorch'


class Size(NamedTuple):
    """A registered model in glom-pytorch's words."""

    dim: int
    levels: int


SIZES = {'tiny': Size(192, 5), 'base': Size(512, 6)}


def other_glom(size: str) -> nn.Module:
    """glom-pytorch's model as it is initialised, but with longer outputs of its nets.

    As it is, what an image changes at the top is lost in rounding, and a wrong result would look right.
    """
    from glom_pytorch import Glom

    torch.manual_seed(0)
    model = Glom(dim=SIZES[size].dim, levels=SIZES[size].levels, image_size=224, patch_size=PATCH)
    with torch.no_grad():
        for net in (model.bottom_up.net, model.top_down.net):
            net[3].weight.mul_(7.0)
    return model


def _model(side: str, size: str, device: str) -> nn.Module:
    """glom-pytorch's model, or ours with its weights."""
    model = other_glom(size)
    if side == 'ours':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the classifier is not used
            model = timm.create_model(
                f'glom_{size}',
                pretrained=True,
                compat='lucidrains',
                num_classes=0,
                pretrained_cfg_overlay=dict(state_dict=model.state_dict()),
            )
    return model.to(device)


def _images(count: int, device: str) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)


def _inference(device: str, *, side: str, size: str, top: bool) -> Call:
    """States after twice as many iterations as levels, of all levels or of the top one."""
    model, x = _model(side, size, device).eval(), _images(4, device)
    if side == 'other':
        return torch.inference_mode()(lambda: model(x)[:, :, -1] if top else model(x))
    return torch.inference_mode()(lambda: model.forward_level(x) if top else model.forward_state(x))


def _step(device: str, *, side: str, size: str, checkpointing: bool) -> Call:
    """The denoising step of glom-pytorch's README: forward and backward from the top level after iteration 7.

    Compared are the gradients of what embeds the patches, at the very bottom.
    """
    model, x = _model(side, size, device).train(), _images(2, device)
    torch.manual_seed(1)
    decoder = nn.Linear(SIZES[size].dim, PATCH * PATCH * 3).to(device)
    if side == 'ours':
        model.set_grad_checkpointing(checkpointing)

    def step() -> torch.Tensor:
        model.zero_grad()
        top = model.forward_level(x, iters=7) if side == 'ours' else model(x, return_all=True)[7, :, :, -1]
        decoder(top).square().mean().backward()
        if side == 'ours':
            return SCALE * model.patch_embed.proj.weight.grad.permute(0, 2, 3, 1).flatten(1)
        return SCALE * model.image_to_tokens[1].weight.grad

    return step


def _case(
    size: str, name: str, words: str, other: str, make: Callable[..., Call], *asked: Asked, **kwargs: bool
) -> Case:
    """A case of one size; what is asked is asked of the base model."""
    base = size == 'base'
    sides = [partial(make, side=side, size=size, **kwargs) for side in ('ours', 'other')]
    return Case(
        f'glom/{size}/{name}',
        Side(f'glom_{size}, {words}', sides[0]),
        {PEER: Side(f'{PEER} with the same weights{other}', sides[1], package='glom_pytorch')},
        atol=1e-5,
        memory=base,
        asked=asked if base else (),
    )


def _cases(size: str) -> List[Case]:
    iterations = 2 * SIZES[size].levels
    every, top = f'all levels after {iterations} iterations', f'the top level after {iterations} iterations'
    step = 'forward and backward of a decoder on the top level after 7 iterations'
    cases = [
        _case(
            size,
            'inference',
            f'{every}, batch 4 at 224 × 224',
            '',
            _inference,
            Asked('speed', 1.3, PEER),
            top=False,
        ),
        _case(
            size,
            'training-step',
            f'{step}, batch 2 at 224 × 224',
            f', which computes all {iterations} iterations',
            _step,
            Asked('speed', 1.9, PEER),
            checkpointing=False,
        ),
    ]
    if size == 'base':
        cases += [
            _case(
                size,
                'inference/top-level',
                f'{top} (what its classifier reads), batch 4 at 224 × 224',
                ', which computes all levels',
                _inference,
                top=True,
            ),
            _case(
                size,
                'training-step/checkpointed',
                f'{step}, with gradient checkpointing, batch 2 at 224 × 224',
                ', which has none',
                _step,
                Asked('memory', 3, PEER),
                checkpointing=True,
            ),
        ]
    return cases


CASES = [case for size in SIZES for case in _cases(size)]
