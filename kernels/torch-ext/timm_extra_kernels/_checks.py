"""Argument checks that several operations share."""

from typing import Optional, Sequence

import torch


def check_queries(op: str, q: torch.Tensor, name: str, inputs: torch.Tensor) -> None:
    """Refuse queries that are not (B or 1, H, M, C), or that are elsewhere than the inputs.

    Raises:
        ValueError: Says which shape, dtype or device does not fit.
    """
    if q.ndim != 4:
        raise ValueError(f'{op}: q must be (B or 1, H, M, C), got {tuple(q.shape)}')
    if q.shape[0] not in (1, inputs.shape[0]):
        raise ValueError(f'{op}: q has a batch of {q.shape[0]}, {name} of {inputs.shape[0]}')
    for label, tensor in (('q', q), (name, inputs)):
        if not tensor.is_floating_point():
            raise ValueError(f'{op}: {label} must be of a floating-point dtype, got {tensor.dtype}')
    if q.device != inputs.device:
        raise ValueError(f'{op}: q is on {q.device}, {name} on {inputs.device}')


def check_mask(op: str, mask: Optional[torch.Tensor], shape: Sequence[int], device: torch.device) -> None:
    """Refuse a mask that is not boolean, of that shape and on that device.

    Raises:
        ValueError: Says what does not fit.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f'{op}: mask must be boolean, True where an input takes part, got {mask.dtype}')
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f'{op}: mask must be {tuple(shape)}, got {tuple(mask.shape)}')
    if mask.device != device:
        raise ValueError(f'{op}: mask is on {mask.device}, the inputs on {device}')


def no_second_derivative(ctx, *grads):
    """Backward of the backward operators.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError('the cross-attention operations of timm_extra_kernels have no second derivative')
