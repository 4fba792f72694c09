"""Cutting attention into tiles that stay in the cache, and merging them by an online softmax."""

import functools
import math
from typing import Callable, Iterator, Optional, Tuple

import torch

Range = Tuple[int, int]
SLACK = 10.0


def tile_budget(device: torch.device) -> int:
    """Scores per tile: what a processor's cache holds, or enough to fill a GPU."""
    return 1 << 20 if device.type == 'cpu' else 1 << 25


def ranges(size: int, step: int) -> Iterator[Range]:
    """Consecutive ranges of at most `step` that cover `size`."""
    for begin in range(0, size, step):
        yield begin, min(begin + step, size)


def batch_step(batch: int, scores: int, budget: int) -> int:
    """Batch items to take together when one has that many scores."""
    return max(1, min(batch, budget // max(scores, 1)))


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Dtype of the arithmetic: float64 where any tensor is, else float32, whatever is stored."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def without_autocast(function: Callable) -> Callable:
    """Decorate an operator's implementation: autocast is still on in there, and would take float32 away again."""

    @functools.wraps(function)
    def wrapped(first: torch.Tensor, *args, **kwargs):
        device = first.device.type
        if not torch.is_autocast_enabled(device):
            return function(first, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(first, *args, **kwargs)

    return wrapped


class Memory:
    """Memory that tiles use one after the other: fresh memory for each would cost more time than filling it.

    Args:
        like: Tensor that gives dtype and device.
    """

    def __init__(self, like: torch.Tensor):
        self._held = like.new_empty(0)

    def take(self, *shape: int) -> torch.Tensor:
        """An uninitialised tensor of that shape, in the place of the one taken before."""
        size = math.prod(shape)
        if size > self._held.numel():
            self._held = self._held.new_empty(size)
        return self._held[:size].view(shape)


class OnlineSoftmax:
    """Running maximum and denominator of a softmax whose scores come tile by tile.

    Args:
        rows: Shape of the rows (…, M) that are normalised.
        like: Tensor that gives dtype and device.
    """

    def __init__(self, rows: Tuple[int, ...], like: torch.Tensor):
        # far below every score yet finite, so that rows without any key give exp(-inf) = 0 and not nan
        self.lowest = torch.finfo(like.dtype).min / 2
        self.top = like.new_full((*rows, 1), self.lowest)
        self.sum = like.new_zeros((*rows, 1))

    def base(self) -> torch.Tensor:
        """The maximum so far (…, M, 1), or 0 before there is one: what the next scores may be computed relative to."""
        return self.top.masked_fill(self.top == self.lowest, 0.0)

    def rise(self, top: torch.Tensor) -> Optional[torch.Tensor]:
        """Follow the maximum (…, M, 1) of the next scores.

        On a CPU the maximum is left behind by up to `SLACK`: probabilities then reach e^SLACK, far from overflow, and
        nothing needs to be scaled for most tiles. On a GPU asking whether it is needed would cost more than doing it.

        Returns:
            The factor (…, M, 1) that brings what was accumulated before to the new maximum, None for 1.
        """
        if top.device.type == 'cpu' and not bool((top > self.top + SLACK).any()):
            return None
        top = torch.maximum(top, self.top)
        factor = torch.exp(self.top - top)
        self.top = top
        self.sum = self.sum * factor
        return factor

    def add(self, scores: torch.Tensor) -> Optional[torch.Tensor]:
        """Turn scores (…, M, n) into unnormalised probabilities in place; returns the factor of `rise`."""
        factor = self.rise(scores.amax(-1, keepdim=True))
        scores.sub_(self.top).exp_()
        self.sum = self.sum + scores.sum(-1, keepdim=True)
        return factor

    def finish(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """The denominators (…, M, 1), 1 where nothing was attended to, and the log-sum-exp (…, M), +inf there."""
        none = self.sum == 0
        total = self.sum.masked_fill(none, 1.0)
        lse = (self.top + total.log()).masked_fill(none, float('inf'))
        return total, lse.squeeze(-1)
