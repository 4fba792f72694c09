"""Which path an operation takes, its Triton kernel or its eager PyTorch form, and why."""

import contextlib
import functools
import importlib
import inspect
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Tuple

import torch

from ._checks import refuse_tangents
from ._tiles import without_autocast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST = 2**31 - 1  # elements of a tensor, and programs along the first axis of a launch
NEEDED_OF_TRITON = ('jit', 'cdiv', 'constexpr_function', 'language', 'runtime')  # what kernel.py files use
Limits = Callable[..., Optional[str]]


@dataclass(frozen=True)
class Path:
    """The path that a call takes.

    Attributes:
        operation: Name of the operation.
        fused: Whether it is another one than PyTorch code: `form`.
        reason: Why it is not; empty if it is.
        form: What it is then.
    """

    operation: str
    fused: bool
    reason: str
    form: str = 'Triton kernel'

    def __str__(self) -> str:
        return f'{self.operation}: {self.form if self.fused else "PyTorch, " + self.reason}'


def kernels_enabled() -> bool:
    """Whether the environment allows kernels: `TIMM_EXTRA_FUSED=0` turns them all off."""
    return os.environ.get('TIMM_EXTRA_FUSED', '1') != '0'


def why_not(limits: Limits, named: Dict[str, Any]) -> Optional[str]:
    """Why a call cannot take a kernel, from device, dtypes and shapes alone; None if it can.

    Args:
        limits: Says what the operation's own kernels cannot do, from keyword-only arguments that it picks by their
            names. A default stands for what one direction lacks.
        named: Arguments of the operator by name, tensors and lists of tensors among them.
    """
    device = next(tensors(named.values())).device
    if device.type != 'cuda':
        return f'the tensors are on {device}'
    if not kernels_enabled():
        return 'TIMM_EXTRA_FUSED=0'
    if (reason := no_triton()) is not None:
        return reason
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f'compute capability {torch.cuda.get_device_capability(device)} is below (8, 0)'
    return unsupported(limits, named)


def unsupported(limits: Limits, named: Dict[str, Any]) -> Optional[str]:
    """The part of `why_not` that holds on any device."""
    for tensor in tensors(named.values()):
        if tensor.dtype not in DTYPES and tensor.dtype != torch.bool:
            return f'{tensor.dtype} has no kernel'
        if not tensor.numel():
            return f'a tensor of shape {tuple(tensor.shape)} is empty'
        if tensor.numel() > LARGEST:
            return f'a tensor of shape {tuple(tensor.shape)} has more than {LARGEST} elements'
    return limits(**{name: named[name] for name in arguments(limits) if name in named})


def implement(operator: str, package: str, eager: Callable, limits: Limits) -> None:
    """Give an operator two implementations: the function of that name in the package's kernel.py, and an eager one.

    kernel.py is imported, and with it triton, when a call first takes it.
    """
    names = arguments(eager)

    @functools.wraps(eager)
    def run(*args):
        refuse_tangents(operator, tensors(args))
        if why_not(limits, dict(zip(names, args))) is not None:
            return eager(*args)
        kernel = importlib.import_module('.kernel', package)
        with _current(next(tensors(args)).device):
            return getattr(kernel, eager.__name__)(*args)

    torch.library.impl(operator, 'CompositeExplicitAutograd', without_autocast(run))


@functools.lru_cache(maxsize=None)
def arguments(function: Callable) -> Tuple[str, ...]:
    """Names of a function's arguments, in their order."""
    return tuple(inspect.signature(function).parameters)


def _current(device: torch.device):
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext()


@functools.lru_cache(maxsize=None)
def no_triton() -> Optional[str]:
    """Why kernels cannot be compiled: no triton, or something else of that name; None if they can. Imports it."""
    try:
        triton = importlib.import_module('triton')
        importlib.import_module('triton.language')
        importlib.import_module('triton.runtime')
    except Exception as e:  # another build may fail in any way when it is imported
        missing = isinstance(e, ModuleNotFoundError) and e.name == 'triton'
        return 'triton is not installed' if missing else f'triton cannot be imported ({type(e).__name__}: {e})'
    lacking = [name for name in NEEDED_OF_TRITON if not hasattr(triton, name)]
    return f'triton in {_place(triton)} has no {lacking[0]}: it is another build' if lacking else None


def _place(module: Any) -> str:
    return str(getattr(module, '__file__', None) or 'memory')


def tensors(args: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Tensors among arguments, those in lists included."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensors(arg)
