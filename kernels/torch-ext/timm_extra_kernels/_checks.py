"""Argument checks that several operations share."""

from typing import Iterable, Optional, Sequence

import torch
from torch.autograd import forward_ad


def check_floating(op: str, **tensors: torch.Tensor) -> None:
    """Refuse tensors that are not of a floating-point dtype, or not all on one device.

    Raises:
        ValueError: Names the tensor, its dtype or the two devices.
    """
    for label, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f'{op}: {label} must be of a floating-point dtype, got {tensor.dtype}')
    first, *others = tensors.items()
    for label, tensor in others:
        if tensor.device != first[1].device:
            raise ValueError(f'{op}: {first[0]} is on {first[1].device}, {label} on {tensor.device}')


def has_tangent(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether forward-mode differentiation goes through one of these tensors."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors if t.is_floating_point())


def check_queries(op: str, q: torch.Tensor, name: str, inputs: torch.Tensor) -> None:
    """Refuse queries that are not (B or 1, H, M, C), or that are elsewhere than the inputs.

    Raises:
        ValueError: Says which shape, dtype or device does not fit.
    """
    if q.ndim != 4:
        raise ValueError(f'{op}: q must be (B or 1, H, M, C), got {tuple(q.shape)}')
    if q.shape[0] not in (1, inputs.shape[0]):
        raise ValueError(f'{op}: q has a batch of {q.shape[0]}, {name} of {inputs.shape[0]}')
    check_floating(op, **{'q': q, name: inputs})


def check_grid(op: str, name: str, vectors: torch.Tensor, content: torch.Tensor, axes: Sequence[torch.Tensor]) -> None:
    """Refuse content that is no grid, tables that do not fit it, and vectors of other channels than both together.

    Raises:
        ValueError: Says which shape, dtype or device does not fit.
    """
    if not 1 <= content.ndim - 2 <= 3:
        raise ValueError(f'{op}: content must be (B, c, *1 to 3 axes), got {tuple(content.shape)}')
    if any(size == 0 for size in content.shape[2:]):  # numel() would fix sizes of an export
        raise ValueError(f'{op}: content {tuple(content.shape)} is empty')
    shapes = [tuple(t.shape) for t in axes]
    if any(t.ndim != 2 for t in axes) or [s[0] for s in shapes] != list(content.shape[2:]):
        raise ValueError(
            f'{op}: axes must be one table (size, features) per spatial axis of content {tuple(content.shape)}, '
            f'got {shapes}'
        )
    if any(t.device != content.device or not t.is_floating_point() for t in axes):
        raise ValueError(
            f'{op}: tables must be floating-point on {content.device}, '
            f'got {[(str(t.dtype), str(t.device)) for t in axes]}'
        )
    channels = content.shape[1] + sum(s[1] for s in shapes)
    if vectors.shape[-1] != channels:
        raise ValueError(f'{op}: {name} has {vectors.shape[-1]} channels, content and tables together have {channels}')


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
