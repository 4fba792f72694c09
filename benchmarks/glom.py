"""GLOM against glom-pytorch, with the same weights at the size of its README."""

import warnings
from functools import partial
from typing import Callable

import timm
import torch
from torch import nn

from .harness import Pair, Prepared

PATCH, DIM = 14, 512
SCALE = 1e5  # of gradients, to be of the size of one


def _model(side: str, device: str) -> nn.Module:
    """glom-pytorch's model, or ours with its weights: as it is initialised, but with longer outputs of its nets.

    As it is, what an image changes at the top is lost in rounding, and a wrong result would look right.
    """
    from glom_pytorch import Glom

    torch.manual_seed(0)
    model = Glom(dim=DIM, levels=6, image_size=224, patch_size=PATCH)
    with torch.no_grad():
        for net in (model.bottom_up.net, model.top_down.net):
            net[3].weight.mul_(7.0)
    if side == 'ours':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the classifier is not used
            model = timm.create_model(
                'glom_base',
                pretrained=True,
                compat='lucidrains',
                num_classes=0,
                pretrained_cfg_overlay=dict(state_dict=model.state_dict()),
            )
    return model.to(device)


def _images(count: int, device: str) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)


def _forward_pair(device: str, top: bool) -> Pair:
    """States after 12 iterations, of all levels or of the top one."""

    def make(side: str) -> Callable[[], torch.Tensor]:
        model, x = _model(side, device).eval(), _images(4, device)
        if side == 'other':
            return torch.inference_mode()(lambda: model(x)[:, :, -1] if top else model(x))
        return torch.inference_mode()(lambda: model.forward_level(x) if top else model.forward_state(x))

    return Pair(Prepared(partial(make, 'ours')), Prepared(partial(make, 'other')))


def _step_pair(device: str, checkpointing: bool) -> Pair:
    """The denoising step of glom-pytorch's README: forward and backward from the top level after iteration 7 of 12.

    Compared are the gradients of what embeds the patches, at the very bottom.
    """

    def make(side: str) -> Callable[[], torch.Tensor]:
        model, x = _model(side, device).train(), _images(2, device)
        torch.manual_seed(1)
        decoder = nn.Linear(DIM, PATCH * PATCH * 3).to(device)
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

    return Pair(Prepared(partial(make, 'ours')), Prepared(partial(make, 'other')))


def register(case: Callable[..., Callable]) -> None:
    """Add the cases to the registry."""
    peer, shared = 'glom-pytorch with the same weights', dict(atol=1e-5, memory=True)
    case(
        'glom/forward',
        ours='glom_base, all levels after 12 iterations, batch 4 at 224 × 224',
        other=peer,
        **shared,
    )(partial(_forward_pair, top=False))
    case(
        'glom/forward/top-level',
        ours='glom_base, the top level after 12 iterations (what its classifier reads), batch 4 at 224 × 224',
        other=f'{peer}, which computes all levels',
        **shared,
    )(partial(_forward_pair, top=True))
    case(
        'glom/training-step',
        ours='glom_base, forward and backward of a decoder on the top level after 7 iterations, batch 2 at 224 × 224',
        other=f'{peer}, which computes all 12 iterations',
        **shared,
    )(partial(_step_pair, checkpointing=False))
    case(
        'glom/training-step/checkpointed',
        ours='the same with gradient checkpointing',
        other=f'{peer}, which has none',
        **shared,
    )(partial(_step_pair, checkpointing=True))
