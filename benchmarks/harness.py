"""Measuring sides that compute one thing: correctness first, then times in turn and memory alone, then ratios."""

import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from .alone import release, run_alone
from .roofline import Work
from .rows import failure

MIN_SAMPLE_SECONDS = 0.02  # shorter calls are repeated within a sample
CASE_SECONDS = 30.0  # a case that takes longer gets fewer rounds, but never fewer than FEWEST_ROUNDS
FEWEST_ROUNDS = 5

Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Made:
    """A side with inputs and weights, ready to run.

    Attributes:
        call: What is measured.
        checked: What is compared instead, where the measured call draws at random.
        seconds: Measures itself: seconds of one call, where these are not those from begin to end.
        repeats: How often `call` computes it.
    """

    call: Call
    checked: Optional[Call] = None
    seconds: Optional[Callable[[], float]] = None
    repeats: int = 1


@dataclass(frozen=True)
class Side:
    """One way to compute something.

    Attributes:
        words: What is measured, in words.
        make: Makes inputs and weights on a device ('cpu' or 'cuda'), so that the call does only what is measured.
        same: Its result is that of the reference; False for a yardstick, another computation of like purpose.
        own: It is this package too, on another route: what slows both shows in no ratio.
        package: Import name of the peer's package, if it has one; the side is left out where that is not installed.
    """

    words: str
    make: Callable[[str], 'Call | Made']
    same: bool = True
    own: bool = False
    package: str = ''


@dataclass(frozen=True)
class Over:
    """Where a case stands on an axis, for the slope of times over the rows that share all but the name's last part.

    Attributes:
        axis: What grows, such as 'pixels' or 'N'.
        value: How much of it.
    """

    axis: str
    value: int


@dataclass(frozen=True)
class Asked:
    """A figure that the project set itself.

    Attributes:
        what: 'speed' (time of the peer over ours, at least), 'memory' (extra peak of the peer over ours, at least),
            'ms' (of ours, at most), 'slope' (of ours over the axis, at most) or 'peak_gib' (of ours, at most).
        value: The figure.
        peer: Against which side.
        on: Device that it is asked on.
    """

    what: str
    value: float
    peer: str = ''
    on: str = 'cpu'


@dataclass(frozen=True)
class Case:
    """One row of a report.

    Attributes:
        name: Path-like name that `--only` matches parts of.
        ours: This package's side.
        peers: The others by name; the first that computes the same is the reference.
        atol: Largest difference from the reference that counts as correct.
        kind: 'speed', or 'share' (ours is a whole, the peers are parts of it).
        memory: Measure the extra peak memory too, of each side in a process of its own.
        alone: Measure times there as well: for sizes at which a side may fail.
        large: Too large for a quick check.
        over: Where it stands on an axis.
        work: Counted work of one call of ours, for the floor.
        gpu: Needs a GPU.
        asked: What the project set itself.
    """

    name: str
    ours: Side
    peers: Dict[str, Side] = field(default_factory=dict)
    atol: float = 0.0
    kind: str = 'speed'
    memory: bool = False
    alone: bool = False
    large: bool = False
    over: Optional[Over] = None
    work: Optional[Work] = None
    gpu: bool = False
    asked: Tuple[Asked, ...] = ()

    @property
    def sides(self) -> Dict[str, Side]:
        """All sides by name, 'ours' first."""
        return {'ours': self.ours, **self.peers}

    @property
    def reference(self) -> Optional[str]:
        """Name of the peer that results are compared with."""
        return next((name for name, side in self.peers.items() if side.same), None)

    @property
    def lacks(self) -> str:
        """Package of the reference, if it is not installed: ours takes the weights from there, too."""
        return '' if self.reference is None else _missing(self.peers[self.reference])


def run_case(case: Case, device: str, rounds: int, quick: bool = False) -> Dict[str, Any]:
    """Compare the results and, of the sides that agree, the times.

    Args:
        case: What to compare.
        device: 'cpu' or 'cuda'.
        rounds: Most samples of each side; the sides take turns, and so does which goes first.
        quick: Compare the results and measure nothing.

    Returns:
        A row for the report. Where ours differs from the reference or fails, it has `correct: False` and no times;
        a peer that differs or fails has none of its own.
    """
    row: Dict[str, Any] = dict(
        name=case.name, kind=case.kind, device=device, reference=case.reference, atol=case.atol, correct=False
    )
    for key, part in (('over', case.over), ('work', case.work)):
        if part is not None:
            row[key] = asdict(part)
    row['sides'] = {name: _described(side) for name, side in case.sides.items()}
    if case.alone and not quick:
        _run_alone(case, row)
    else:
        _run_together(case, row, rounds, quick)
    asked = [asdict(one) for one in case.asked if one.on == device]
    if asked:
        row['asked'] = asked
    release()
    return row


def _described(side: Side) -> Dict[str, Any]:
    about: Dict[str, Any] = dict(words=side.words)
    if not side.same:
        about['same'] = False
    if side.own:
        about['own'] = True
    if _missing(side):
        about['missing'] = f'{side.package} is not installed'
    return about


def _missing(side: Side) -> str:
    return side.package if side.package and find_spec(side.package) is None else ''


def _run_together(case: Case, row: Dict[str, Any], rounds: int, quick: bool) -> None:
    made, results = _ready(case, row)
    right = _compare(case, row, results)
    if quick or not row['correct']:
        return
    times = _take_turns({name: made[name] for name in right}, row, rounds)
    if 'ours' not in times:
        row['correct'] = False
        return
    row['rounds'] = len(times['ours'])
    for name, seconds in times.items():
        _add_times(row['sides'][name], seconds, times['ours'] if name != 'ours' else None)
    if case.memory:
        made.clear()  # memory that this process holds is missing in those
        results.clear()
        for name in times:
            _add_memory(row['sides'][name], run_alone(case.name, name, row['device']))


def _ready(case: Case, row: Dict[str, Any]) -> Tuple[Dict[str, Made], Dict[str, torch.Tensor]]:
    """All sides that can be made, and their results; the others leave their reasons in the row."""
    made: Dict[str, Made] = {}
    results: Dict[str, torch.Tensor] = {}
    for name, side in case.sides.items():
        if 'missing' in row['sides'][name]:
            continue
        try:
            one = side.make(row['device'])
            made[name] = one if isinstance(one, Made) else Made(one)
            results[name] = (made[name].checked or made[name].call)().clone()
        except Exception as error:  # a peer that fails is no reason to lose the other rows
            row['sides'][name]['failed'] = _reason(error)
    return made, results


def _run_alone(case: Case, row: Dict[str, Any]) -> None:
    """Every side in a process of its own; a side that fails leaves its reason in the row."""
    present = [name for name, about in row['sides'].items() if 'missing' not in about]
    ran = {name: run_alone(case.name, name, row['device']) for name in present}
    for name, out in ran.items():
        if 'failed' in out:
            row['sides'][name]['failed'] = out['failed']
    for name in _compare(case, row, {name: out['result'] for name, out in ran.items() if 'failed' not in out}):
        if row['correct']:
            ours = None if name == 'ours' else [ran['ours']['seconds']]
            _add_times(row['sides'][name], [ran[name]['seconds']], ours)
            row['sides'][name]['calls'] = ran[name]['calls']
            _add_memory(row['sides'][name], ran[name])


def _compare(case: Case, row: Dict[str, Any], results: Dict[str, torch.Tensor]) -> List[str]:
    """Enter the differences from the reference and whether ours is correct; names of the sides that are right.

    Where the reference is missing or fails, the next peer that computes the same takes its place. Where none is left,
    ours is correct only if that is for want of memory or of packages.
    """
    present = [name for name in case.peers if name in results and case.peers[name].same]
    row['reference'] = present[0] if present else None
    right = []
    for name, result in results.items():
        about = row['sides'][name]
        if not case.sides[name].same or row['reference'] is None:
            if torch.isfinite(result.float()).all():
                right.append(name)
            else:
                about['failed'] = 'values that are not finite'
            continue
        difference = _difference(result, results[row['reference']])
        about['difference'] = difference if math.isfinite(difference) else None
        if difference <= case.atol:
            right.append(name)
        else:
            about['wrong'] = True
    lost = [row['sides'][name] for name, side in case.peers.items() if side.same and name not in results]
    excused = present or all('missing' in about or failure(about) == 'out of memory' for about in lost)
    row['correct'] = 'ours' in right and bool(excused)
    return right


def _take_turns(made: Dict[str, Made], row: Dict[str, Any], rounds: int) -> Dict[str, List[float]]:
    """Seconds of every side in every round; a side that fails leaves its reason in the row and has none."""
    sample = {name: one.seconds or _Sample(one, row['device']) for name, one in made.items()}
    times: Dict[str, List[float]] = {name: [] for name in made}
    begin = time.perf_counter()
    for i in range(rounds):
        if i >= FEWEST_ROUNDS and time.perf_counter() - begin > CASE_SECONDS:
            break
        for name in list(times) if i % 2 == 0 else list(reversed(times)):
            try:
                times[name].append(sample[name]())
            except Exception as error:
                row['sides'][name]['failed'] = _reason(error)
                del times[name]
    return times


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


def _add_times(about: Dict[str, Any], seconds: List[float], ours: Optional[List[float]]) -> None:
    about['ms'] = _summary(seconds, 1e3)
    if ours is not None:
        about['speed'] = _summary([b / a for a, b in zip(ours, seconds, strict=True)])


def _add_memory(about: Dict[str, Any], ran: Dict[str, Any]) -> None:
    if 'failed' in ran:
        about['memory_failed'] = ran['failed']
    else:
        about['peak_mib'] = round(ran['peak_mib'], 1)


def slopes(rows: Sequence[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    """Slope of log time over the log of the axis, for every side of rows that differ in the name's last part alone.

    Returns:
        By the shared part of the name: `axis`, and the slope of every side with more than two points.
    """
    groups: Dict[str, Dict[str, List[Tuple[float, float]]]] = {}
    axes: Dict[str, str] = {}
    for row in rows:
        if 'over' not in row:
            continue
        group = row['name'].rsplit('/', 1)[0]
        axes[group] = row['over']['axis']
        for name, about in row['sides'].items():
            if 'ms' in about:
                point = (math.log(row['over']['value']), math.log(about['ms']['median']))
                groups.setdefault(group, {}).setdefault(name, []).append(point)
    found: Dict[str, Dict[str, Any]] = {}
    for group, sides in groups.items():
        for name, points in sides.items():
            if len(points) > 2:
                slope = statistics.linear_regression(*zip(*points, strict=True)).slope
                found.setdefault(group, dict(axis=axes[group]))[name] = round(slope, 3)
    return found


def _difference(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ or values are not finite."""
    result, reference = result.double(), reference.double()
    if result.shape != reference.shape or not torch.isfinite(result).all():
        return float('inf')
    return float((result - reference).abs().nan_to_num(float('inf')).max())


class _Sample:
    """Measures a call, which is the second one or a later one, as often as makes a sample long enough."""

    def __init__(self, made: Made, device: str):
        self._call, self._each, self._device = made.call, made.repeats, device
        self._repeats = 0

    def __call__(self) -> float:
        if not self._repeats:
            first = _seconds(self._call, 1, self._device)
            warm = first if first > 1 else _seconds(self._call, 1, self._device)
            self._repeats = max(1, round(MIN_SAMPLE_SECONDS / max(warm, 1e-9)))
        return _seconds(self._call, self._repeats, self._device) / self._each


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
    found = dict(median=statistics.median(values), p10=low, p90=high)
    return {name: float(f'{value * scale:.5g}') for name, value in found.items()}


def _percentiles(ordered: List[float]) -> Tuple[float, float]:
    last = len(ordered) - 1
    return ordered[round(0.1 * last)], ordered[round(0.9 * last)]
