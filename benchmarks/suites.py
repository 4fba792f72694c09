"""The registry of benchmark cases. A new one is a function here with the `case` decorator."""

from typing import Callable, List

import timm
import torch

import timm_extra  # noqa: F401

from .harness import Case, Pair
from .peers.ceit import OfficialCeiT, randomize

CASES: List[Case] = []


def case(name: str, *, ours: str, other: str, atol: float) -> Callable:
    """Register a function `build(device) -> Pair` as a case."""

    def register(build: Callable[[str], Pair]) -> Callable[[str], Pair]:
        CASES.append(Case(name, ours, other, build, atol))
        return build

    return register


def _ceit_small_pair(device: str, fuse: bool) -> Pair:
    """CeiT-S with equal random weights on both sides, batch 4 at 224 × 224, in inference mode."""
    other = randomize(OfficialCeiT(dim=384, heads=6))
    ours = timm.create_model(
        'ceit_small', pretrained=True, pretrained_cfg_overlay=dict(state_dict=other.state_dict())
    ).eval()
    if fuse:
        ours.fuse()
    ours, other = ours.to(device), other.to(device)
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)

    def inference(model: torch.nn.Module) -> Callable[[], torch.Tensor]:
        @torch.inference_mode()
        def call() -> torch.Tensor:
            return model(x)

        return call

    return Pair(inference(ours), inference(other))


PLAIN_CEIT = (
    "the paper's modules in plain PyTorch: 1×1 convolutions on NCHW maps with permutes, explicit attention "
    'matrices, unfused BatchNorm, all tokens in all blocks'
)


@case('ceit/small/inference/fused', ours='ceit_small after fuse()', other=PLAIN_CEIT, atol=1e-4)
def _(device: str) -> Pair:
    return _ceit_small_pair(device, fuse=True)


@case('ceit/small/inference', ours='ceit_small as created', other=PLAIN_CEIT, atol=1e-4)
def _(device: str) -> Pair:
    return _ceit_small_pair(device, fuse=False)
