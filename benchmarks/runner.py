"""Runs a case: results compared first, then times in turns and memory in fresh processes. A row is one comparison."""

import math
import statistics
import time
from timeit import timeit
from typing import Any, Dict, List, Tuple

import torch

from .case import OURS, Call, Case, Ready
from .isolated import reason, release, run_isolated

SAMPLE_SECONDS = 0.02  # shorter calls are repeated within a sample
CASE_SECONDS = 30.0  # a case that takes longer gets fewer rounds, but never fewer than FEWEST_ROUNDS
FEWEST_ROUNDS = 5
GRAPH_MS = 5.0  # longer calls hide their launches, and a CUDA graph would hold on to all memory that they use

Row = Dict[str, Any]
Errors = Dict[str, str]
Times = Dict[str, List[float]]


def run_case(case: Case, device: str, rounds: int, quick: bool = False) -> List[Row]:
    """Compare the results and, but for `quick`, times and memory of the implementations that agree, in most `rounds`.

    Returns:
        A row for each implementation but ours, with `case`, `implementation`, `against` and `correct`: None where no
        result could be compared. Where measured: `ratio` (time of the other over ours), `ms` and `peak_mib` of ours,
        `against_ms` and `against_peak_mib`. `error` says why figures are missing.
    """
    names = [name for name, one in case.implementations.items() if not (quick and one.baseline)]
    errors = {n: 'not installed' for n in names if case.implementations[n].missing}
    seconds: Times = {}
    peaks: Dict[str, float] = {}
    if case.isolated and not quick:
        ran = {name: run_isolated(case.name, name, device) for name in names if name not in errors}
        errors |= {name: out['error'] for name, out in ran.items() if 'error' in out}
        _compare(case, {name: out['result'] for name, out in ran.items() if name not in errors}, errors)
        if OURS not in errors:
            seconds = {name: [out['seconds']] for name, out in ran.items() if name not in errors}
            peaks = {name: ran[name]['peak_mib'] for name in seconds}
    else:
        ready, results = _prepare(case, names, device, errors)
        _compare(case, results, errors)
        if not quick and OURS not in errors:
            seconds = _take_turns({n: one for n, one in ready.items() if n not in errors}, case, device, rounds, errors)
        ready.clear()
        results.clear()
        if case.memory:
            peaks = {name: run_isolated(case.name, name, device).get('peak_mib') for name in seconds}
    release()
    return [_row(case, name, errors, seconds, peaks) for name in names if name != OURS]


def _prepare(case: Case, names: List[str], device: str, errors: Errors) -> Tuple[Dict[str, Ready], Dict[str, Any]]:
    """All implementations that can be made, and their results."""
    ready, results = {}, {}
    for name in names:
        if name not in errors:
            try:
                ready[name] = case.implementations[name].ready(device)
                results[name] = (ready[name].checked or ready[name].call)().clone()
            except Exception as error:  # one that fails is no reason to lose the other rows
                errors[name] = reason(f'{type(error).__name__}: {error}')
    return ready, results


def _compare(case: Case, results: Dict[str, torch.Tensor], errors: Errors) -> None:
    """Enter what differs from the first result that is to be compared and is not ours."""
    reference = next((name for name in case.compared if name in results), None)
    for name, result in results.items():
        if not torch.isfinite(result.float()).all():
            errors[name] = 'values that are not finite'
        elif reference and not case.implementations[name].baseline:
            other = results[reference]
            difference = math.inf if result.shape != other.shape else (result.double() - other.double()).abs().max()
            if not difference <= case.tolerance:
                errors[name] = f'differs from {reference} by {difference:.2g}, allowed {case.tolerance:.2g}'


def _take_turns(ready: Dict[str, Ready], case: Case, device: str, rounds: int, errors: Errors) -> Times:
    """Seconds of every implementation in every round; one that fails has none, and if it is ours no one has."""
    sample = {name: one.seconds or _Sample(one.call, device, case.gpu) for name, one in ready.items()}
    times: Times = {name: [] for name in ready}
    begin = time.perf_counter()
    for i in range(rounds):
        if i >= FEWEST_ROUNDS and time.perf_counter() - begin > CASE_SECONDS:
            break
        for name in list(times) if i % 2 == 0 else list(reversed(times)):
            try:
                times[name].append(sample[name]())
            except Exception as error:
                errors[name] = reason(f'{type(error).__name__}: {error}')
                del times[name]
    return times if OURS in times else {}


class _Sample:
    """Measures a call, which is the second one or a later one, as often as makes a sample long enough."""

    def __init__(self, call: Call, device: str, graph: bool):
        self._call, self._device, self._graph, self._repeats = call, device, graph, 0

    def __call__(self) -> float:
        if self._device == 'cuda':
            return self._gpu()
        if not self._repeats:
            first = timeit(self._call, number=1)
            warm = first if first > 1 else timeit(self._call, number=1)
            self._repeats = max(1, round(SAMPLE_SECONDS / max(warm, 1e-9)))
        return timeit(self._call, number=self._repeats) / self._repeats

    def _gpu(self) -> float:
        from triton.testing import do_bench, do_bench_cudagraph

        ms = do_bench(self._call, warmup=1, rep=1000 * SAMPLE_SECONDS)
        if self._graph and ms < GRAPH_MS:
            ms = do_bench_cudagraph(self._call, rep=1000 * SAMPLE_SECONDS)
        return ms / 1e3


def _row(case: Case, name: str, errors: Errors, seconds: Times, peaks: Dict[str, Any]) -> Row:
    failed = [n for n in (OURS, name) if n in errors]
    excused = case.implementations[name].peer or errors.get(name) in (None, 'out of memory', 'not installed')
    row = dict(case=case.name, implementation=OURS, against=name, correct=None)
    if OURS in errors or not excused:
        row['correct'] = False
    elif not failed and name in case.compared:
        row['correct'] = True
    if OURS in seconds and name in seconds:
        row['ratio'] = _summary([b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)])
        row |= dict(rounds=len(seconds[OURS])) if not case.isolated else {}
    for key, one in (('', OURS), ('against_', name)):
        if one in seconds:
            row[f'{key}ms'] = _round(1e3 * statistics.median(seconds[one]))
        if peaks.get(one) is not None:
            row[f'{key}peak_mib'] = round(peaks[one], 1)
    return row | (dict(error='; '.join(f'{n}: {errors[n]}' for n in failed)) if failed else {})


def _summary(values: List[float]) -> Dict[str, float]:
    """Median and the tenth and ninetieth percentiles."""
    ordered, last = sorted(values), len(values) - 1
    low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
    return dict(median=_round(statistics.median(values)), p10=_round(low), p90=_round(high))


def _round(value: float) -> float:
    return float(f'{value:.5g}')
