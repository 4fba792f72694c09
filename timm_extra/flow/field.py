"""What optical flow is: x and y of the motion of every pixel, some of it unknown."""

from typing import Any

import numpy as np
import torch

UNKNOWN_ABOVE = 1e9


def as_flow(flow: Any, name: str = 'flow', single: bool = False) -> torch.Tensor:
    """Flow as a floating-point tensor.

    Args:
        flow: Tensor or NumPy array (…, 2, H, W), in pixels, x to the right and y down.
        name: What messages call it.
        single: Take that of one pair alone, (2, H, W), of at least one pixel.

    Returns:
        The tensor, or a copy of the array in float32, or float64 where it has more than 32 bits.

    Raises:
        ValueError: It is neither, its numbers are not real, or the shape is another.
    """
    if not isinstance(flow, (torch.Tensor, np.ndarray)):
        raise ValueError(f'{name} must be a tensor or a NumPy array, got {type(flow).__name__}')
    real = (
        not (flow.is_complex() or flow.dtype == torch.bool)
        if isinstance(flow, torch.Tensor)
        else flow.dtype.kind in 'iuf'
    )
    if not real:
        raise ValueError(f'{name} must be of real numbers, got {flow.dtype}')
    shape = tuple(flow.shape)
    if single and (len(shape) != 3 or shape[0] != 2):
        last = ': move x and y, which OpenCV has last, to the front' if len(shape) == 3 and shape[2] == 2 else ''
        raise ValueError(f'{name} must be (2, H, W), got {shape}{last}')
    if single and 0 in shape:
        raise ValueError(f'{name} must be (2, H, W) of at least one pixel, got {shape}')
    if len(shape) < 3 or shape[-3] != 2:
        raise ValueError(f'{name} must be (…, 2, H, W), got {shape}')
    if isinstance(flow, np.ndarray):  # of any strides and byte order
        flow = torch.from_numpy(flow.astype(np.float64 if flow.dtype.itemsize > 4 else np.float32, order='C'))
    return flow if flow.is_floating_point() else flow.float()


def known_flow(flow: Any) -> torch.Tensor:
    """Where flow is known: both components are numbers of at most 1e9 in absolute value.

    Args:
        flow: Tensor or NumPy array (…, 2, H, W), in pixels.

    Returns:
        (…, H, W), boolean.

    Raises:
        ValueError: It is no flow, as `as_flow` has it.
    """
    return (as_flow(flow).abs() <= UNKNOWN_ABOVE).all(-3)  # NaN is not
