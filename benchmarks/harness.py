"""Measuring two implementations of one thing in one process: correctness first, then in turn, then ratios."""

import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Tuple

import torch

MIN_SAMPLE_SECONDS = 0.02  # shorter calls are repeated within a sample


@dataclass(frozen=True)
class Pair:
    """Two ways to compute the same tensor.

    Attributes:
        ours: This package's.
        other: The peer's.
    """

    ours: Callable[[], torch.Tensor]
    other: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One row of a report.

    Attributes:
        name: Path-like name that `--only` matches parts of.
        ours: What of ours is measured, in words.
        other: What it is measured against, in words.
        build: Makes both on a device ('cpu' or 'cuda').
        atol: Largest difference between the results that counts as correct.
    """

    name: str
    ours: str
    other: str
    build: Callable[[str], Pair]
    atol: float


def run_case(case: Case, device: str, rounds: int) -> Dict[str, Any]:
    """Compare the results and, if they agree, the times.

    Args:
        case: What to compare.
        device: 'cpu' or 'cuda'.
        rounds: Samples of each side; the sides alternate, and so does which goes first.

    Returns:
        A row for the report. One whose results differ has `correct: False`, the largest difference and no times.
    """
    row: Dict[str, Any] = dict(name=case.name, ours=case.ours, other=case.other, device=device, atol=case.atol)
    pair = case.build(device)
    difference = _difference(pair)
    row.update(max_difference=difference, correct=difference <= case.atol)
    if not row['correct']:
        return row

    repeats = [_repeats(function, device) for function in (pair.ours, pair.other)]
    ours: List[float] = []
    other: List[float] = []
    sides = [(pair.ours, repeats[0], ours), (pair.other, repeats[1], other)]
    for i in range(rounds):
        for function, repeat, times in sides if i % 2 == 0 else reversed(sides):
            times.append(_seconds(function, repeat, device))
    ratios = [b / a for a, b in zip(ours, other, strict=True)]
    row.update(ours_ms=_summary(ours, 1e3), other_ms=_summary(other, 1e3), speedup=_summary(ratios), rounds=rounds)
    return row


def _difference(pair: Pair) -> float:
    """Largest absolute difference of the results; infinite where shapes or non-finite values differ."""
    ours, other = pair.ours().float(), pair.other().float()
    if ours.shape != other.shape or not torch.isfinite(ours).all():
        return float('inf')
    return float((ours - other).abs().nan_to_num(float('inf')).max())


def _repeats(function: Callable[[], Any], device: str) -> int:
    _seconds(function, 2, device)  # warm-up
    return max(1, round(MIN_SAMPLE_SECONDS / max(_seconds(function, 1, device), 1e-9)))


def _seconds(function: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of one call, averaged over some."""
    if device == 'cuda':
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def _summary(values: List[float], scale: float = 1.0) -> Dict[str, float]:
    """Median and the tenth and ninetieth percentiles."""
    low, high = _percentiles(sorted(values))
    return {k: round(v * scale, 4) for k, v in (('median', statistics.median(values)), ('p10', low), ('p90', high))}


def _percentiles(ordered: List[float]) -> Tuple[float, float]:
    last = len(ordered) - 1
    return ordered[round(0.1 * last)], ordered[round(0.9 * last)]
