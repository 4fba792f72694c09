"""Perceiver and Perceiver IO against transformers, perceiver-pytorch and themselves with plain attention."""

from functools import lru_cache, partial
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import timm
import torch
from torch import nn

import timm_extra
from tests.reference import perceiver as reference
from timm_extra.models import PerceiverIO

from ..case import OURS, Call, Case, Implementation, images

TOLERANCE = 2e-4  # of values from 0.5 to 27 (root mean square), gradients from 0.1 to 1.7; rounding makes up to 2.5e-5
LATENTS = 100.0  # brings the gradient of a latent to that of a bias, which reaches all inputs
SIZES = (224, 448, 896, 1792, 3584, 4096)
HF = 'transformers'
FOURIER = "transformers' Fourier classifier with the same weights"
PLAIN = 'itself with plain attention: tokens, keys and values in full'
SMALL = (('num_latents', 256), ('d_latents', 512), ('num_blocks', 4))  # perceiver_io_small in transformers' words


class Network(NamedTuple):
    """A model, and what implementations name differently."""

    model: nn.Module
    logits: Callable[[torch.Tensor], torch.Tensor]  # of images (1, 3, height, width)
    latents: nn.Parameter
    norm_bias: nn.Parameter  # of the norm of the inputs, in the cross-attend with the last set of weights


Build = Callable[[str], Network]
Config = Tuple[Tuple[str, int], ...]
Words = Tuple[str, str]  # for ours and the other


@lru_cache(maxsize=2)  # the two of a case, which the next one may measure too
def _built(make: Callable[..., Network], *args: Any) -> Network:
    return make(*args)


def _ours(model: nn.Module) -> Network:
    timm_extra.accelerate(model)
    return Network(model, model, model.latents, model.cross_attends[-1].attn.norm_kv.bias)


def _transformers(name: str, config: Config, device: str) -> Network:
    """transformers' classifier; its name is that of ours with the same stem."""
    model = reference.transformers_classifier(name, **dict(config)).to(device)
    norm = model.perceiver.encoder.cross_attention.attention.self.layernorm2
    return Network(model, lambda x: model(x).logits, model.perceiver.embeddings.latents, norm.bias)


def _with_its_weights(ours: str, name: str, config: Config, device: str) -> Network:
    """Our model with the weights of transformers' classifier."""
    other = _built(_transformers, name, config, device).model
    return _ours(reference.with_weights_of(other, ours, compat='hf').to(device))


def _random(name: str, route: Optional[str], device: str) -> Network:
    """Our model with random weights: as initialised, it returns zeros and hardly sees its inputs."""
    torch.manual_seed(0)
    return _ours(reference.randomize(timm.create_model(name, cross_route=route)).eval().to(device))


def _lucidrains(ours: bool, device: str) -> Network:
    """perceiver-pytorch's Perceiver with the numbers of the paper's ImageNet model, or ours with its weights."""
    from perceiver_pytorch import Perceiver

    if ours:
        other = _built(_lucidrains, False, device).model
        given = dict(unique_blocks=2, mlp_ratio=4, pretrained_cfg_overlay=dict(state_dict=other.state_dict()))
        model = timm.create_model('perceiver_base', pretrained=True, compat='lucidrains', **given)
        return _ours(model.eval().to(device))
    torch.manual_seed(0)
    pixels = dict(num_freq_bands=64, max_freq=224.0)
    latents = dict(depth=8, num_latents=512, latent_dim=1024, weight_tie_layers=True, self_per_cross_attn=6)
    heads = dict(cross_heads=1, latent_heads=8, cross_dim_head=261, latent_dim_head=128)
    other = reference.randomize(Perceiver(**pixels, **latents, **heads)).eval().to(device)
    bias = other.layers[-1].cross_attn.norm_context.bias
    return Network(other, lambda x: other(x.movedim(1, -1)), other.latents, bias)  # channels last there


def _inference(size: int, build: Build, device: str) -> Call:
    network, x = build(device), images(1, device, size)
    network.model.eval()
    return torch.inference_mode()(lambda: network.logits(x))


def _step(scale: float, build: Build, device: str) -> Call:
    """Forward in training mode, without dropout, and backward; `scale` of the loss makes gradients of order one.

    Compared are gradients of the latents and of a bias that all keys and values depend on: they pass through queries,
    keys, values and all blocks. The bias's is sorted, as implementations order the channels of positions differently.
    """
    network, x = build(device), images(1, device)
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
    attend = inner.encoder.cross_attention
    return lambda x: inner.input_preprocessor(x)[0], lambda tokens: attend(inner.embeddings(1), inputs=tokens)[0]


def _image_to_latents(size: int, build: Build, device: str) -> Call:
    (prepare, attend), x = _parts(build(device).model.eval()), images(1, device, size)
    return torch.inference_mode()(lambda: attend(prepare(x)))


def _cross_attend(build: Build, device: str) -> Call:
    prepare, attend = _parts(build(device).model.eval())
    with torch.inference_mode():
        prepared = prepare(images(1, device))
    return torch.inference_mode()(lambda: attend(prepared))


def _case(name: str, other: str, words: Words, run: Callable[..., Call], pair: List[Build], **more: Any) -> Case:
    """A case of ours and another; `words` and `pair` are of both, `run` takes what builds a network."""
    package = '' if other == 'plain' else other.replace('-', '_')
    ours, original = (partial(run, build) for build in pair)
    ours = Implementation(f'{words[0]}, accelerated', ours)
    implementations = {OURS: ours, other: Implementation(words[1], original, package=package)}
    return Case(f'perceiver/{name}', implementations, TOLERANCE, **more)


def _model(name: str, other: str, words: Words, pair: List[Build], scale: float = 0, memory: bool = True) -> List[Case]:
    """Cases of inference and, where the loss has a scale, of a training step."""
    ours, original = f'{words[0]}, batch 1 at 224 × 224', words[1]
    cases = [_case(f'{name}/inference', other, (ours, original), partial(_inference, 224), pair, memory=memory)]
    if scale:
        words = f'{ours}, forward and backward', original
        cases.append(_case(f'{name}/training-step', other, words, partial(_step, scale), pair, memory=memory))
    return cases


def _over_sizes() -> List[Case]:
    """Times and memory over the size of the image; from some size on transformers runs out of memory."""
    layers = 'stem and cross-attend of perceiver_io_base', f'the same layers of {FOURIER}'
    cases = []
    for size in SIZES:
        where = dict(axis=('pixels', size * size), isolated=True, large=size > 224)
        for name, words, run in (
            ('image-to-latents', layers, _image_to_latents),
            ('resolution', (f'perceiver_io_base{SAME}', FOURIER), _inference),
        ):
            words = f'{words[0]}, batch 1 at {size} × {size}', words[1]
            cases.append(_case(f'{name}/{size}', HF, words, partial(run, size), IO_BASE, **where))
    return cases


def _io(ours: str, name: str = '', config: Config = ()) -> List[Build]:
    """Our model with transformers' weights, and transformers' by the name of ours that has its stem."""
    name = name or ours
    return [partial(_built, _with_its_weights, ours, name, config), partial(_built, _transformers, name, config)]


def _attentions(name: str) -> List[Build]:
    """Our model with the route of its choice, and with plain attention."""
    return [partial(_built, _random, name, route) for route in (None, 'plain')]


SAME = " (compat='hf')"
IO_BASE = _io('perceiver_io_base')
LEARNED, CONV = (FOURIER.replace('Fourier', kind) for kind in ('learned', 'convolutional'))
LAYER = 'cross-attend of perceiver_io_base at 224 × 224: attention and feed-forward', f'the same layer of {FOURIER}'
LUCIDRAINS = (
    "perceiver_base with compat='lucidrains', mlp_ratio=4 and unique_blocks=2",
    "its Perceiver with the same weights: the paper's numbers with gated feed-forwards four times as wide",
)
GATED = [partial(_built, _lucidrains, ours) for ours in (True, False)]
AT_4096 = 'perceiver_base, batch 1 at 4096 × 4096', PLAIN
BASE = _attentions('perceiver_base')
CASES: List[Case] = [
    *_model('io_base', HF, (f'perceiver_io_base{SAME}', FOURIER), IO_BASE, 100.0),
    _case('io_base/cross-attend', HF, LAYER, _cross_attend, IO_BASE, memory=True),
    *_model('io_base_learned', HF, (f'perceiver_io_base_learned{SAME}', LEARNED), _io('perceiver_io_base_learned')),
    *_model('io_base_conv', HF, (f'perceiver_io_base_conv{SAME}', CONV), _io('perceiver_io_base_conv')),
    *_model(
        'io_small',
        HF,
        (f'perceiver_io_small{SAME}', f'{FOURIER} and numbers'),
        _io('perceiver_io_small', 'perceiver_io_base', SMALL),
        100.0,
        memory=False,
    ),
    *_model('base', 'plain', ('perceiver_base', PLAIN), BASE, 1.0),
    *_model('small', 'plain', ('perceiver_small', PLAIN), _attentions('perceiver_small'), 1.0, memory=False),
    *_model('lucidrains', 'perceiver-pytorch', LUCIDRAINS, GATED, 1000.0),
    *_over_sizes(),
    _case('base/4096', 'plain', AT_4096, partial(_inference, 4096), BASE, isolated=True, large=True),
]
