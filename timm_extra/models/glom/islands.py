"""Islands of agreement: neighbouring columns of GLOM that hold nearly the same vector at a level.

Source: Geoffrey Hinton, "How to represent part-whole hierarchies in a neural network" (arXiv:2102.12627), section 1.
The paper draws islands but defines no measure. Here they are the connected components of the grid of columns, where
columns side by side, or above one another, are joined if the cosine of their vectors is above a threshold.
"""

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F


def neighbour_cosine(state: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """How much neighbouring columns agree: the mean cosine over all pairs side by side or above one another.

    Args:
        state: Vectors of the columns (..., N, L, D), floating-point.
        grid: Rows H and columns W of the grid, H × W = N.

    Returns:
        (..., L), at least float32; a zero vector has cosine 0 with any other.

    Raises:
        ValueError: The shapes do not fit one another, or the grid is a single column, which has no neighbours.
    """
    right, down = _cosines(state, grid)
    if not right.shape[-1] and not down.shape[-2]:
        raise ValueError(f'a grid of one column has no neighbours, got grid {tuple(grid)}')
    return torch.cat([right.flatten(-2), down.flatten(-2)], -1).mean(-1)  # (..., L)


def island_labels(state: torch.Tensor, grid: Sequence[int], threshold: float = 0.9) -> torch.Tensor:
    """Which island each column belongs to, at every level.

    Args:
        state: Vectors of the columns (..., N, L, D), floating-point.
        grid: Rows H and columns W of the grid, H × W = N.
        threshold: Cosine above which neighbours belong together, −1 to 1.

    Returns:
        (..., L, H, W), int64: islands numbered from 0 in the order of their first column, row by row.

    Raises:
        ValueError: The shapes do not fit one another, or the threshold is outside −1 to 1.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f'threshold must be between -1 and 1, got {threshold}')
    right, down = _cosines(state, grid)
    H, W = grid
    M = right.shape[:-2].numel()
    roots = _connected((right > threshold).reshape(M, H, W - 1), (down > threshold).reshape(M, H - 1, W))  # (M, N)
    first = roots == torch.arange(H * W, device=roots.device)
    return (first.cumsum(-1) - 1).gather(-1, roots).reshape(*right.shape[:-2], H, W)


def island_counts(state: torch.Tensor, grid: Sequence[int], threshold: float = 0.9) -> torch.Tensor:
    """How many islands each level has.

    Args:
        state: Vectors of the columns (..., N, L, D), floating-point.
        grid: Rows H and columns W of the grid, H × W = N.
        threshold: Cosine above which neighbours belong together, −1 to 1.

    Returns:
        (..., L), int64, 1 to N.

    Raises:
        ValueError: As `island_labels`.
    """
    return island_labels(state, grid, threshold).amax((-2, -1)) + 1


def adjusted_rand_index(labels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Agreement of islands with given segments: 1 for the same partition, 0 on average for random ones.

    Source: Hubert and Arabie, "Comparing partitions" (1985); as in scikit-learn, two partitions that agree on all
    pairs of columns score 1, even where each is a single segment.

    Args:
        labels: Islands (..., H, W), integers.
        masks: Segments (..., H', W'), integers; where the size differs, the value in the middle of each column's patch
            is taken. Leading dimensions broadcast.

    Returns:
        (...), float64.

    Raises:
        ValueError: Either is no tensor of integers with a height and width, or leading dimensions do not fit.
    """
    for name, given in (('labels', labels), ('masks', masks)):
        if given.is_floating_point() or given.is_complex():
            raise ValueError(f'{name} must be integers, got {given.dtype}')
        if given.ndim < 2 or 0 in given.shape[-2:]:
            raise ValueError(f'{name} must have shape (..., H, W), got {tuple(given.shape)}')
    masks = _nearest(masks, labels.shape[-2:])
    try:
        labels, masks = torch.broadcast_tensors(labels.long(), masks.long())
    except RuntimeError as e:
        shapes = f'{tuple(labels.shape[:-2])} and {tuple(masks.shape[:-2])}'
        raise ValueError(f'leading dimensions of labels and masks do not fit: {shapes}') from e
    N = labels.shape[-2] * labels.shape[-1]
    a, b = labels.reshape(-1, N), masks.reshape(-1, N)
    both, in_a, in_b = _pairs(a, b), _pairs(a), _pairs(b)
    expected = in_a * in_b / max(1, N * (N - 1))
    index = (both - expected) / ((in_a + in_b) / 2 - expected)
    same = (both == in_a) & (both == in_b)  # where the quotient may be 0 / 0
    return torch.where(same, 1.0, index).reshape(labels.shape[:-2])


def _cosines(state: torch.Tensor, grid: Sequence[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Cosines (..., L, H, W - 1) with the right and (..., L, H - 1, W) with the lower neighbour."""
    if state.ndim < 3 or not state.is_floating_point():
        raise ValueError(f'state must be floating-point (..., N, L, D), got {state.dtype} {tuple(state.shape)}')
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != state.shape[-3]:
        raise ValueError(f'grid must be rows and columns of {state.shape[-3]} columns, got {tuple(grid)}')
    state = state.to(torch.promote_types(state.dtype, torch.float32))
    unit = F.normalize(state, dim=-1).unflatten(-3, tuple(grid))  # (..., H, W, L, D)
    right = (unit[..., :, 1:, :, :] * unit[..., :, :-1, :, :]).sum(-1)  # (..., H, W - 1, L)
    down = (unit[..., 1:, :, :, :] * unit[..., :-1, :, :, :]).sum(-1)  # (..., H - 1, W, L)
    return right.clamp(-1, 1).movedim(-1, -3), down.clamp(-1, 1).movedim(-1, -3)


def _connected(right: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Smallest index in the connected component of each pixel.

    Every round takes the smallest label among neighbours, for the pixel and for the pixel that its label names, then
    jumps to the label of the label; so long islands need few rounds, too (FastSV, arXiv:1910.05971).

    Args:
        right: Whether a pixel is joined with its right neighbour (M, H, W - 1).
        down: With its lower neighbour (M, H - 1, W).

    Returns:
        (M, H × W), int64.
    """
    M, H, W = right.shape[0], right.shape[1], down.shape[2]
    label = torch.arange(H * W, device=right.device).expand(M, -1)
    while True:
        low = label.reshape(M, H, W).clone()
        for joined, near, far in (
            (right, low[:, :, :-1], low[:, :, 1:]),
            (down, low[:, :-1], low[:, 1:]),
        ):
            near.copy_(torch.where(joined, torch.minimum(near, far), near))
            far.copy_(torch.where(joined, torch.minimum(near, far), far))
        low = low.flatten(1)
        new = low.scatter_reduce(1, label, low, 'amin')
        new = new.gather(1, new)
        if torch.equal(new, label):
            return label
        label = new


def _nearest(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The masks (..., H', W') at the centres of a grid (..., *size)."""
    rows, columns = (
        (2 * torch.arange(new, device=masks.device) + 1) * old // (2 * new)
        for new, old in zip(size, masks.shape[-2:], strict=True)
    )
    return masks[..., rows[:, None], columns]


def _pairs(*labels: torch.Tensor) -> torch.Tensor:
    """Ordered pairs of different pixels that share their value in all of the labels (M, N): (M,), float64."""
    M, N = labels[0].shape
    image = torch.arange(M, device=labels[0].device)[:, None].expand(M, N)
    groups, sizes = torch.unique(torch.stack([image, *labels], -1).flatten(0, 1), dim=0, return_counts=True)
    pairs = (sizes * (sizes - 1)).double()
    return pairs.new_zeros(M).index_add_(0, groups[:, 0], pairs)
