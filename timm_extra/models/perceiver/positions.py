"""Positions of inputs: how they are encoded, and learned ones of another grid."""

from typing import List, NamedTuple, Optional, Sequence, Union

import torch
import torch.nn.functional as F

POSITIONS = ('fourier', 'learned', 'none')


class Positions(NamedTuple):
    """How positions are encoded.

    Attributes:
        pos_embed: One of `POSITIONS`.
        num_bands: Frequencies of the Fourier features per axis.
        max_resolution: Samples per axis that the highest frequency can resolve; the grid's own size when None.
        pos_dim: Channels of learned positions.
        pos_proj_dim: Project learned positions to that many channels; not at all when None.
        dynamic_img_size: Accept inputs of other sizes with learned positions, which are then resampled.
    """

    pos_embed: str
    num_bands: int
    max_resolution: Union[float, Sequence[float], None]
    pos_dim: int
    pos_proj_dim: Optional[int]
    dynamic_img_size: bool


def checked_resolution(given: Union[float, Sequence[float]], axes: int, name: str = 'max_resolution') -> List[float]:
    """`max_resolution`, or what else has that name, of every axis.

    Raises:
        ValueError: It is not positive, or of another number of axes.
    """
    resolution = [given] * axes if isinstance(given, (int, float)) else list(given)
    if len(resolution) != axes or not all(isinstance(r, (int, float)) and r > 0 for r in resolution):
        raise ValueError(f'{name} must be positive, one number or {axes}, got {given}')
    return [float(r) for r in resolution]


def resample_positions(pos: torch.Tensor, old: List[int], new: List[int]) -> torch.Tensor:
    """Learned positions (N, C) of one grid, interpolated for another; bicubic on images, (tri)linear otherwise."""
    mode = 'linear' if len(old) == 1 else 'bicubic' if len(old) == 2 else 'trilinear'
    grid = pos.transpose(0, 1).float().unsqueeze(0).unflatten(2, old)
    grid = F.interpolate(grid, size=new, mode=mode, align_corners=False, antialias=len(old) == 2)
    return grid.flatten(2)[0].transpose(0, 1).to(pos.dtype)
