"""Optical flow by Perceiver IO against transformers, over the size of the frames."""

from functools import lru_cache, partial
from typing import Tuple

import torch
from torch import nn

import timm_extra
from tests.reference import perceiver as reference

from ..case import OURS, Call, Case, Implementation, Ready

TOLERANCE = 1e-3  # pixels, of flows of about half a pixel (root mean square)
HF = 'transformers'
PUBLISHED = (368, 496)
LARGER = ((736, 992), (1024, 1024), (2048, 1536))
Size = Tuple[int, int]


@lru_cache(maxsize=1)
def _transformers(size: Size) -> nn.Module:
    return reference.transformers_flow(size)


@lru_cache(maxsize=1)
def _ours(device: str) -> nn.Module:
    """Ours with the weights of transformers', which do not depend on the size of the frames."""
    model = reference.flow_with_weights_of(_transformers(PUBLISHED), compat='hf').to(device)
    return timm_extra.accelerate(model)


def _frames(size: Size, device: str) -> torch.Tensor:
    return torch.randn(1, 3, 2, *size, generator=torch.Generator().manual_seed(0)).to(device)


def _flow(size: Size, device: str) -> Call:
    model, frames = _ours(device), _frames(size, device)
    return torch.inference_mode()(lambda: model(frames))


def _its_flow(size: Size, device: str) -> Call:
    model, patches = _transformers(size).to(device), reference.neighbourhoods(_frames(size, device))
    return torch.inference_mode()(lambda: 20 * model(patches).logits.permute(0, 3, 1, 2))


def _its_larger_flow(size: Size, device: str) -> Ready:
    """Compared is ours in float64: over 736 × 992 positions its float32 is off by 0.003 pixels, ours by 1e-6."""
    exact = reference.flow_with_weights_of(_transformers(PUBLISHED), compat='hf').to(device, torch.float64)
    frames = _frames(size, device).double()
    return Ready(_its_flow(size, device), checked=torch.inference_mode()(lambda: exact(frames)))


def _decoder(size: Size, device: str) -> Call:
    model, frames = _ours(device), _frames(size, device)
    with torch.inference_mode():
        inputs, grid = model.stem(frames)
        z = model.forward_features(frames)
    return torch.inference_mode()(lambda: model._decode_grid(z, inputs, grid))


def _its_decoder(size: Size, device: str) -> Call:
    model = _transformers(size).to(device).perceiver
    with torch.inference_mode():
        patches = reference.neighbourhoods(_frames(size, device))
        tokens, z = model.input_preprocessor(patches)[0], model(patches).last_hidden_state
    return torch.inference_mode()(lambda: 20 * model.decoder(tokens.clone(), z).logits.permute(0, 3, 1, 2))


def _case(name: str, size: Size, words: Tuple[str, str], ours, other, **more) -> Case:
    where = f'batch 1 at {size[0]} × {size[1]}'
    implementations = {
        OURS: Implementation(f'{words[0]}, accelerated, {where}', partial(ours, size)),
        HF: Implementation(words[1], partial(other, size), package=HF),
    }
    return Case(f'flow/{name}', implementations, TOLERANCE, isolated=True, **more)


def _resolution(size: Size, words: Tuple[str, str], other) -> Case:
    h, w = size
    return _case(f'resolution/{h}x{w}', size, words, _flow, other, axis=('pixels', h * w), large=True)


MODELS = "perceiver_io_flow (compat='hf')", "transformers' PerceiverForOpticalFlow with the same weights"
LARGER_MODELS = MODELS[0], f'{MODELS[1]}; compared is ours in float64'
DECODERS = 'its decoder: attention, feed-forward, head', "transformers' decoder with the same weights"
CASES = [
    _case('decoder', PUBLISHED, DECODERS, _decoder, _its_decoder, large=True),
    _resolution(PUBLISHED, MODELS, _its_flow),
    *(_resolution(size, LARGER_MODELS, _its_larger_flow) for size in LARGER),
]
