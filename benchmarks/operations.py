"""GPU cases of the operations: the kernels against PyTorch's routes to the same result, with the floor beside them."""

import os
import unittest.mock
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import timm
import torch
import torch.nn.functional as F

from timm_extra.layers import grid_tokens
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels._spec import SPECS, OpSpec

from .harness import Pair, Prepared

DTYPE = torch.bfloat16
ATOL = 0.1  # of values of order 1, in bfloat16 and summed in other orders; the gates of kernels/tests are the proof


class Peak(NamedTuple):
    """What a GPU can do per second: bytes copied, bfloat16 operations on matrices, special functions."""

    bytes: float
    flops: float
    special: float


H100 = Peak(bytes=3.0e12, flops=800e12, special=132 * 16 * 1.755e9)  # copy and products as measured, the rest counted


def tensors(args: Sequence[Any]) -> List[torch.Tensor]:
    """Tensors among arguments, those in lists included."""
    found = []
    for arg in args:
        found += [arg] if isinstance(arg, torch.Tensor) else tensors(arg) if isinstance(arg, (list, tuple)) else []
    return found


def _attention_work(spec: OpSpec, args: Sequence[Any]) -> Tuple[float, float]:
    """Operations on matrices and special functions of one forward pass, for the way that each operation goes."""
    if spec.name.startswith('leff'):
        x, weight = args[:2]
        return 2.0 * x.numel() * weight.shape[-1] ** 2, 2.0 * x.numel()
    q, keys = args[:2]
    H, M, C = q.shape[1:]
    scores = (
        keys.shape[0] * H * M * float(keys.shape[2:].numel() if spec.name.startswith('fourier') else keys.shape[-2])
    )
    width = keys.shape[1] + 1 if spec.name.startswith('fourier') else C
    return 4.0 * scores * width, scores


def floor_ms(spec: OpSpec, case: OpCase, peak: Peak = H100) -> float:
    """Milliseconds that no forward pass can beat: every input read and the output written once, or the arithmetic."""
    args = spec.inputs(case, DTYPE, torch.device('meta'))
    given = tensors(args)
    written = given[1 if spec.name.startswith('leff') else 0].numel() * 2
    moved = sum(t.numel() * t.element_size() for t in given) + written
    flops, special = _attention_work(spec, args)
    return 1e3 * max(moved / peak.bytes, flops / peak.flops, special / peak.special)


def _zero_padded(q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask) -> torch.Tensor:
    """The best that a library has: normalised inputs, padded to a width that fused attention takes."""
    C = q.shape[-1]
    x = x if eps is None else F.layer_norm(x, (C,), None, None, eps)
    pad = -C % 8
    q, x = F.pad(q, (0, pad)).expand(x.shape[0], -1, -1, -1), F.pad(x, (0, pad)).unsqueeze(1)
    x = x.expand(-1, q.shape[1], -1, -1)
    out = F.scaled_dot_product_attention(q, x, x, None if mask is None else mask[:, None, None], scale=scale)
    return out[..., :C]


def _library(spec: OpSpec, args: Sequence[Any]) -> Optional[torch.Tensor]:
    """The result by the best route of a library; None where there is none but the definition."""
    if spec.name == 'class_attention':
        q, k, v, scale = args
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if spec.name == 'latent_cross_attention':
        return _zero_padded(*args)
    if spec.name == 'fourier_cross_attention':
        q, content, axes, scale, eps, mask = args
        return _zero_padded(q, grid_tokens(content, axes), scale, eps, None if mask is None else mask.flatten(1))
    return None


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, (tuple, list)) else out


def _step(function: Callable, args: Sequence[Any], train: bool) -> Callable[[], torch.Tensor]:
    """A forward pass, or one with all gradients, replayed as a CUDA graph where there is a GPU."""
    leaves = [t for t in tensors(args) if t.is_floating_point()]
    for t in leaves:
        t.requires_grad_(train)

    def once() -> torch.Tensor:
        out = _first(function(*args))
        if not train:
            return out
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        return torch.cat([out.flatten()[:4096].float(), *(g.flatten()[:4096].float() for g in grads)])

    if leaves[0].device.type != 'cuda':
        return once
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as CUDA graphs ask for: warm up beside the main stream
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = once()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def _model_pair(name: str, plain: Dict[str, Any], device: str) -> Pair:
    """A model in bfloat16 at batch 64 with its kernels, and in eager PyTorch without them."""

    def make(fused: bool) -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        model = timm.create_model(name, **({} if fused else plain)).to(device, DTYPE).eval()
        x = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device, DTYPE)

        def forward(x: torch.Tensor) -> torch.Tensor:
            with unittest.mock.patch.dict(os.environ, TIMM_EXTRA_FUSED=str(int(fused))), torch.no_grad():
                return model(x)

        return _step(forward, [x], train=False)

    return Pair(Prepared(partial(make, True)), Prepared(partial(make, False)))


def _pair(spec: OpSpec, case: OpCase, route: str, train: bool, device: str) -> Pair:
    def make(function: Callable) -> Callable[[], torch.Tensor]:
        return _step(function, spec.inputs(case, DTYPE, torch.device(device)), train)

    routes: Dict[str, Callable] = {
        'eager': spec.definition,
        'compile': torch.compile(spec.definition),
        'library': partial(lambda *args: _library(spec, args)),
    }
    operator = getattr(torch.ops.timm_extra, spec.name)
    return Pair(Prepared(partial(make, operator)), Prepared(partial(make, routes[route])))


WORDS = {
    'eager': 'its definition in eager PyTorch',
    'compile': 'its definition under torch.compile',
    'library': "PyTorch's fused attention, inputs zero-padded where it needs it",
}


def register(case: Callable[..., Callable]) -> None:
    """Register every operation, size and route with the registry's decorator."""
    for spec in SPECS:
        for size in spec.compiled:
            for train in (False, True):
                for route in WORDS if spec.name.endswith('attention') else ('eager', 'compile'):
                    case(
                        f'kernels/{spec.name}/{size.name}/{"step" if train else "forward"}/{route}',
                        ours=f'{spec.name}, {size.name}, bfloat16' + (', forward and backward' if train else ''),
                        other=WORDS[route],
                        atol=ATOL,
                        gpu=True,
                        floor_ms=None if train else floor_ms(spec, size),
                    )(partial(_pair, spec, size, route, train))
    for name, plain in (('ceit_small', {}), ('perceiver_base', dict(cross_route='plain'))):
        case(
            f'kernels/models/{name}/forward',
            ours=f'{name} with its kernels, bfloat16, batch 64',
            other='itself in eager PyTorch' + (', plain attention' if plain else ''),
            atol=ATOL,
            gpu=True,
        )(partial(_model_pair, name, plain))
