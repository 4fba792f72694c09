"""Perceiver and Perceiver IO against transformers, perceiver-pytorch and themselves with plain attention."""

from functools import lru_cache, partial
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import timm
import torch
from torch import nn

from timm_extra.models import PerceiverIO

from ..case import OURS, Call, Case, Implementation

TOLERANCE = 2e-4  # of values from 0.5 to 27 (root mean square), gradients from 0.1 to 1.7; rounding makes up to 2.5e-5
LATENTS = 100.0  # brings the gradient of a latent to that of a bias, which reaches all inputs
SIZES = (224, 448, 896, 1792, 3584)
HF = 'transformers'
FOURIER = "transformers' Fourier classifier with the same weights"
STEP = 'forward and backward'
PLAIN = 'itself with plain attention: tokens, keys and values in full'
SMALL = (('num_latents', 256), ('d_latents', 512), ('num_blocks', 4))  # perceiver_io_small in transformers' words


class Network(NamedTuple):
    """A model, and what implementations name differently.

    Attributes:
        model: The model.
        logits: Images (1, 3, height, width) to logits.
        latents: Its latents.
        norm_bias: Bias of the norm of the inputs, in the cross-attend with the last set of weights.
    """

    model: nn.Module
    logits: Callable[[torch.Tensor], torch.Tensor]
    latents: nn.Parameter
    norm_bias: nn.Parameter


Build = Callable[[str], Network]
Config = Tuple[Tuple[str, int], ...]


@lru_cache(maxsize=2)  # the two of a case, which the next one may measure too
def _built(make: Callable[..., Network], *args: Any) -> Network:
    return make(*args)


def _images(device: str, size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def _ours(model: nn.Module) -> Network:
    return Network(model, model, model.latents, model.cross_attends[-1].attn.norm_kv.bias)


def _transformers(name: str, config: Config, device: str) -> Network:
    """transformers' classifier; its name is that of ours with the same stem."""
    from ..peers.perceiver import transformers_classifier

    model = transformers_classifier(name, **dict(config)).to(device)
    norm = model.perceiver.encoder.cross_attention.attention.self.layernorm2
    return Network(model, lambda x: model(x).logits, model.perceiver.embeddings.latents, norm.bias)


def _with_its_weights(ours: str, name: str, config: Config, device: str) -> Network:
    """Our model with the weights of transformers' classifier."""
    from ..peers.perceiver import with_weights_of

    other = _built(_transformers, name, config, device).model
    return _ours(with_weights_of(other, ours, compat='hf').to(device))


def _random(name: str, route: Optional[str], device: str) -> Network:
    """Our model with random weights: as initialised, it returns zeros and hardly sees its inputs."""
    from ..peers.perceiver import randomize

    torch.manual_seed(0)
    return _ours(randomize(timm.create_model(name, cross_route=route)).eval().to(device))


def _perceiver_pytorch() -> nn.Module:
    """perceiver-pytorch's Perceiver with the numbers of the paper's ImageNet model."""
    from perceiver_pytorch import Perceiver

    from ..peers.perceiver import randomize

    torch.manual_seed(0)
    model = Perceiver(
        num_freq_bands=64,
        max_freq=224.0,
        depth=8,
        num_latents=512,
        latent_dim=1024,
        cross_heads=1,
        latent_heads=8,
        cross_dim_head=261,
        latent_dim_head=128,
        weight_tie_layers=True,
        self_per_cross_attn=6,
    )
    return randomize(model).eval()


def _lucidrains(ours: bool, device: str) -> Network:
    """perceiver-pytorch's Perceiver, or ours with its weights."""
    if ours:
        other = _built(_lucidrains, False, device).model
        given = dict(unique_blocks=2, mlp_ratio=4, pretrained_cfg_overlay=dict(state_dict=other.state_dict()))
        model = timm.create_model('perceiver_base', pretrained=True, compat='lucidrains', **given)
        return _ours(model.eval().to(device))
    other = _perceiver_pytorch().to(device)
    bias = other.layers[-1].cross_attn.norm_context.bias
    return Network(other, lambda x: other(x.movedim(1, -1)), other.latents, bias)  # channels last there


def _inference(build: Build, size: int, device: str) -> Call:
    network, x = build(device), _images(device, size)
    network.model.eval()
    return torch.inference_mode()(lambda: network.logits(x))


def _step(build: Build, scale: float, device: str) -> Call:
    """Forward in training mode, without dropout, and backward.

    Compared are gradients of the latents and of a bias that all keys and values depend on: they pass through queries,
    keys, values and all blocks. The bias's is sorted, as implementations order the channels of positions differently.

    Args:
        build: Makes the network.
        scale: Of the loss, so that these gradients are of order one.
        device: 'cpu' or 'cuda'.
    """
    network, x = build(device), _images(device, 224)
    network.model.train()

    def call() -> torch.Tensor:
        network.model.zero_grad()
        (scale * network.logits(x).square().mean()).backward()
        return torch.cat([LATENTS * network.latents.grad.flatten(), network.norm_bias.grad.sort().values])

    return call


def _parts(model: nn.Module) -> Tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]:
    """Images to what the cross-attend takes, and that to the latents after it."""
    if isinstance(model, PerceiverIO):
        return model.stem, lambda prepared: model.cross_attends[0](model.latents[None], prepared[0])
    inner = model.perceiver
    return (
        lambda x: inner.input_preprocessor(x)[0],
        lambda tokens: inner.encoder.cross_attention(inner.embeddings(1), inputs=tokens)[0],
    )


def _image_to_latents(build: Build, size: int, device: str) -> Call:
    prepare, attend = _parts(build(device).model)
    x = _images(device, size)
    return torch.inference_mode()(lambda: attend(prepare(x)))


def _cross_attend(build: Build, device: str) -> Call:
    prepare, attend = _parts(build(device).model)
    with torch.inference_mode():
        prepared = prepare(_images(device, 224))
    return torch.inference_mode()(lambda: attend(prepared))


def _pair(
    name: str,
    words: str,
    other: str,
    original: str,
    run: Callable[..., Call],
    pair: List[Build],
    *args: Any,
    **kwargs: Any,
) -> Case:
    """A case of ours and another; `pair` builds both networks, `run` takes one and `args`."""
    makes = [partial(run, build, *args) for build in pair]
    package = '' if other == 'plain' else other.replace('-', '_')
    implementations = {
        OURS: Implementation(words, makes[0]),
        other: Implementation(original, makes[1], package=package),
    }
    return Case(f'perceiver/{name}', implementations, TOLERANCE, **kwargs)


def _io(ours: str, name: str = '', config: Config = ()) -> List[Build]:
    """Our model with transformers' weights, and transformers' by the name of ours that has its stem."""
    name = name or ours
    return [partial(_built, _with_its_weights, ours, name, config), partial(_built, _transformers, name, config)]


def _attentions(name: str) -> List[Build]:
    """Our model with the route of its choice, and with plain attention."""
    return [partial(_built, _random, name, route) for route in (None, 'plain')]


IO_BASE = _io('perceiver_io_base')


def _against_transformers() -> List[Case]:
    layer = 'cross-attend of perceiver_io_base at 224 × 224: attention and feed-forward'
    same = "the same layer of transformers' Fourier classifier, its tokens prepared before"
    cases = []
    for size, pair, other in (
        ('base', IO_BASE, FOURIER),
        ('base_learned', _io('perceiver_io_base_learned'), FOURIER.replace('Fourier', 'learned')),
        ('base_conv', _io('perceiver_io_base_conv'), FOURIER.replace('Fourier', 'convolutional')),
        ('small', _io('perceiver_io_small', 'perceiver_io_base', SMALL), f'{FOURIER} and numbers'),
    ):
        words, memory = f"perceiver_io_{size} (compat='hf'), batch 1 at 224 × 224", size != 'small'
        cases.append(_pair(f'io_{size}/inference', words, HF, other, _inference, pair, 224, memory=memory))
        if size in ('base', 'small'):
            words = f'{words}, {STEP}'
            cases.append(_pair(f'io_{size}/training-step', words, HF, other, _step, pair, 100.0, memory=memory))
        if size == 'base':
            cases.append(_pair('io_base/cross-attend', layer, HF, same, _cross_attend, pair, memory=True))
    return cases


def _against_plain(size: str) -> List[Case]:
    pair, words = _attentions(f'perceiver_{size}'), f'perceiver_{size}, batch 1 at 224 × 224'
    memory = size == 'base'
    return [
        _pair(f'{size}/inference', words, 'plain', PLAIN, _inference, pair, 224, memory=memory),
        _pair(f'{size}/training-step', f'{words}, {STEP}', 'plain', PLAIN, _step, pair, 1.0, memory=memory),
    ]


def _against_perceiver_pytorch() -> List[Case]:
    pair, other = [partial(_built, _lucidrains, ours) for ours in (True, False)], 'perceiver-pytorch'
    words = "perceiver_base with compat='lucidrains', mlp_ratio=4 and unique_blocks=2, batch 1 at 224 × 224"
    its = "its Perceiver with the same weights: the paper's numbers with gated feed-forwards four times as wide"
    return [
        _pair('lucidrains/inference', words, other, its, _inference, pair, 224, memory=True),
        _pair('lucidrains/training-step', f'{words}, {STEP}', other, its, _step, pair, 1000.0, memory=True),
    ]


def _over_sizes() -> List[Case]:
    """Times and memory over the size of the image; from some size on transformers runs out of memory."""
    layers = "input preprocessor and cross-attend of transformers' Fourier classifier, with the same weights"
    cases = []
    for size in (*SIZES, 4096):
        at, where = f'batch 1 at {size} × {size}', dict(axis=('pixels', size * size), isolated=True, large=size > 224)
        if size in SIZES:
            words, name = f'stem and cross-attend of perceiver_io_base, {at}', f'image-to-latents/{size}'
            cases.append(_pair(name, words, HF, layers, _image_to_latents, IO_BASE, size, **where))
        words, name = f"perceiver_io_base (compat='hf'), {at}", f'resolution/{size}'
        cases.append(_pair(name, words, HF, FOURIER, _inference, IO_BASE, size, **where))
    words, pair = 'perceiver_base, batch 1 at 4096 × 4096', _attentions('perceiver_base')
    return [*cases, _pair('base/4096', words, 'plain', PLAIN, _inference, pair, 4096, isolated=True, large=True)]


CASES: List[Case] = [
    *_against_transformers(),
    *_against_plain('base'),
    *_against_plain('small'),
    *_against_perceiver_pytorch(),
    *_over_sizes(),
]
