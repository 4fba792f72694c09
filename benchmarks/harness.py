"""Measuring two implementations of one thing: correctness first, then times in turn and memory alone, then ratios."""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from .alone import run_alone

MIN_SAMPLE_SECONDS = 0.02  # shorter calls are repeated within a sample


@dataclass(frozen=True)
class Pair:
    """Two ways to compute the same tensor.

    Attributes:
        ours: This package's.
        other: The peer's.
        checked: What of both to compare instead, where the measured calls draw at random.
    """

    ours: Callable[[], torch.Tensor]
    other: Callable[[], torch.Tensor]
    checked: Optional[Tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = None


class Prepared:
    """A side whose inputs and weights are made when it is first called, or by `prepare`.

    Args:
        make: Makes what is measured.
    """

    def __init__(self, make: Callable[[], Callable[[], torch.Tensor]]):
        self._make = make
        self._call: Optional[Callable[[], torch.Tensor]] = None

    def prepare(self) -> None:
        """Make inputs and weights, so that a call does nothing but what is measured."""
        if self._call is None:
            self._call = self._make()

    def __call__(self) -> torch.Tensor:
        self.prepare()
        return self._call()


@dataclass(frozen=True)
class Case:
    """One row of a report.

    Attributes:
        name: Path-like name that `--only` matches parts of.
        ours: What of ours is measured, in words.
        other: What it is measured against, in words.
        build: Makes both on a device ('cpu' or 'cuda').
        atol: Largest difference between the results that counts as correct.
        memory: Measure the extra peak memory too, of each side in a process of its own.
        alone: Measure times there as well: for sizes at which a side may fail.
        pixels: Size of the input, for the slope of times over the rows of one name.
        gpu: Needs a GPU.
        floor_ms: Milliseconds on an H100 that counted bytes and operations allow, to stand beside what is measured.
    """

    name: str
    ours: str
    other: str
    build: Callable[[str], Pair]
    atol: float
    memory: bool = False
    alone: bool = False
    pixels: int = 0
    gpu: bool = False
    floor_ms: Optional[float] = None


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
    if case.pixels:
        row['pixels'] = case.pixels
    if case.floor_ms is not None:
        row['floor_ms'] = round(case.floor_ms, 4)
    return _alone(case, row) if case.alone else _together(case, row, rounds)


def _together(case: Case, row: Dict[str, Any], rounds: int) -> Dict[str, Any]:
    device = row['device']
    pair = case.build(device)
    compared = pair.checked or (pair.ours, pair.other)
    difference = _difference(*(function() for function in compared))
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
    if case.memory:
        _add_memory(row, *(run_alone(case.name, side, device) for side in ('ours', 'other')))
    return row


def _alone(case: Case, row: Dict[str, Any]) -> Dict[str, Any]:
    """Both sides once, each in a process of its own; a side that fails leaves its reason in the row."""
    sides = {side: run_alone(case.name, side, row['device']) for side in ('ours', 'other')}
    failed = {f'{side}_failed': out['failed'] for side, out in sides.items() if 'failed' in out}
    row.update(failed, correct='ours_failed' not in failed)
    if not failed:
        difference = _difference(sides['ours']['result'], sides['other']['result'])
        row.update(max_difference=difference, correct=difference <= case.atol)
    if not row['correct']:
        return row
    for side, out in sides.items():
        if 'failed' not in out:
            row[f'{side}_ms'] = _summary([out['seconds']], 1e3)
            row[f'{side}_peak_mib'] = round(out['peak_mib'], 1)
    if not failed:
        row['speedup'] = _summary([sides['other']['seconds'] / sides['ours']['seconds']])
        _add_memory(row, sides['ours'], sides['other'])
    return row


def _add_memory(row: Dict[str, Any], ours: Dict[str, Any], other: Dict[str, Any]) -> None:
    row.update(ours_peak_mib=round(ours['peak_mib'], 1), other_peak_mib=round(other['peak_mib'], 1))
    row['memory_ratio'] = round(other['peak_mib'] / ours['peak_mib'], 2)


def slopes(rows: Sequence[Dict[str, Any]]) -> Dict[str, float]:
    """Slope of log time over log pixels, for rows of ours that differ in the last part of their name alone."""
    groups: Dict[str, List[Tuple[float, float]]] = {}
    for row in rows:
        if row.get('pixels') and 'ours_ms' in row:
            point = (math.log(row['pixels']), math.log(row['ours_ms']['median']))
            groups.setdefault(row['name'].rsplit('/', 1)[0], []).append(point)
    return {
        name: round(statistics.linear_regression(*zip(*points, strict=True)).slope, 3)
        for name, points in groups.items()
        if len(points) > 2
    }


def _difference(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference of the results; infinite where shapes or non-finite values differ."""
    ours, other = ours.float(), other.float()
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
