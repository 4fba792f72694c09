"""Rows of a result file, as the report and its pictures take them."""

import math
from typing import Any, Dict, List, Sequence

Row = Dict[str, Any]
Result = Dict[str, Any]

OUT_OF_MEMORY = ('out of memory', 'allocate', 'memoryerror', 'bad_alloc', 'signal 9')


def where(result: Result) -> str:
    """Date, machine, threads and commit of a result in one line."""
    about = result['environment']
    commit, _, changes = about['commit'].partition(' ')
    threads = f'{about["threads"]} thread{"" if about["threads"] == 1 else "s"}'
    return f'{about["date"][:10]}, {about["device"]}, {threads}, commit {commit[:10]} {changes}'.strip()


def is_same(side: Dict[str, Any]) -> bool:
    """Whether a side claims to compute what ours does, and is no yardstick."""
    return side.get('same', True)


def has_peers(row: Row) -> bool:
    """Whether a row has a side beside ours that claims to compute the same."""
    return any(is_same(side) for name, side in row['sides'].items() if name != 'ours')


def failure(side: Dict[str, Any]) -> str:
    """Why a side has no figure of its own, in few words; empty where nothing went wrong."""
    if 'missing' in side:
        return 'not installed'
    if 'failed' in side:
        reason = side['failed'].lower()
        return 'out of memory' if any(word in reason for word in OUT_OF_MEMORY) else 'failed'
    return 'wrong result' if 'wrong' in side else ''


def overview(result: Result) -> List[Row]:
    """Rows of whole models and steps with a peer that computes the same, measured in turns and on no axis."""
    return [
        row
        for row in result['rows']
        if row['kind'] == 'speed'
        and 'rounds' in row
        and 'over' not in row
        and not row['name'].startswith(('ops/', 'kernels/'))
        and has_peers(row)
    ]


def groups(rows: Sequence[Row]) -> Dict[str, List[Row]]:
    """Rows that stand on an axis, in its order, by the part of the name that they share."""
    found: Dict[str, List[Row]] = {}
    for row in rows:
        if 'over' in row:
            found.setdefault(row['name'].rsplit('/', 1)[0], []).append(row)
    return {group: sorted(rows, key=lambda row: row['over']['value']) for group, rows in found.items()}


def names(rows: Sequence[Row]) -> List[str]:
    """Names of all sides of some rows, 'ours' first."""
    return list(dict.fromkeys(['ours', *(name for row in rows for name in row['sides'])]))


def at(axis: str, value: int) -> str:
    """A place on an axis as it is written: pixels of a square image as 224²."""
    side = math.isqrt(value)
    return f'{side}²' if axis == 'pixels' and side * side == value else f'{value}'


def table_cell(text: str) -> str:
    """Text that breaks no table: reasons of failures hold what other programs said."""
    return ' '.join(text.split()).replace('|', r'\|').replace('<', '&lt;')


def time_text(ms: float) -> str:
    """A time with three figures."""
    value, unit = (ms / 1e3, 's') if ms >= 1e3 else (ms, 'ms') if ms >= 1 else (ms * 1e3, 'µs')
    return f'{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}'


def reason(row: Row, name: str) -> str:
    """Why a side has no figures, in words; empty where it has."""
    side = row['sides'][name]
    if 'missing' in side:
        return side['missing']
    short = failure(side)
    if 'failed' in side:
        return short if short == 'out of memory' else f'failed: {side["failed"][:150]}'
    if 'wrong' in side:
        found = side['difference']
        by = 'in shape, or holds values that are not finite' if found is None else f'by {found:.2g}'
        return f'wrong: differs from {row["reference"]} {by}, allowed {row["atol"]:.2g}'
    if 'ms' in side:
        return ''
    if name == 'ours' and not row['correct']:
        return 'not compared: every peer failed'
    return 'results compared only' if row['correct'] else 'no time, as ours has no right result'
