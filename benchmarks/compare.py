"""`python -m benchmarks compare`: whether a result is slower, larger or wrong where another was not."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .files import NoResult, load

EXAMPLE = """example:
  git stash && python -m benchmarks --only ceit --out before.json && git stash pop
  python -m benchmarks --only ceit --out after.json
  python -m benchmarks compare before.json after.json"""
ALONE_TOLERANCE = 0.25  # of a single time without a spread
MEMORY_TOLERANCE = 0.1
MEMORY_MIB = 8  # growth below that is the allocator's
FAILING = ('wrong', 'slower', 'larger')

Key = Tuple[str, str]  # name and device
Spread = Dict[str, float]


class Finding(NamedTuple):
    """What became of a case.

    Attributes:
        what: 'wrong', 'slower', 'larger', 'faster', 'right' or 'not judged'.
        words: The figures, or why there are none.
    """

    what: str
    words: str


def judge(before: Dict[str, Any], after: Dict[str, Any], tolerance: float, same_machine: bool) -> List[Finding]:
    """What became of one case.

    Args:
        before: Its row in the earlier result.
        after: Its row in the later one.
        tolerance: Change of a median that does not count.
        same_machine: Whether times themselves can be compared.

    Returns:
        What there is to tell; nothing when it is as before.
    """
    if not after['correct']:
        why = _why_wrong(after)
        return [Finding('wrong', why) if before['correct'] else Finding('not judged', f'wrong in both: {why}')]
    if not before['correct']:
        return [Finding('right', f'was wrong: {_why_wrong(before)}')]
    return [f for f in (_judge_time(before, after, tolerance, same_machine), _judge_memory(before, after)) if f]


def _why_wrong(row: Dict[str, Any]) -> str:
    ours = row['sides']['ours']
    if 'failed' in ours:
        return f'failed: {ours["failed"]}'
    difference = ours.get('difference')
    found = 'shape or values that are not finite' if difference is None else f'{difference:.2g}'
    return f'differs from {row.get("reference")} by {found}'


def _judge_time(
    before: Dict[str, Any], after: Dict[str, Any], tolerance: float, same_machine: bool
) -> Optional[Finding]:
    """By the ratios to peers of the same rounds, which a slower machine leaves alone; else by times."""
    sides = before['sides'], after['sides']
    if any('ms' not in side['ours'] for side in sides):
        return Finding('not judged', 'not measured in both')
    # the parts of a whole are no peers, where one gets faster its share falls; nor is our own code on another route
    in_turns = all(row.get('rounds', 1) > 1 and row.get('kind') != 'share' for row in (before, after))
    speeds = {
        peer: (about['speed'], sides[1][peer]['speed'])
        for peer, about in sides[0].items()
        if in_turns and 'speed' in about and 'speed' in sides[1].get(peer, {}) and not about.get('own')
    }
    if speeds:
        return _judge_speeds(speeds, tolerance)
    if not same_machine:
        return Finding('not judged', 'no peer in both, and the machines or threads differ')
    a, b = sides[0]['ours']['ms'], sides[1]['ours']['ms']
    tolerance = tolerance if _has_spread(a) and _has_spread(b) else ALONE_TOLERANCE
    words = f'{a["median"]:.4g} ms before, {b["median"]:.4g} ms now'
    if _below(a, b) and b['median'] > a['median'] * (1 + tolerance):
        return Finding('slower', words)
    if _below(b, a) and b['median'] < a['median'] * (1 - tolerance):
        return Finding('faster', words)
    return None


def _judge_speeds(speeds: Dict[str, Tuple[Spread, Spread]], tolerance: float) -> Optional[Finding]:
    """A change of ours moves the ratios to all peers; where one moves alone, it is the peer that changed."""
    slower = all(b['median'] < a['median'] * (1 - tolerance) for a, b in speeds.values())
    faster = all(b['median'] > a['median'] * (1 + tolerance) for a, b in speeds.values())
    for peer, (a, b) in speeds.items():
        if (slower and _below(b, a)) or (faster and _below(a, b)):
            words = f'{_times(a)} the speed of {peer} before, {_times(b)} now'
            return Finding('slower' if slower else 'faster', words)
    return None


def _times(spread: Spread) -> str:
    return f'{spread["median"]:.2f} ({spread["p10"]:.2f} to {spread["p90"]:.2f}) ×'


def _has_spread(spread: Spread) -> bool:
    return spread['p10'] < spread['p90']


def _below(low: Spread, high: Spread) -> bool:
    """Whether an interval lies entirely below another."""
    return low['p90'] < high['p10']


def _judge_memory(before: Dict[str, Any], after: Dict[str, Any]) -> Optional[Finding]:
    a, b = (row['sides']['ours'].get('peak_mib') for row in (before, after))
    if a is None or b is None or b <= a * (1 + MEMORY_TOLERANCE) or b - a <= MEMORY_MIB:
        return None
    return Finding('larger', f'{a:.0f} MiB before, {b:.0f} MiB now')


def _differences(before: Dict[str, Any], after: Dict[str, Any]) -> List[str]:
    """What differs between two environments, but for the time and the commit."""
    names = [name for name in {**before, **after} if name not in ('date', 'commit')]
    values = [(name, before.get(name, 'not given'), after.get(name, 'not given')) for name in names]
    return [f'{name}: {a} before, {b} now' for name, a, b in values if a != b]


def _rows(result: Dict[str, Any]) -> Dict[Key, Dict[str, Any]]:
    return {(row['name'], row['device']): row for row in result['rows']}


def compare(before: Dict[str, Any], after: Dict[str, Any], tolerance: float) -> Tuple[List[str], bool]:
    """Compare two results.

    Args:
        before: The earlier.
        after: The later.
        tolerance: Change of a median that does not count.

    Returns:
        Lines to print, the last of them a summary, and whether anything is slower, larger or wrong.
    """
    rows = _rows(before), _rows(after)
    shared = [key for key in rows[0] if key in rows[1]]
    environments = before['environment'], after['environment']
    lines = _differences(*environments)
    same_machine = all(environments[0].get(name) == environments[1].get(name) for name in ('device', 'threads'))
    counts: Dict[str, int] = dict.fromkeys((*FAILING, 'faster', 'right', 'not judged'), 0)
    for key in shared:
        for finding in judge(rows[0][key], rows[1][key], tolerance, same_machine):
            counts[finding.what] += 1
            lines.append(f'{finding.what:<10} {key[0]} ({key[1]}): {finding.words}')
    missing = [f'{name} ({device})' for name, device in rows[0] if (name, device) not in rows[1]]
    if missing:
        lines.append(f'not measured again: {", ".join(missing)}')
    told = ', '.join(f'{count} {what}' for what, count in counts.items() if count or what in FAILING)
    new = len(rows[1]) - len(shared)
    lines.append(f'{len(shared)} in both: {told}; {new} new, {len(missing)} not measured again')
    return lines, any(counts[what] for what in FAILING)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'a number from 0 to below 1 is needed, not {text!r}')
    return value


def main(argv: List[str]) -> int:
    """Entry point.

    Args:
        argv: Arguments after `compare`.

    Returns:
        Exit status: 0, 1 when a case is slower, larger or wrong, 2 when the files cannot be compared.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks compare',
        description='Say what is slower, larger or wrong in a later result. Ratios to peers of the same rounds decide, '
        'not times: a change counts when the intervals (tenth to ninetieth percentile) are apart and the medians '
        'differ by more than the tolerance. Cases without a peer are compared by their times, on one machine alone.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('before', type=Path, metavar='A.json', help='the earlier result')
    parser.add_argument('after', type=Path, metavar='B.json', help='the later result')
    parser.add_argument(
        '--tolerance',
        type=_tolerance,
        default=0.05,
        help='change of a median that does not count (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    try:
        before, after = load(args.before), load(args.after)
        if not _rows(before).keys() & _rows(after).keys():
            raise NoResult(f'{args.before} and {args.after} have no case in common')
    except NoResult as error:
        print(f'benchmarks compare: {error}', file=sys.stderr)
        return 2
    lines, fails = compare(before, after, args.tolerance)
    print('\n'.join(lines))
    return 1 if fails else 0
