"""Which path an operation takes, its Triton kernel or its PyTorch reference, and why."""

import contextlib
import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional, Sequence

import torch

from ._tiles import without_autocast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST = 2**31 - 1  # elements of a tensor, and programs along the first axis of a launch
Limits = Callable[..., Optional[str]]


@dataclass(frozen=True)
class Path:
    """The path that a call takes.

    Attributes:
        operation: Name of the operation.
        fused: Whether it is the Triton kernel.
        reason: Why it is not; empty if it is.
    """

    operation: str
    fused: bool
    reason: str

    def __str__(self) -> str:
        return f'{self.operation}: Triton kernel' if self.fused else f'{self.operation}: PyTorch, {self.reason}'


def kernels_enabled() -> bool:
    """Whether the environment allows kernels: `TIMM_EXTRA_FUSED=0` turns them all off."""
    return os.environ.get('TIMM_EXTRA_FUSED', '1') != '0'


def why_not(limits: Limits, args: Sequence[Any]) -> Optional[str]:
    """Why a call cannot take a kernel, from device, dtypes and shapes alone; None if it can.

    Args:
        limits: What the operation's own kernels cannot do, asked with the same arguments.
        args: Arguments of the operator, tensors and lists of tensors among them.
    """
    tensors = list(_tensors(args))
    device = tensors[0].device
    if device.type != 'cuda':
        return f'the tensors are on {device}'
    if not kernels_enabled():
        return 'TIMM_EXTRA_FUSED=0'
    if not _has_triton():
        return 'triton is not installed'
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f'compute capability {torch.cuda.get_device_capability(device)} is below (8, 0)'
    return unsupported(limits, args)


def unsupported(limits: Limits, args: Sequence[Any]) -> Optional[str]:
    """The part of `why_not` that holds on any device."""
    for tensor in _tensors(args):
        if tensor.dtype not in DTYPES and tensor.dtype != torch.bool:
            return f'{tensor.dtype} has no kernel'
        if not tensor.numel():
            return f'a tensor of shape {tuple(tensor.shape)} is empty'
        if tensor.numel() > LARGEST:
            return f'a tensor of shape {tuple(tensor.shape)} has more than {LARGEST} elements'
    return limits(*args)


def implement(operator: str, package: str, name: str, limits: Limits) -> None:
    """Give an operator the function of one name in the package's kernel.py, and in its reference.py where it must.

    kernel.py is imported, and with it triton, when a call first takes it.
    """
    reference = getattr(importlib.import_module('.reference', package), name)

    @functools.wraps(reference)
    def run(*args):
        if why_not(limits, args) is not None:
            return reference(*args)
        kernel = importlib.import_module('.kernel', package)
        with _current(next(_tensors(args)).device):
            return getattr(kernel, name)(*args)

    torch.library.impl(operator, 'CompositeExplicitAutograd', without_autocast(run))


def no_second_derivative(ctx, *grads):
    """Backward of the backward operators.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError('the operations of timm_extra_kernels have no second derivative')


def _current(device: torch.device):
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext()


@functools.lru_cache(maxsize=None)
def _has_triton() -> bool:
    return importlib.util.find_spec('triton') is not None


def _tensors(args: Sequence[Any]) -> Iterator[torch.Tensor]:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
