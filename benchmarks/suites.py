"""The registry of benchmark cases. A new one is a function here with the `case` decorator."""

from functools import partial
from typing import Any, Callable, Dict, List, Optional

import timm
import torch

import timm_extra  # noqa: F401

from . import glom, operations, selfsupervised
from .harness import Case, Pair, Prepared
from .peers.ceit import OfficialCeiT, randomize

CASES: List[Case] = []


def case(name: str, *, ours: str, other: str, atol: float, **kwargs: Any) -> Callable:
    """Register a function `build(device) -> Pair` as a case; further arguments as `Case` has them."""

    def register(build: Callable[[str], Pair]) -> Callable[[str], Pair]:
        CASES.append(Case(name, ours, other, build, atol, **kwargs))
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


def _images(device: str, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0)).to(device)


def _classifier(name: str, side: str, device: str) -> torch.nn.Module:
    """Our model or transformers', with the same weights."""
    from .peers.perceiver import classifier_pair

    return classifier_pair(name)[('ours', 'other').index(side)].to(device)


def _forward_pair(name: str, device: str, size: int = 224) -> Pair:
    """Whole forward passes at batch 1."""

    def make(side: str) -> Callable[[], torch.Tensor]:
        model, x = _classifier(name, side, device), _images(device, 1, 3, size, size)

        @torch.inference_mode()
        def call() -> torch.Tensor:
            out = model(x)
            return out if side == 'ours' else out.logits

        return call

    return Pair(Prepared(partial(make, 'ours')), Prepared(partial(make, 'other')))


@case(
    'perceiver/cross-attend/layer',
    ours='cross-attend of perceiver_io_base at 224 × 224: attention and feed-forward',
    other="the same layer of transformers' Fourier classifier, its tokens prepared before",
    atol=1e-3,
    memory=True,
)
def _(device: str) -> Pair:
    def make(side: str) -> Callable[[], torch.Tensor]:
        model, x = _classifier('perceiver_io_base', side, device), _images(device, 1, 3, 224, 224)
        with torch.inference_mode():
            if side == 'ours':
                content, axes, *_ = model.stem(x)
                return torch.inference_mode()(lambda: model.cross_attends[0](model.latents[None], content, axes))
            tokens = model.perceiver.input_preprocessor(x)[0]
            layer, latents = model.perceiver.encoder.cross_attention, model.perceiver.embeddings(1)
            return torch.inference_mode()(lambda: layer(latents, inputs=tokens)[0])

    return Pair(Prepared(partial(make, 'ours')), Prepared(partial(make, 'other')))


for _name, _label in (
    ('perceiver_io_base', 'Fourier'),
    ('perceiver_io_base_learned', 'learned'),
    ('perceiver_io_base_conv', 'convolutional'),
):
    case(
        f'perceiver/forward/{_name}',
        ours=f"{_name} (compat='hf'), batch 1 at 224 × 224",
        other=f"transformers' {_label} classifier with the same weights",
        atol=1e-3,
        memory=True,
    )(partial(_forward_pair, _name))


def _perceiver_base_pair(device: str, training: bool, size: int = 224) -> Pair:
    """perceiver_base with the route of its choice and with plain attention."""

    def make(route: Optional[str]) -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        model = timm.create_model('perceiver_base', cross_route=route).to(device).train(training)
        with torch.no_grad():
            model.head.weight.normal_(0, 1e-3)
        x = _images(device, 1, 3, size, size)
        if not training:
            return torch.inference_mode()(lambda: model(x))

        def step() -> torch.Tensor:
            model.zero_grad()
            model(x).square().sum().backward()
            return model.latents.grad

        return step

    return Pair(Prepared(partial(make, None)), Prepared(partial(make, 'plain')))


PLAIN_PERCEIVER = 'itself with plain attention: tokens, keys and values in full'


@case(
    'perceiver/base/forward', ours='perceiver_base, batch 1 at 224 × 224', other=PLAIN_PERCEIVER, atol=1e-3, memory=True
)
def _(device: str) -> Pair:
    return _perceiver_base_pair(device, training=False)


@case(
    'perceiver/base/training-step',
    ours='perceiver_base, batch 1 at 224 × 224: forward and backward',
    other=PLAIN_PERCEIVER,
    atol=1e-3,
    memory=True,
)
def _(device: str) -> Pair:
    return _perceiver_base_pair(device, training=True)


def _image_to_latents_pair(size: int, device: str) -> Pair:
    """From pixels to the latents after the cross-attend."""

    def make(side: str) -> Callable[[], torch.Tensor]:
        model, x = _classifier('perceiver_io_base', side, device), _images(device, 1, 3, size, size)

        @torch.inference_mode()
        def ours() -> torch.Tensor:
            content, axes, *_ = model.stem(x)
            return model.cross_attends[0](model.latents[None], content, axes)

        @torch.inference_mode()
        def other() -> torch.Tensor:
            tokens = model.perceiver.input_preprocessor(x)[0]
            return model.perceiver.encoder.cross_attention(model.perceiver.embeddings(1), inputs=tokens)[0]

        return ours if side == 'ours' else other

    return Pair(Prepared(partial(make, 'ours')), Prepared(partial(make, 'other')))


def _at_size(pair: Callable[..., Pair], size: int, **kwargs: Any) -> Callable[[str], Pair]:
    return lambda device: pair(device=device, size=size, **kwargs)


for _size in (224, 448, 896, 1792, 3584):
    _where: Dict[str, Any] = dict(atol=1e-2, alone=True, pixels=_size * _size)
    case(
        f'perceiver/image-to-latents/{_size}',
        ours=f'stem and cross-attend of perceiver_io_base, batch 1 at {_size} × {_size}',
        other="input preprocessor and cross-attend of transformers' Fourier classifier",
        **_where,
    )(_at_size(_image_to_latents_pair, _size))
for _size in (224, 448, 896, 1792, 3584):
    _where = dict(atol=1e-2, alone=True, pixels=_size * _size)
    case(
        f'perceiver/resolution/{_size}',
        ours=f'perceiver_io_base, whole forward at batch 1, {_size} × {_size}',
        other="transformers' Fourier classifier with the same weights",
        **_where,
    )(_at_size(_forward_pair, _size, name='perceiver_io_base'))

case(
    'perceiver/base/4096',
    ours='perceiver_base, whole forward at batch 1, 4096 × 4096',
    other=PLAIN_PERCEIVER,
    atol=1e-2,
    alone=True,
)(_at_size(_perceiver_base_pair, 4096, training=False))


glom.register(case)
operations.register(case)
selfsupervised.register(case)
