"""The operations against PyTorch's routes to the same result: kernels on a GPU, and what grows with what anywhere."""

import math
import os
import time
import unittest.mock
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import timm
import torch
import torch.nn.functional as F

import timm_extra  # noqa: F401
from timm_extra.models.perceiver.fourier import grid_tokens
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels._cases import randn
from timm_extra_kernels._spec import SPECS, OpSpec

from ..harness import Asked, Case, Made, Over, Side
from ..roofline import Work

# Of the largest value, see `relative`: single results agree to several roundings (2⁻²⁴ or 2⁻⁹) of sums that are made
# in another order, and of the scores in front of an exponential. The gates of kernels/tests are the tight ones.
ATOL = {torch.float32: 1e-5, torch.bfloat16: 0.1}
GRAPH_CALLS = 20
GRAPH_SECONDS = 0.005  # longer calls hide their launches, and a graph would hold on to all memory they use
# Gradients left out of the comparison, by their place among a step's results: the mean takes all of that of the bias
# away, and so much of the first norm's summand that the definition in bfloat16 errs by a fifth
ROUNDING = {('leff_depthwise_train', 3), ('leff_depthwise_train', 5)}
SAMPLED = 2**20  # values of a tensor that are compared
GPU_BATCHES = 8  # times the batch of the sweeps, to keep a GPU busy

WORDS = {
    'eager': 'its definition in eager PyTorch',
    'definition': 'its definition in eager PyTorch',
    'compile': 'its definition under torch.compile',
    'library': "PyTorch's fused attention, inputs zero-padded where it needs it",
    'matmul': 'plain matmul, softmax and matmul on tokens that were built and normalised before',
}
FIGURES: Dict[Tuple[str, str, str], Tuple[Asked, ...]] = {
    ('leff_depthwise', 'ceit', 'forward'): (
        Asked('speed', 5, 'eager', on='cuda'),
        Asked('speed', 2, 'compile', on='cuda'),
    ),
    ('leff_depthwise_train', 'ceit', 'step'): (Asked('speed', 2.5, 'eager', on='cuda'),),
    ('latent_cross_attention', 'perceiver 512', 'forward'): (Asked('speed', 2, 'library', on='cuda'),),
    ('latent_cross_attention', 'perceiver 512 batch 1', 'forward'): (Asked('speed', 3, 'library', on='cuda'),),
    ('fourier_cross_attention', 'perceiver 261', 'forward'): (Asked('speed', 5, 'library', on='cuda'),),
    ('fourier_cross_attention', 'perceiver 261', 'step'): (Asked('speed', 4, 'library', on='cuda'),),
    ('class_attention', 'ceit', 'forward'): (Asked('speed', 3, 'eager', on='cuda'),),
}

# By operation: what is held, and the axes; a value of an axis may set several sizes
SWEEPS: Dict[str, Tuple[Dict[str, Any], Dict[str, Dict[int, Dict[str, Any]]]]] = {
    'latent_cross_attention': (
        dict(B=1, M=128, C=128, N=8192),
        {
            'N': {n: dict(N=n) for n in (1024, 4096, 16384, 65536)},
            'M': {m: dict(M=m) for m in (32, 128, 512)},
            'C': {c: dict(C=c) for c in (64, 192, 512)},
        },
    ),
    'fourier_cross_attention': (
        dict(B=1, M=128, c=3, S=(112, 112), F=33),
        {
            'pixels': {s * s: dict(S=(s, s)) for s in (28, 56, 112, 224, 448)},
            'M': {m: dict(M=m) for m in (32, 128, 512)},
            'F': {f: dict(F=f) for f in (9, 33, 129)},
        },
    ),
    'class_attention': (
        dict(B=8, H=6, L=197, D=64),
        {
            'L': {n: dict(L=n) for n in (12, 96, 768, 3072)},
            'D': {d: dict(D=d) for d in (32, 64, 128)},
        },
    ),
    'leff_depthwise': (
        dict(B=4, H=14, W=14, C=384, P=1),
        {
            'tokens': {s * s: dict(H=s, W=s) for s in (7, 14, 28, 56)},
            'C': {c: dict(C=c) for c in (96, 384, 1536)},
        },
    ),
}
MODEL_SIZES: Dict[str, Dict[str, Any]] = {
    'latent_cross_attention': dict(B=1, M=256, C=261, N=112 * 112),
    'fourier_cross_attention': dict(B=1, M=256, c=3, S=(112, 112), F=129),
    'class_attention': dict(B=32, H=6, L=12, D=64),
    'leff_depthwise': dict(B=4, H=14, W=14, C=1536, P=1),
}


def tensors(args: Sequence[Any]) -> List[torch.Tensor]:
    """Tensors among arguments, those in lists included."""
    found = []
    for arg in args:
        found += [arg] if isinstance(arg, torch.Tensor) else tensors(arg) if isinstance(arg, (list, tuple)) else []
    return found


def result_shape(spec: OpSpec, args: Sequence[Any]) -> torch.Size:
    """Shape of an operation's result."""
    if spec.name.startswith('leff'):
        return args[0].shape
    q, keys = args[:2]  # queries may be shared by all items
    return torch.Size([keys.shape[0], *q.shape[1:]])


def counted(spec: OpSpec, sizes: OpCase, dtype: torch.dtype, step: bool = False) -> Work:
    """Work that no way to compute an operation can do without, by the rules of `roofline.RULES`.

    Args:
        spec: The operation.
        sizes: Of its inputs.
        dtype: Of its inputs and its result.
        step: Count the backward pass too.
    """
    args = spec.inputs(sizes, dtype, torch.device('meta'))
    read = sum(t.numel() * t.element_size() for t in tensors(args))
    gradients = sum(t.numel() * t.element_size() for t in tensors(args) if t.is_floating_point())
    shape = result_shape(spec, args)
    written = shape.numel() * dtype.itemsize
    if spec.name.startswith('leff'):
        flops, special = 2.0 * shape.numel() * args[1].shape[-1] ** 2, 2.0 * shape.numel()
    else:
        B, H, M, C = shape
        fourier = spec.name.startswith('fourier')
        keys = args[1].shape[2:].numel() if fourier else args[1].shape[-2]
        special = float(B * H * M * keys)
        # separated: every position has its content and its mean, the features have their tables alone
        width = args[1].shape[1] + 1 if fourier else C
        tables = sum(t.numel() for t in args[2]) if fourier else 0
        flops = 4.0 * (special * width + B * H * M * tables)
    if step:
        return Work(2.0 * read + 2 * written + gradients, 3 * flops, 2 * special)
    return Work(float(read + written), flops, special)


def relative(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is compared of results: each over its largest value, and the logarithm of that.

    Results and gradients of one call differ in size by many orders, so that no absolute difference fits all.
    """
    told = []
    for part in parts:
        flat = part.detach().flatten()
        flat = flat[:: _step_through(flat.numel(), part.shape[-1])].double()
        largest = flat.abs().amax()
        told += [flat / largest, largest.log()[None]]
    return torch.cat(told)


def _step_through(count: int, channels: int) -> int:
    """A step that leaves about `SAMPLED` values and meets all channels."""
    step = max(1, count // SAMPLED)
    while math.gcd(step, channels) > 1:
        step += 1
    return step


def _zero_padded(
    q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask: Optional[torch.Tensor]
) -> torch.Tensor:
    """The best that a library has: normalised inputs, padded to a width that fused attention takes."""
    C = q.shape[-1]
    x = x if eps is None else F.layer_norm(x, (C,), None, None, eps)
    pad = -C % 8
    q, x = F.pad(q, (0, pad)).expand(x.shape[0], -1, -1, -1), F.pad(x, (0, pad)).unsqueeze(1)
    x = x.expand(-1, q.shape[1], -1, -1)
    out = F.scaled_dot_product_attention(q, x, x, None if mask is None else mask[:, None, None], scale=scale)
    return out[..., :C]


def _tokens(spec: OpSpec, args: Sequence[Any]) -> Sequence[Any]:
    """Arguments as those of `latent_cross_attention`, with every token in full."""
    if spec.name != 'fourier_cross_attention':
        return args
    q, content, axes, scale, eps, mask = args
    return q, grid_tokens(content, axes), scale, eps, None if mask is None else mask.flatten(1)


def _library(spec: OpSpec, *args: Any) -> torch.Tensor:
    if spec.name == 'class_attention':
        q, k, v, scale = args
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return _zero_padded(*_tokens(spec, args))


def _normalised(spec: OpSpec, args: Sequence[Any]) -> Sequence[Any]:
    q, x, scale, eps, mask = _tokens(spec, args)
    return q, x if eps is None else F.layer_norm(x, x.shape[-1:], None, None, eps), scale, None, mask


def _function(spec: OpSpec, route: str) -> Callable[..., Any]:
    if route == 'ours':
        return getattr(torch.ops.timm_extra, spec.name)
    if route == 'library':
        return partial(_library, spec)
    if route == 'compile':
        torch.compiler.reset()  # past a few sizes of one function it would run eagerly, without a word
        return torch.compile(spec.definition, dynamic=False)
    if route == 'matmul':
        return next(s for s in SPECS if s.name == 'latent_cross_attention').definition
    return spec.definition


def _make(spec: OpSpec, sizes: OpCase, dtype: Optional[torch.dtype], route: str, step: bool, device: str) -> Made:
    """One route of an operation, forward without gradients or with those of all inputs."""
    args = spec.inputs(sizes, dtype, torch.device(device))
    if route == 'matmul':
        args = _normalised(spec, args)
    function = _function(spec, route)
    leaves = [t.requires_grad_(step) for t in tensors(args) if t.is_floating_point()]
    # values at random: with a constant one, normalised tokens have no gradient
    grad = randn(result_shape(spec, args), dtype, torch.device(device)) if step else None

    def once() -> List[torch.Tensor]:
        with torch.set_grad_enabled(step):
            out = function(*args)
            out = (out[0] if isinstance(out, (tuple, list)) else out).to(dtype)
            return [out, *torch.autograd.grad(out, leaves, grad)] if step else [out]

    def compared(parts: List[torch.Tensor]) -> torch.Tensor:
        return relative([part for i, part in enumerate(parts) if (spec.name, i) not in ROUNDING])

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
        {route: Side(WORDS[route], side(route, step)) for route in routes},
        atol=ATOL[dtype],
        work=counted(spec, sizes, dtype, step),
        **kwargs,
    )


def _kernel_cases(spec: OpSpec) -> List[Case]:
    """The kernels at the sizes of models."""
    attention = spec.name.endswith('attention')
    sizes = list(spec.compiled)
    if spec.name == 'latent_cross_attention':
        first = sizes[0]
        sizes.insert(1, OpCase(f'{first.name} batch 1', {**first.sizes, 'B': 1}))
    cases = []
    for size in sizes:
        for what in ('forward', 'step'):
            routes = ['eager', 'compile', *(['library'] if attention else [])]
            # elsewhere it is the definition, and in a step the gradients would be others
            given = spec.name.startswith('fourier') or size.sizes.get('eps', 1e-5) is not None
            if attention and spec.name != 'class_attention' and what == 'forward' and given:
                routes.append('matmul')
            name = f'kernels/{spec.name}/{size.name.replace(",", "").replace(" ", "-")}/{what}'
            words = size.name + (', forward and backward' if what == 'step' else '')
            asked = FIGURES.get((spec.name, size.name, what), ())
            more = dict(step=what == 'step', gpu=True, large=True, asked=asked)
            cases.append(_case(name, words, spec, size, torch.bfloat16, routes, **more))
    return cases


def _memory_case(spec: OpSpec) -> Case:
    """Cross-attention to four million positions, whose tokens alone would take 2 GB."""
    size = OpCase('2048 x 2048', dict(B=1, M=512, c=3, S=(2048, 2048), F=129))

    def make(route: str, device: str) -> Made:
        # no graph: its memory would be there before the measured call
        args, function = spec.inputs(size, torch.bfloat16, torch.device(device)), _function(spec, route)

        @torch.no_grad()
        def call() -> torch.Tensor:
            out = function(*args)
            return relative([out[0] if isinstance(out, (tuple, list)) else out])

        return Made(call)

    return Case(
        f'kernels/{spec.name}/2048x2048/memory',
        Side(f'{spec.name}, batch 1 at 2048 × 2048, 512 queries, bfloat16', partial(make, 'ours')),
        {route: Side(WORDS[route], partial(make, route)) for route in ('eager', 'library')},
        atol=ATOL[torch.bfloat16],
        alone=True,
        large=True,
        gpu=True,
        asked=(Asked('peak_gib', 0.93, on='cuda'),),  # a billion bytes
    )


def _sweeps(spec: OpSpec) -> List[Case]:
    """Rows over every axis, in float32 anywhere and in bfloat16 on a GPU, and one at the size of a model."""
    held, axes = SWEEPS[spec.name]
    routes = ['definition', *(['library'] if spec.name.endswith('attention') else [])]
    cases = []
    for suffix, dtype, batches in (('', torch.float32, 1), ('-bfloat16', torch.bfloat16, GPU_BATCHES)):
        gpu = dtype == torch.bfloat16
        for axis, values in axes.items():
            for value, changed in values.items():
                sizes = {**held, **changed, 'B': batches * held['B']}
                name = f'ops/{spec.name}/{axis.lower()}{suffix}/{value}'
                more = dict(over=Over(axis, value), gpu=gpu, large=value == max(values))
                cases.append(_case(name, _told(sizes), spec, OpCase(name, sizes), dtype, routes, **more))
    sizes = MODEL_SIZES[spec.name]
    name = f'ops/{spec.name}/model'
    return [
        *cases,
        _case(name, _told(sizes), spec, OpCase(name, sizes), torch.float32, [*routes, 'compile'], large=True),
    ]


def _told(sizes: Dict[str, Any]) -> str:
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
    *(_memory_case(spec) for spec in SPECS if spec.name == 'fourier_cross_attention'),
    _model_case('ceit_small', 1.3, {}),
    _model_case('perceiver_base', 1.7, dict(cross_route='plain')),
    *(case for spec in SPECS if spec.name in SWEEPS for case in _sweeps(spec)),
]
