"""Which path an operation takes, its Triton kernel or its eager PyTorch form, and why."""

import contextlib
import functools
import importlib
import inspect
import logging
import os
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, Hashable, Iterable, Iterator, Optional, Sequence, Tuple

import torch

from ._checks import has_tangent
from ._target import describe, target
from ._tiles import without_autocast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST = 2**31 - 1  # elements of a tensor, and programs along the first axis of a launch
NEEDED_OF_TRITON = ('jit', 'cdiv', 'constexpr_function', 'language', 'runtime')  # what kernel.py files use
_logger = logging.getLogger(__name__)
Limits = Callable[..., Optional[str]]
RAISED = tuple(getattr(torch, name) for name in ('OutOfMemoryError', 'AcceleratorError') if hasattr(torch, name))
FAILED: Dict[Hashable, str] = {}  # kinds of calls whose kernel has failed, and how


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
    if (reason := _no_kernels(device)) is not None:
        return reason
    if (reason := unsupported(limits, named)) is not None or torch.cuda.is_current_stream_capturing():
        return reason
    return cannot_run(device)


def may_run_kernels(device: torch.device) -> bool:
    """Whether a kernel takes any call on such a device, for what only kernels need; a meta tensor's may be any."""
    return device.type in ('cuda', 'meta')


def _no_kernels(device: torch.device) -> Optional[str]:
    """The part of `why_not` that holds for all calls on a device, but for what trying a kernel shows."""
    if device.type != 'cuda':
        return f'the tensors are on {device}'
    if not kernels_enabled():
        return 'TIMM_EXTRA_FUSED=0'
    if (reason := no_triton()) is not None:
        return reason
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f'compute capability {torch.cuda.get_device_capability(device)} is below (8, 0)'
    if torch.version.hip is not None and not describe(target(device)).unit:
        return f'{target(device)} has no matrix cores that the kernels use'
    return None


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels run on a device: for what chooses between operations.

    Args:
        device: Of tensors. A GPU that is not there, as fake tensors may have, counts as one on which they run.
    """
    if device.type == 'cuda' and not torch.cuda.is_available():
        return kernels_enabled() and no_triton() is None
    return _no_kernels(device) is None and (torch.cuda.is_current_stream_capturing() or cannot_run(device) is None)


# What torch.compiler.assume_constant_result sets, which imports the compiler, and that triton
runs_kernels._dynamo_marked_constant = True


def unsupported(limits: Limits, named: Dict[str, Any]) -> Optional[str]:
    """The part of `why_not` that holds on any device. Tensors named in `limits.may_be_empty` may be that."""
    may_be_empty = getattr(limits, 'may_be_empty', ())
    for name, tensor in ((name, tensor) for name, value in named.items() for tensor in tensors([value])):
        if tensor.dtype not in DTYPES and tensor.dtype != torch.bool:
            return f'{tensor.dtype} has no kernel'
        if not tensor.numel() and name not in may_be_empty:
            return f'a tensor of shape {tuple(tensor.shape)} is empty'
        if tensor.numel() > LARGEST:
            return f'a tensor of shape {tuple(tensor.shape)} has more than {LARGEST} elements'
    return limits(**{name: named[name] for name in arguments(limits) if name in named})


class Dispatcher:
    """An operator's implementation: the function of that name in the package's kernel.py, or the eager one.

    kernel.py is imported, and with it triton, when a call first takes it.

    Args:
        operator: Qualified name of the operator.
        package: Import name of the operation's package.
        eager: Its PyTorch form.
        limits: Says what its kernels cannot do.
        slower: Says where they would not be faster; as `limits`, and of `processors`, how many the device has.
    """

    def __init__(self, operator: str, package: str, eager: Callable, limits: Limits, slower: Optional[Limits] = None):
        self.operator, self.package, self.eager, self.limits, self.slower = operator, package, eager, limits, slower
        self.arguments = arguments(eager)
        torch.library.impl(operator, 'CompositeExplicitAutograd', without_autocast(self._run))

    def why_not(self, args: Sequence[Any]) -> Optional[str]:
        """Why a call takes PyTorch, from what is known before it is made; None if it takes a kernel."""
        named = dict(zip(self.arguments, args))
        reason = why_not(self.limits, named)
        if reason is None and self.slower is not None:
            reason = not_faster(self.slower, named)
        return FAILED.get(self._kind(args)) if reason is None and FAILED else reason

    def _run(self, *args: Any) -> Any:
        if has_tangent(tensors(args)):  # which would be lost without a word
            raise NotImplementedError(f'{self.operator} has no forward-mode derivative, its function has')
        if self.why_not(args) is not None:
            return self.eager(*args)
        device = next(tensors(args)).device
        try:
            kernel = importlib.import_module('.kernel', self.package)
            with _current(device):
                return getattr(kernel, self.eager.__name__)(*args)
        except RAISED:
            raise
        except Exception as e:  # a compiler, an assembler or a driver may fail in any way
            FAILED[self._kind(args)] = reason = f'its kernel failed on {device} ({in_a_line(e)})'
            _logger.warning('%s: %s; PyTorch takes calls like this one now', self.operator, reason)
            return self.eager(*args)

    def _kind(self, args: Sequence[Any]) -> Hashable:
        """What a kernel that fails would fail for again."""
        floating = [t for t in tensors(args) if t.is_floating_point()]
        return self.operator, floating[0].device, floating[0].shape[-1], tuple(t.dtype for t in floating)


def not_faster(slower: Limits, named: Dict[str, Any]) -> Optional[str]:
    """Why a kernel would not be faster on this GPU, by what is counted; None if it would be."""
    device = next(tensors(named.values())).device
    if device.type != 'cuda':
        return None
    known = dict(named, processors=torch.cuda.get_device_properties(device).multi_processor_count)
    return slower(**{name: known[name] for name in arguments(slower)})


@functools.lru_cache(maxsize=None)
def cannot_run(device: torch.device) -> Optional[str]:
    """Why no kernel runs on a device (no C compiler, a driver that does not fit …), tried once; None if one ran."""
    failures = []

    def attempt() -> None:
        try:
            with _current(device):
                importlib.import_module('._probe', __package__).run(device)
        except Exception as e:
            failures.append(e)

    thread = threading.Thread(target=attempt)  # in which no mode, no transform and no autocast is active
    thread.start()
    thread.join()
    if not failures:
        return None
    if isinstance(failures[0], RAISED):
        raise failures[0]
    reason = f'Triton runs no kernel on {device} ({in_a_line(failures[0])})'
    _logger.warning('timm_extra_kernels: %s; PyTorch takes all calls there', reason)
    return reason


def in_a_line(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    return ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])


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
