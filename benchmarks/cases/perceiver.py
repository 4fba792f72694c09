"""Perceiver and Perceiver IO against transformers, perceiver-pytorch and themselves with plain attention."""

from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import timm
import torch
from torch import nn

from timm_extra.models import PerceiverIO

from ..harness import Asked, Call, Case, Over, Side

ATOL = 2e-4  # of values from 0.5 to 27 (root mean square), gradients from 0.1 to 1.7; rounding makes up to 2.5e-5
LATENTS = 100.0  # brings the gradient of a latent to that of a bias, which reaches all inputs
SIZES = (224, 448, 896, 1792, 3584)
HF = 'transformers'
FOURIER = "transformers' Fourier classifier with the same weights"
STEP = 'forward and backward'
PLAIN = 'itself with plain attention: tokens, keys and values in full'
SMALL = dict(num_latents=256, d_latents=512, num_blocks=4)  # perceiver_io_small in transformers' words


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


def _images(device: str, size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def _ours(model: nn.Module) -> Network:
    return Network(model, model, model.latents, model.cross_attends[-1].attn.norm_kv.bias)


def _transformers(name: str, config: Dict[str, int], device: str) -> Network:
    """transformers' classifier; its name is that of ours with the same stem."""
    from ..peers.perceiver import transformers_classifier

    model = transformers_classifier(name, **config).to(device)
    norm = model.perceiver.encoder.cross_attention.attention.self.layernorm2
    return Network(model, lambda x: model(x).logits, model.perceiver.embeddings.latents, norm.bias)


def _with_its_weights(ours: str, name: str, config: Dict[str, int], device: str) -> Network:
    """Our model with the weights of transformers' classifier."""
    from ..peers.perceiver import transformers_classifier, with_weights_of

    return _ours(with_weights_of(transformers_classifier(name, **config), ours, compat='hf').to(device))


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


def _lucidrains(side: str, device: str) -> Network:
    """perceiver-pytorch's Perceiver, or ours with its weights."""
    other = _perceiver_pytorch()
    if side == 'ours':
        given = dict(unique_blocks=2, mlp_ratio=4, pretrained_cfg_overlay=dict(state_dict=other.state_dict()))
        model = timm.create_model('perceiver_base', pretrained=True, compat='lucidrains', **given)
        return _ours(model.eval().to(device))
    other = other.to(device)
    bias = other.layers[-1].cross_attn.norm_context.bias
    return Network(other, lambda x: other(x.movedim(1, -1)), other.latents, bias)  # channels last there


def _inference(build: Build, size: int, device: str) -> Call:
    network, x = build(device), _images(device, size)
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


def _pair(name: str, words: str, peer: str, other: str, makes: List[Callable[[str], Call]], **kwargs: Any) -> Case:
    """A case of ours and one peer; `makes` are those of the two."""
    own = peer == 'plain'
    peers = {peer: Side(other, makes[1], own=own, package='' if own else peer.replace('-', '_'))}
    return Case(f'perceiver/{name}', Side(words, makes[0]), peers, ATOL, **kwargs)


def _both(run: Callable[..., Call], builds: List[Build], *args: Any) -> List[Callable[[str], Call]]:
    return [partial(run, build, *args) for build in builds]


def _io(ours: str, name: str = '', **config: int) -> List[Build]:
    """Our model with transformers' weights, and transformers' by the name of ours that has its stem."""
    name = name or ours
    return [partial(_with_its_weights, ours, name, config), partial(_transformers, name, config)]


IO_BASE = _io('perceiver_io_base')


def _against_transformers() -> List[Case]:
    cases = []
    asked = {'base': (Asked('speed', 1.2, HF), Asked('memory', 5, HF)), 'base_learned': (Asked('speed', 1.3, HF),)}
    for size, builds, other in (
        ('base', IO_BASE, FOURIER),
        ('base_learned', _io('perceiver_io_base_learned'), FOURIER.replace('Fourier', 'learned')),
        ('base_conv', _io('perceiver_io_base_conv'), FOURIER.replace('Fourier', 'convolutional')),
        ('small', _io('perceiver_io_small', 'perceiver_io_base', **SMALL), f'{FOURIER} and numbers'),
    ):
        words = f"perceiver_io_{size} (compat='hf'), batch 1 at 224 × 224"
        name, memory = f'io_{size}', size != 'small'
        inference = _both(_inference, builds, 224)
        cases.append(_pair(f'{name}/inference', words, HF, other, inference, memory=memory, asked=asked.get(size, ())))
        if size in ('base', 'small'):
            step = _both(_step, builds, 100.0)
            cases.append(_pair(f'{name}/training-step', f'{words}, {STEP}', HF, other, step, memory=memory))
    layer = _pair(
        'io_base/cross-attend',
        'cross-attend of perceiver_io_base at 224 × 224: attention and feed-forward',
        HF,
        "the same layer of transformers' Fourier classifier, its tokens prepared before",
        _both(_cross_attend, IO_BASE),
        memory=True,
        asked=(Asked('speed', 5, HF), Asked('memory', 8, HF)),
    )
    return [*cases, layer]


def _routes(name: str) -> List[Build]:
    """Our model with the route of its choice, and with plain attention."""
    return [partial(_random, name, None), partial(_random, name, 'plain')]


def _against_plain(size: str) -> List[Case]:
    name, base = f'perceiver_{size}', size == 'base'
    builds, words = _routes(name), f'{name}, batch 1 at 224 × 224'
    asked = [(Asked('speed', speed, 'plain'),) if base else () for speed in (1.6, 1.4)]
    inference, step = _both(_inference, builds, 224), _both(_step, builds, 1.0)
    return [
        _pair(f'{size}/inference', words, 'plain', PLAIN, inference, memory=base, asked=asked[0]),
        _pair(f'{size}/training-step', f'{words}, {STEP}', 'plain', PLAIN, step, memory=base, asked=asked[1]),
    ]


def _against_perceiver_pytorch() -> List[Case]:
    builds = [partial(_lucidrains, 'ours'), partial(_lucidrains, 'other')]
    words = "perceiver_base with compat='lucidrains', mlp_ratio=4 and unique_blocks=2, batch 1 at 224 × 224"
    other = "its Perceiver with the same weights: the paper's numbers with gated feed-forwards four times as wide"
    inference, step = _both(_inference, builds, 224), _both(_step, builds, 1000.0)
    peer = 'perceiver-pytorch'
    return [
        _pair('lucidrains/inference', words, peer, other, inference, memory=True),
        _pair('lucidrains/training-step', f'{words}, {STEP}', peer, other, step, memory=True),
    ]


def _over_sizes() -> List[Case]:
    """Times and memory over the size of the image; from some size on transformers runs out of memory."""
    cases = []
    for size in (*SIZES, 4096):
        at, where = f'batch 1 at {size} × {size}', dict(over=Over('pixels', size * size), alone=True, large=size > 224)
        if size in SIZES:
            words = f'stem and cross-attend of perceiver_io_base, {at}'
            other = "input preprocessor and cross-attend of transformers' Fourier classifier, with the same weights"
            makes = _both(_image_to_latents, IO_BASE, size)
            asked = (Asked('slope', 1.05),) if size == SIZES[-1] else ()
            cases.append(_pair(f'image-to-latents/{size}', words, HF, other, makes, asked=asked, **where))
        words, makes = f"perceiver_io_base (compat='hf'), {at}", _both(_inference, IO_BASE, size)
        cases.append(_pair(f'resolution/{size}', words, HF, FOURIER, makes, **where))
    makes, asked = _both(_inference, _routes('perceiver_base'), 4096), (Asked('peak_gib', 24.0),)
    words = 'perceiver_base, batch 1 at 4096 × 4096'
    return [*cases, _pair('base/4096', words, 'plain', PLAIN, makes, alone=True, large=True, asked=asked)]


CASES: List[Case] = [
    *_against_transformers(),
    *_against_plain('base'),
    *_against_plain('small'),
    *_against_perceiver_pytorch(),
    *_over_sizes(),
]
