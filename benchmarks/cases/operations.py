"""The operations against PyTorch's routes to the same result: kernels on a GPU, and what grows with what anywhere."""

import math
import os
import time
import unittest.mock
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import timm
import torch

import timm_extra  # noqa: F401
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels._cases import Route, randn
from timm_extra_kernels._dispatch import tensors
from timm_extra_kernels._spec import SPECS, OpSpec

from ..harness import Asked, Case, Made, Over, Side
from ..roofline import Work

# Of the largest value, see `relative`: single results agree to several roundings (2⁻²⁴ or 2⁻⁹) of sums that are made
# in another order, and of the scores in front of an exponential. The gates of kernels/tests are the tight ones.
ATOL = {torch.float32: 1e-5, torch.bfloat16: 0.1}
GRAPH_CALLS = 20
GRAPH_SECONDS = 0.005  # longer calls hide their launches, and a graph would hold on to all memory they use
SAMPLED = 2**20  # values of a tensor that are compared
GPU_BATCHES = 8  # times the batch of the sweeps, to keep a GPU busy


def result_shape(spec: OpSpec, sizes: OpCase, dtype: torch.dtype) -> torch.Size:
    """Shape of an operation's result."""
    return _first(spec.operator(*spec.inputs(sizes, dtype, torch.device('meta')))).shape


def counted(spec: OpSpec, sizes: OpCase, dtype: torch.dtype, step: bool = False) -> Work:
    """Work that no way to compute an operation can do without, by the rules of `roofline.RULES`.

    Args:
        spec: The operation.
        sizes: Of its inputs.
        dtype: Of its inputs and its result.
        step: Count the backward pass too.
    """
    args = spec.inputs(sizes, dtype, torch.device('meta'))
    read = sum(t.nbytes for t in tensors(args))
    gradients = sum(t.nbytes for t in tensors(args) if t.is_floating_point())
    written = result_shape(spec, sizes, dtype).numel() * dtype.itemsize
    flops, special = map(float, spec.work(args))
    if step:
        return Work(2.0 * read + 2 * written + gradients, 3 * flops, 2 * special)
    return Work(float(read + written), flops, special)


def relative(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is compared of results: each over its largest value, and the logarithm of that.

    Results and gradients of one call differ in size by many orders, so that no absolute difference fits all.
    """
    compared = []
    for part in parts:
        flat = part.detach().flatten()
        flat = flat[:: _step_through(flat.numel(), part.shape[-1])].double()
        largest = flat.abs().amax()
        compared += [flat / largest, largest.log()[None]]
    return torch.cat(compared)


def _step_through(count: int, channels: int) -> int:
    """A step that leaves about `SAMPLED` values and meets all channels."""
    step = max(1, count // SAMPLED)
    while math.gcd(step, channels) > 1:
        step += 1
    return step


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, (tuple, list)) else out


def _routes(spec: OpSpec) -> Dict[str, Route]:
    """All ways to compute an operation, by name."""
    return {
        'ours': Route(spec.name, spec.operator),
        'eager': Route('its definition in eager PyTorch', spec.naive.forward),
        'definition': Route('its definition in eager PyTorch', spec.naive.forward),
        'compile': Route('its definition under torch.compile', spec.naive.forward),
        **spec.benchmark.routes,
        **spec.benchmark.forward_routes,
    }


def _ready(
    spec: OpSpec, sizes: OpCase, dtype: Optional[torch.dtype], name: str, device: str
) -> Tuple[Callable[..., Any], Sequence[Any]]:
    """Function and arguments of one route."""
    route = _routes(spec)[name]
    args = route.prepare(*spec.inputs(sizes, dtype, torch.device(device)))
    if name != 'compile':
        return route.function, args
    torch.compiler.reset()  # past a few sizes of one function it would run eagerly, without a word
    return torch.compile(route.function, dynamic=False), args


def _make(spec: OpSpec, sizes: OpCase, dtype: Optional[torch.dtype], route: str, step: bool, device: str) -> Made:
    """One route of an operation, forward without gradients or with those of all inputs."""
    function, args = _ready(spec, sizes, dtype, route, device)
    leaves = [t.requires_grad_(step) for t in tensors(args) if t.is_floating_point()]
    # values at random: with a constant one, normalised tokens have no gradient
    grad = randn(result_shape(spec, sizes, dtype), dtype, torch.device(device)) if step else None

    def once() -> List[torch.Tensor]:
        with torch.set_grad_enabled(step):
            out = _first(function(*args)).to(dtype)
            return [out, *torch.autograd.grad(out, leaves, grad)] if step else [out]

    def compared(parts: List[torch.Tensor]) -> torch.Tensor:
        return relative([part for i, part in enumerate(parts) if i not in spec.benchmark.rounding])

    return _made(once, compared, device)


def _made(
    once: Callable[[], List[torch.Tensor]], compared: Callable[[List[torch.Tensor]], torch.Tensor], device: str
) -> Made:
    """A call, as a CUDA graph of several where there is a GPU and it is short: starting a graph takes microseconds."""
    if device != 'cuda' or _seconds(once) > GRAPH_SECONDS:
        return Made(lambda: once()[0], lambda: compared(once()))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as CUDA graphs ask for: warm up beside the main stream
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            results = once()

    def replay() -> List[torch.Tensor]:
        graph.replay()
        return list(results)

    return Made(lambda: replay()[0], lambda: compared(replay()), repeats=GRAPH_CALLS)


def _seconds(call: Callable[[], Any]) -> float:
    """Seconds of the third call on a GPU."""
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _case(
    name: str, words: str, spec: OpSpec, sizes: OpCase, dtype: torch.dtype, routes: Sequence[str], **kwargs: Any
) -> Case:
    """A case of an operation; `kwargs` as `Case` has them, and `step`."""
    step = kwargs.pop('step', False)
    side = partial(partial, _make, spec, sizes, dtype)
    return Case(
        name,
        Side(f'{spec.name}, {words}, {str(dtype).split(".")[1]}', side('ours', step)),
        {name: Side(_routes(spec)[name].words, side(name, step)) for name in routes},
        atol=ATOL[dtype],
        work=counted(spec, sizes, dtype, step),
        **kwargs,
    )


def _kernel_cases(spec: OpSpec) -> List[Case]:
    """The kernels at the sizes of models."""
    about = spec.benchmark
    cases = []
    for size in about.sizes:
        for what in ('forward', 'step'):
            routes = ['eager', 'compile', *about.routes]
            if what == 'forward':  # in a step the gradients would be others
                routes += [name for name, route in about.forward_routes.items() if route.applies(size.sizes)]
            goals = about.speedups.get((size.name, what), {})
            name = f'kernels/{spec.name}/{size.name.replace(",", "").replace(" ", "-")}/{what}'
            words = size.name + (', forward and backward' if what == 'step' else '')
            asked = tuple(Asked('speed', factor, peer, on='cuda') for peer, factor in goals.items())
            more = dict(step=what == 'step', gpu=True, large=True, asked=asked)
            cases.append(_case(name, words, spec, size, torch.bfloat16, routes, **more))
    return cases


def _memory_case(spec: OpSpec) -> Case:
    """The peak of memory at a size where that counts."""
    case, words, gib = spec.benchmark.memory

    def make(route: str, device: str) -> Made:
        # no graph: its memory would be there before the measured call
        function, args = _ready(spec, case, torch.bfloat16, route, device)

        @torch.no_grad()
        def call() -> torch.Tensor:
            return relative([_first(function(*args))])

        return Made(call)

    peers = ('eager', *spec.benchmark.routes)
    return Case(
        f'kernels/{spec.name}/{case.name}/memory',
        Side(f'{spec.name}, {words}, bfloat16', partial(make, 'ours')),
        {name: Side(_routes(spec)[name].words, partial(make, name)) for name in peers},
        atol=ATOL[torch.bfloat16],
        alone=True,
        large=True,
        gpu=True,
        asked=(Asked('peak_gib', gib, on='cuda'),),
    )


def _sweeps(spec: OpSpec) -> List[Case]:
    """Rows over every axis, in float32 anywhere and in bfloat16 on a GPU, and one at the size of a model."""
    sweep, routes = spec.benchmark.sweep, ['definition', *spec.benchmark.routes]
    cases = []
    for suffix, dtype, batches in (('', torch.float32, 1), ('-bfloat16', torch.bfloat16, GPU_BATCHES)):
        gpu = dtype == torch.bfloat16
        for axis, values in sweep.axes.items():
            for value, changed in values.items():
                sizes = {**sweep.held, **changed, 'B': batches * sweep.held['B']}
                name = f'ops/{spec.name}/{axis.lower()}{suffix}/{value}'
                more = dict(over=Over(axis, value), gpu=gpu, large=value == max(values))
                cases.append(_case(name, _described(sizes), spec, OpCase(name, sizes), dtype, routes, **more))
    name = f'ops/{spec.name}/model'
    model = OpCase(name, sweep.model)
    return [
        *cases,
        _case(name, _described(sweep.model), spec, model, torch.float32, [*routes, 'compile'], large=True),
    ]


def _described(sizes: Dict[str, Any]) -> str:
    values = {name: '×'.join(map(str, value)) if isinstance(value, tuple) else value for name, value in sizes.items()}
    return ' '.join(f'{name}={value}' for name, value in values.items())


def _model(name: str, fused: bool, plain: Dict[str, Any], device: str) -> Made:
    """A model in bfloat16 at batch 64 with its kernels, or in eager PyTorch without them."""
    torch.manual_seed(0)
    model = timm.create_model(name, **({} if fused else plain)).to(device, torch.bfloat16).eval()
    head = model.get_classifier().weight  # where it starts at zero all models agree
    head.data.copy_(0.02 * randn(head.shape, torch.bfloat16, torch.device(device)))
    x = randn((64, 3, 224, 224), torch.bfloat16, torch.device(device))

    def once() -> List[torch.Tensor]:
        with unittest.mock.patch.dict(os.environ, TIMM_EXTRA_FUSED=str(int(fused))), torch.no_grad():
            return [model(x)]

    return _made(once, relative, device)


def _model_case(name: str, factor: float, plain: Dict[str, Any]) -> Case:
    words = 'itself in eager PyTorch' + (', plain attention' if plain else '')
    return Case(
        f'kernels/models/{name}/inference',
        Side(f'{name} with its kernels, bfloat16, batch 64', partial(_model, name, True, plain)),
        {'eager': Side(words, partial(_model, name, False, plain), own=True)},
        atol=ATOL[torch.bfloat16],
        large=True,
        gpu=True,
        asked=(Asked('speed', factor, 'eager', on='cuda'),),
    )


CASES: List[Case] = [
    *(case for spec in SPECS for case in _kernel_cases(spec)),
    *(_memory_case(spec) for spec in SPECS if spec.benchmark.memory),
    _model_case('ceit_small', 1.3, {}),
    _model_case('perceiver_base', 1.7, dict(cross_route='plain')),
    *(case for spec in SPECS if spec.benchmark.sweep for case in _sweeps(spec)),
]
