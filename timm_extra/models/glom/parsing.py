"""Measures of a parse: how far islands of GLOM match the true segments of a scene, level by level.

In true labels 0 is background, which the measures leave out. Where sizes differ, both are read at the size of the true
labels: a column's label stands for its whole patch (nearest neighbour).
"""

from typing import NamedTuple, Sequence, Tuple

import torch

from .islands import adjusted_rand_index, island_labels


class Parse(NamedTuple):
    """The level and the cosine threshold at which islands match true segments best, and the score there."""

    level: int
    threshold: float
    score: float


def foreground_adjusted_rand_index(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Adjusted Rand index over the pixels that are not background.

    Args:
        predicted: Segments (B, h, w), integers.
        true: True segments (B, H, W), integers, 0 = background.

    Returns:
        (B,), float64: 1 for the same partition, 0 on average for random ones, NaN where there is no foreground.

    Raises:
        ValueError: Either is no tensor of integers (B, height, width), or the batches differ.
    """
    scores = []
    for a, b in zip(*_aligned(predicted, true), strict=True):
        a, b = a[b != 0], b[b != 0]
        scores.append(float(adjusted_rand_index(a[None], b[None])) if b.numel() else float('nan'))
    return torch.tensor(scores, dtype=torch.float64)


def mean_iou(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean intersection over union of true segments with predicted ones, matched one to one for the largest sum.

    Unmatched true segments count as 0. Pixels of the background are left out of predicted segments.

    Args:
        predicted: Segments (B, h, w), integers.
        true: True segments (B, H, W), integers, 0 = background.

    Returns:
        (B,), float64, 0 to 1, NaN where there is no foreground.

    Raises:
        ValueError: As `foreground_adjusted_rand_index`.
        ModuleNotFoundError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('`mean_iou` needs SciPy: pip install scipy') from e
    scores = []
    for a, b in zip(*_aligned(predicted, true), strict=True):
        both = _table(a[b != 0], b[b != 0])  # (predicted, true)
        if not both.numel():
            scores.append(float('nan'))
            continue
        iou = both / (both.sum(1, keepdim=True) + both.sum(0) - both)
        rows, columns = linear_sum_assignment(iou.numpy(), maximize=True)
        scores.append(float(iou[rows, columns].sum()) / both.shape[1])
    return torch.tensor(scores, dtype=torch.float64)


def containment(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """How far segments of a level nest in those of the level above: Σ_s max_t |s ∩ t| / number of pixels.

    It is 1 if and only if each lower segment lies within one upper segment. It is at least the largest upper segment's
    share of the pixels, and 1 for a single upper segment or lower segments of one pixel: compare it with that bound,
    and report it beside the numbers of segments.

    Args:
        lower: Segments of a level (B, h, w), integers.
        upper: Segments of the level above (B, H, W), integers.

    Returns:
        (B,), float64, above 0, at most 1.

    Raises:
        ValueError: As `foreground_adjusted_rand_index`.
    """
    pairs = zip(*_aligned(lower, upper, ('lower', 'upper')), strict=True)
    scores = [float(_table(a.flatten(), b.flatten()).amax(1).sum()) / b.numel() for a, b in pairs]
    return torch.tensor(scores, dtype=torch.float64)


def segment_counts(predicted: torch.Tensor, true: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Numbers of segments that have a pixel in the foreground, predicted and true.

    Args:
        predicted: Segments (B, h, w), integers.
        true: True segments (B, H, W), integers, 0 = background.

    Returns:
        Predicted (B,) and true (B,), int64; 0 where there is no foreground.

    Raises:
        ValueError: As `foreground_adjusted_rand_index`.
    """
    sizes = [_table(a[b != 0], b[b != 0]).shape for a, b in zip(*_aligned(predicted, true), strict=True)]
    counts = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
    return counts[:, 0], counts[:, 1]


def choose_level_and_threshold(
    state: torch.Tensor,
    grid: Sequence[int],
    true: torch.Tensor,
    thresholds: Sequence[float] = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99),
) -> Parse:
    """The level and the threshold whose islands have the largest mean foreground adjusted Rand index.

    Choose on validation scenes, and report the measures on others. The first of equals is taken.

    Args:
        state: Vectors of the columns (B, N, L, D), floating-point.
        grid: Rows h and columns w of the grid, h × w = N.
        true: True segments (B, H, W), integers, 0 = background; scenes without foreground are left out.
        thresholds: Cosines to try, each −1 to 1.

    Returns:
        Level, counted from 0, threshold and mean score.

    Raises:
        ValueError: Shapes or thresholds do not fit, there are no thresholds, or no scene has foreground.
    """
    if not len(thresholds):
        raise ValueError('thresholds must name at least one cosine, got none')
    if state.ndim != 4:
        raise ValueError(f'state must have shape (B, N, L, D), got {tuple(state.shape)}')
    if not bool((true != 0).any()):
        raise ValueError('true must have foreground in at least one scene, got only 0')
    best = None
    for threshold in thresholds:
        islands = island_labels(state, grid, threshold)  # (B, L, h, w)
        for level in range(state.shape[2]):
            score = float(foreground_adjusted_rand_index(islands[:, level], true).nanmean())
            if best is None or score > best.score:
                best = Parse(level, float(threshold), score)
    return best


def _aligned(
    predicted: torch.Tensor, true: torch.Tensor, names: Sequence[str] = ('predicted', 'true')
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Both on the CPU at the size of the second, (B, H, W), int64."""
    for name, given in zip(names, (predicted, true), strict=True):
        if given.is_floating_point() or given.is_complex():
            raise ValueError(f'{name} must be integers, got {given.dtype}')
        if given.ndim != 3 or 0 in given.shape[-2:]:
            raise ValueError(f'{name} must have shape (B, height, width), got {tuple(given.shape)}')
    if len(predicted) != len(true):
        raise ValueError(f'{names[0]} and {names[1]} must have the same batch, got {len(predicted)} and {len(true)}')
    h, w = predicted.shape[1:]
    H, W = true.shape[1:]
    rows = (2 * torch.arange(H) + 1) * h // (2 * H)
    columns = (2 * torch.arange(W) + 1) * w // (2 * W)
    return predicted.cpu().long()[:, rows[:, None], columns], true.cpu().long()


def _table(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pixels that each pair of labels shares (labels of a, labels of b), float64."""
    rows, i = a.unique(return_inverse=True)
    columns, j = b.unique(return_inverse=True)
    counts = torch.bincount(i * len(columns) + j, minlength=len(rows) * len(columns))
    return counts.reshape(len(rows), len(columns)).double()
