"""The operations against PyTorch's routes to the same result: kernels on a GPU, and what grows with what anywhere."""

import math
import os
import unittest.mock
from functools import partial
from typing import Any, Callable, Dict, List, Sequence

import timm
import torch

import timm_extra  # noqa: F401
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels._cases import Route, randn
from timm_extra_kernels._dispatch import tensors
from timm_extra_kernels._spec import SPECS, OpSpec

from ..case import OURS, Case, Implementation, Ready
from ..peers import PEERS
from ..roofline import Work

# Of the largest value, see `relative`: single results agree to several roundings (2⁻²⁴ or 2⁻⁹) of sums that are made
# in another order, and of the scores in front of an exponential. The gates of kernels/tests are the tight ones.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
SAMPLED = 2**20  # values of a tensor that are compared
GPU_BATCHES = 8  # times the batch of the sweeps, to keep a GPU busy


def _shape(spec: OpSpec, sizes: OpCase, dtype: torch.dtype) -> torch.Size:
    return _first(spec.operator(*spec.inputs(sizes, dtype, torch.device('meta')))).shape


def counted(spec: OpSpec, sizes: OpCase, dtype: torch.dtype, step: bool = False) -> Work:
    """Work that no way to compute an operation can do without, by the rules of `roofline.RULES`."""
    args = spec.inputs(sizes, dtype, torch.device('meta'))
    read = sum(t.nbytes for t in tensors(args))
    gradients = sum(t.nbytes for t in tensors(args) if t.is_floating_point())
    written = _first(spec.operator(*args)).numel() * dtype.itemsize
    flops, special = map(float, spec.work(args))
    if step:
        return Work(2.0 * read + 2 * written + gradients, 3 * flops, 2 * special)
    return Work(float(read + written), flops, special)


def relative(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is compared: each result over its largest value, and the logarithm of that, as sizes differ by orders."""
    compared = []
    for part in parts:
        flat = part.detach().flatten()
        step = max(1, flat.numel() // SAMPLED)
        while math.gcd(step, part.shape[-1]) > 1:  # so that all channels are met
            step += 1
        flat = flat[::step].double()
        largest = flat.abs().amax()
        compared += [flat / largest, largest.log()[None]]
    return torch.cat(compared)


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, (tuple, list)) else out


def _routes(spec: OpSpec) -> Dict[str, Route]:
    """All ways to compute an operation, by name."""
    naive = spec.naive.forward
    return {
        OURS: Route(spec.name, spec.operator),
        'definition': Route('its definition in eager PyTorch', naive),
        'compile': Route('its definition under torch.compile', naive),
        **spec.benchmark.routes,
        **spec.benchmark.forward_routes,
        **_peers(spec),
    }


def _peers(spec: OpSpec) -> Dict[str, Route]:
    """Other libraries in the place of an operation that is attention."""
    attention = spec.benchmark.attention
    return {name: peer.route(attention) for name, peer in PEERS.items()} if attention else {}


def _implementation(spec: OpSpec, route: str, make: Callable) -> Implementation:
    peer = PEERS.get(route)
    return Implementation(_routes(spec)[route].words, make, package=peer.package if peer else '', peer=peer is not None)


def _make(spec: OpSpec, sizes: OpCase, dtype: torch.dtype, step: bool, route: str, device: str) -> Ready:
    """One route of an operation, forward without gradients or with those of all inputs."""
    way = _routes(spec)[route]
    args, function = way.prepare(*spec.inputs(sizes, dtype, torch.device(device))), way.function
    if route == 'compile':
        torch.compiler.reset()  # past a few sizes of one function it would run eagerly, without a word
        function = torch.compile(function, dynamic=False)
    leaves = [t.requires_grad_(step) for t in tensors(args) if t.is_floating_point()]
    # values at random: with a constant one, normalised tokens have no gradient
    grad = randn(_shape(spec, sizes, dtype), dtype, torch.device(device)) if step else None

    def once() -> List[torch.Tensor]:
        with torch.set_grad_enabled(step):
            out = _first(function(*args)).to(dtype)
            return [out, *torch.autograd.grad(out, leaves, grad)] if step else [out]

    def checked() -> torch.Tensor:
        return relative([part for i, part in enumerate(once()) if i not in spec.benchmark.rounding])

    return Ready(lambda: once()[0], checked)


def _case(
    name: str, words: str, spec: OpSpec, sizes: OpCase, dtype: torch.dtype, routes: Sequence[str], **kwargs: Any
) -> Case:
    """A case of an operation; `kwargs` as `Case` has them, and `step`."""
    step = kwargs.pop('step', False)
    make = partial(partial, _make, spec, sizes, dtype, step)
    implementations = {OURS: Implementation(f'{spec.name}, {words}, {str(dtype).split(".")[1]}', make(OURS))}
    implementations |= {route: _implementation(spec, route, make(route)) for route in routes}
    return Case(name, implementations, TOLERANCE[dtype], work=counted(spec, sizes, dtype, step), **kwargs)


def _kernel_cases(spec: OpSpec) -> List[Case]:
    """The kernels at the sizes of models."""
    about = spec.benchmark
    cases = []
    for size in about.sizes:
        for what in ('forward', 'step'):
            routes = ['definition', 'compile', *about.routes, *_peers(spec)]
            if what == 'forward':  # in a step the gradients would be others
                routes += [name for name, route in about.forward_routes.items() if route.applies(size.sizes)]
            name = f'kernels/{spec.name}/{size.name.replace(",", "").replace(" ", "-")}/{what}'
            words = size.name + (', forward and backward' if what == 'step' else '')
            more = dict(step=what == 'step', gpu=True, large=True)
            cases.append(_case(name, words, spec, size, torch.bfloat16, routes, **more))
    if about.memory:
        name, words = f'kernels/{spec.name}/{about.memory.name}/memory', _described(about.memory.sizes)
        more = dict(isolated=True, gpu=True, large=True)
        routes = ['definition', *about.routes]
        cases.append(_case(name, words, spec, about.memory, torch.bfloat16, routes, **more))
    return cases


def _sweeps(spec: OpSpec) -> List[Case]:
    """Cases over every axis, in float32 anywhere and in bfloat16 on a GPU, and one at the size of a model."""
    sweep, routes = spec.benchmark.sweep, ['definition', *spec.benchmark.routes]
    cases = []
    for suffix, dtype, batches in (('', torch.float32, 1), ('-bfloat16', torch.bfloat16, GPU_BATCHES)):
        for axis, values in sweep.axes.items():
            for value, changed in values.items():
                sizes = {**sweep.held, **changed, 'B': batches * sweep.held['B']}
                name = f'ops/{spec.name}/{axis.lower()}{suffix}/{value}'
                more = dict(axis=(axis, value), gpu=dtype == torch.bfloat16, large=value == max(values))
                cases.append(_case(name, _described(sizes), spec, OpCase(name, sizes), dtype, routes, **more))
    name, routes = f'ops/{spec.name}/model', [*routes, 'compile']
    model = OpCase(name, sweep.model)
    return [*cases, _case(name, _described(sweep.model), spec, model, torch.float32, routes, large=True)]


def _described(sizes: Dict[str, Any]) -> str:
    values = {name: '×'.join(map(str, value)) if isinstance(value, tuple) else value for name, value in sizes.items()}
    return ' '.join(f'{name}={value}' for name, value in values.items())


def _model(name: str, fused: bool, plain: Dict[str, Any], device: str) -> Ready:
    """A model in bfloat16 at batch 64 with its kernels, or in eager PyTorch without them."""
    torch.manual_seed(0)
    model = timm.create_model(name, **({} if fused else plain)).to(device, torch.bfloat16).eval()
    head = model.get_classifier().weight  # where it starts at zero all models agree
    head.data.copy_(0.02 * randn(head.shape, torch.bfloat16, torch.device(device)))
    x = randn((64, 3, 224, 224), torch.bfloat16, torch.device(device))

    def call() -> torch.Tensor:
        with unittest.mock.patch.dict(os.environ, TIMM_EXTRA_FUSED=str(int(fused))), torch.no_grad():
            return model(x)

    return Ready(call, lambda: relative([call()]))


def _model_case(name: str, plain: Dict[str, Any]) -> Case:
    words = 'itself in eager PyTorch' + (', plain attention' if plain else '')
    implementations = {
        OURS: Implementation(f'{name} with its kernels, bfloat16, batch 64', partial(_model, name, True, plain)),
        'eager': Implementation(words, partial(_model, name, False, plain)),
    }
    tolerance = TOLERANCE[torch.bfloat16]
    return Case(f'kernels/models/{name}/inference', implementations, tolerance, large=True, gpu=True)


CASES: List[Case] = [
    *(case for spec in SPECS for case in _kernel_cases(spec)),
    _model_case('ceit_small', {}),
    _model_case('perceiver_base', dict(cross_route='plain')),
    *(case for spec in SPECS if spec.benchmark.sweep for case in _sweeps(spec)),
]
