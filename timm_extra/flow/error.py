"""How far estimated flow is from the true one."""

from typing import Any, Tuple

import torch

from .field import as_flow, known_flow


def end_point_error(flow: Any, target: Any, valid: Any = None) -> torch.Tensor:
    """Average end-point error: the mean over pixels of √((u − u*)² + (v − v*)²), of all pairs together.

    The measure of Sintel, KITTI and Middlebury (Baker et al., A Database and Evaluation Methodology for Optical Flow,
    2011, section 4.1), in which Perceiver IO's table 3 (arXiv 2107.14795) is given.

    Args:
        flow: Tensor or NumPy array (…, 2, H, W), in pixels. One that is NaN or infinite makes the error so, but where
            pixels do not count.
        target: The true flow, of the same shape; pixels where it is unknown (`known_flow`) do not count.
        valid: Tensor or array (…, H, W), non-zero where pixels count; all when None.

    Returns:
        In pixels, without dimensions, at least float32; NaN where no pixel counts.

    Raises:
        ValueError: One is no flow, or the shapes do not fit one another.
    """
    distance, counts = _distance(flow, target, valid)
    return distance.sum() / counts.sum()


def flow_loss(flow: Any, target: Any, valid: Any = None) -> torch.Tensor:
    """What a model of flow is trained with: the end-point error, with gradients where that has none.

    For n pixels that count it is 1 / max(n, 1) · Σ √((u − u*)² + (v − v*)²). A batch without a known pixel costs 0,
    and where a pixel is exactly right its gradient is 0. A model that gives NaN where pixels count has a loss of NaN,
    which is what tells; where they do not count, what it gives has no influence, and a gradient of 0.

    Perceiver IO's paper (arXiv 2107.14795, appendix H) gives data, optimizer and schedule, but no loss, and its public
    code no training; this is the measure that it reports. It says there that training on AutoFlow only begins to work
    by a first phase without augmentation, in which every pair is seen in both directions.

    Args:
        flow: As in `end_point_error`, like `target` and `valid`.
        target: Likewise.
        valid: Likewise.

    Returns:
        In pixels, without dimensions, at least float32.

    Raises:
        ValueError: As in `end_point_error`.
    """
    distance, counts = _distance(flow, target, valid)
    return distance.sum() / counts.sum().clamp(min=1)


def _distance(flow: Any, target: Any, valid: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """Distances of the end points, 0 where a pixel does not count, and where they do, (…, H, W) both."""
    flow, target = as_flow(flow), as_flow(target, 'the target')
    if target.shape != flow.shape:
        raise ValueError(f'the target must be {tuple(flow.shape)} as the flow, got {tuple(target.shape)}')
    counts = known_flow(target)
    if valid is not None:
        valid = torch.as_tensor(valid)
        if valid.shape != counts.shape:
            raise ValueError(f'`valid` must be {tuple(counts.shape)}, got {tuple(valid.shape)}')
        counts = counts & (valid != 0)
    dtype = torch.promote_types(torch.promote_types(flow.dtype, target.dtype), torch.float32)
    difference = torch.where(counts.unsqueeze(-3), flow.to(dtype) - target.to(dtype), 0)  # NaN leaves no trace
    return torch.linalg.vector_norm(difference, dim=-3), counts
