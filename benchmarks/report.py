"""Results as Markdown: what was asked, ratios to the peers, growth over sizes, shares, floors."""

from typing import Any, Dict, List

from . import asked, floors
from .rows import Result, Row, at, groups, has_peers, is_same, names, table_cell, time_text, where
from .rows import reason as reason_of

RATIO = (
    'Speed is the time of the peer over ours, of rounds in which the sides take turns: the median, and the 10th to '
    '90th percentile; above 1 ours is faster.'
)
HOW_TO_READ = (
    f'{RATIO} Results are compared with the reference first, and no speed is told of a wrong one. A yardstick is '
    'another computation of like purpose, whose result is not compared. Extra peak memory is what a call needs beyond '
    'weights and inputs.'
)
SPEEDS = ['| case | against | ours | peer | speed | extra peak memory |', '|---|---|---|---|---|---|']


def markdown(result: Result, only: str = '') -> List[str]:
    """A result file as a report.

    Args:
        result: What a result file holds.
        only: Rows whose name contains this.

    Returns:
        Lines of Markdown.
    """
    rows = [row for row in result['rows'] if only in row['name']]
    lines = [f'# Benchmarks: {where(result)}', '', _versions(result['environment']), '', HOW_TO_READ]
    lines += asked.section(rows, result.get('slopes', {}))
    families: Dict[str, List[Row]] = {}
    for row in rows:
        if row['kind'] == 'speed' and 'over' not in row:
            families.setdefault(row['name'].split('/')[0], []).append(row)
    for family, members in families.items():
        lines += ['', f'## {family}', '', *SPEEDS]
        lines += [line for row in members for line in _speed_lines(row)]
        lines += ['', *(_words(row) for row in members)]
    for group, members in groups(rows).items():
        lines += _axis_section(group, members, result.get('slopes', {}).get(group, {}))
    lines += _share_section([row for row in rows if row['kind'] == 'share'])
    if any('work' in row for row in rows):
        lines += ['', '## Least times', '', *floors.sheet(dict(result, rows=rows))]
    return lines


def _versions(about: Dict[str, Any]) -> str:
    said = {key: value for key, value in about.items() if key not in ('date', 'device', 'threads', 'commit')}
    memory, limit = said.pop('memory_gib', None), said.pop('limit_gib', None)
    versions = ', '.join(f'{package} {number}' for package, number in said.items())
    room = f', of which a process may hold {limit:g}' if limit else ''
    return (f'{memory:g} GiB of memory{room}; ' if memory else '') + versions


def _spread(ratio: Dict[str, float], rounds: bool) -> str:
    """A ratio with its spread over the rounds, where there were any."""
    return f'{ratio["median"]:.2f}×' + (f' ({ratio["p10"]:.2f} to {ratio["p90"]:.2f})' if rounds else '')


def _memory(ours: Dict[str, Any], peer: Dict[str, Any]) -> str:
    if 'peak_mib' not in ours or 'peak_mib' not in peer:
        return 'not measured' if 'memory_failed' in ours or 'memory_failed' in peer else '–'
    return f'{ours["peak_mib"]:,.0f} instead of {peer["peak_mib"]:,.0f} MiB'


def _speed_lines(row: Row) -> List[str]:
    """Lines of a table: one for every peer, or a single one that says why ours has no time."""
    case, ours = f'`{row["name"]}`', row['sides']['ours']
    reason = reason_of(row, 'ours')
    peers = {name: side for name, side in row['sides'].items() if name != 'ours'}
    if reason:
        return [f'| {case} | {row["reference"] or "–"} | – | – | {table_cell(f"ours {reason}")} | – |']
    if not peers:
        return [f'| {case} | – | {time_text(ours["ms"]["median"])} | – | – | – |']
    lines = []
    for name, side in peers.items():
        against = name if is_same(side) else f'{name}, a yardstick'
        cells = [case, against, time_text(ours['ms']['median'])]
        if 'speed' in side:
            cells += [time_text(side['ms']['median']), _spread(side['speed'], 'rounds' in row), _memory(ours, side)]
        else:
            cells += ['–', table_cell(reason_of(row, name)), '–']
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def _words(row: Row) -> str:
    """What the sides of a row are."""
    said = '; '.join(f'{name}: {side["words"]}' for name, side in row['sides'].items())
    how = f'{row["rounds"]} rounds' if 'rounds' in row else 'each side in a process of its own'
    if row['correct'] and not row['reference'] and has_peers(row):
        how += '; no peer was left to compare the result with'
    return f'- `{row["name"]}` ({how}): {said}'


def _axis_section(group: str, rows: List[Row], slopes: Dict[str, Any]) -> List[str]:
    """Times and memory of all sides over the axis of a group."""
    sides, axis = names(rows), rows[0]['over']['axis']
    lines = ['', f'## {group}, over {axis}', '', f'| {axis} | {" | ".join(sides)} |', '|---' * (len(sides) + 1) + '|']
    for row in rows:
        cells = [_axis_cell(row, name) if name in row['sides'] else '–' for name in sides]
        lines.append(f'| {at(axis, row["over"]["value"])} | {" | ".join(cells)} |')
    if slopes:
        found = [f'{slopes[name]:.2f}' if name in slopes else '–' for name in sides]
        lines.append(f'| slope | {" | ".join(found)} |')
    if any('rounds' not in row and row['correct'] for row in rows):
        lines += ['', 'Each side in a process of its own: times of a warm call, where two are not too long.']
    return [*lines, '', _words(rows[0])]


def _axis_cell(row: Row, name: str) -> str:
    side, reason = row['sides'][name], reason_of(row, name)
    if reason:
        return table_cell(reason)
    memory = f', {side["peak_mib"]:,.0f} MiB' if 'peak_mib' in side else ''
    alone = name == 'ours' and row['reference'] is None
    return time_text(side['ms']['median']) + memory + (' (no peer to compare the result with)' if alone else '')


def _share_section(rows: List[Row]) -> List[str]:
    """How much of a whole its parts take."""
    if not rows:
        return []
    lines = ['', '## Shares', '', '| case | part | the whole takes | the part takes | share |', '|---|---|---|---|---|']
    for row in rows:
        whole, reason = row['sides']['ours'], reason_of(row, 'ours')
        if reason:
            lines.append(f'| `{row["name"]}` | – | – | – | {table_cell(f"the whole {reason}")} |')
            continue
        for name, side in row['sides'].items():
            if 'speed' in side:
                low, median, high = (100 * side['speed'][k] for k in ('p10', 'median', 'p90'))
                share = f'{median:.1f} % ({low:.1f} to {high:.1f})'
                times = f'{time_text(whole["ms"]["median"])} | {time_text(side["ms"]["median"])}'
                lines.append(f'| `{row["name"]}` | {name} | {times} | {share} |')
            elif name != 'ours':
                lines.append(f'| `{row["name"]}` | {name} | – | – | {table_cell(reason_of(row, name))} |')
    return [*lines, '', *(_words(row) for row in rows)]


def table(rows: List[Row]) -> List[str]:
    """Ratios to the peers that compute the same, a line for each.

    Args:
        rows: Correct rows of a result file.

    Returns:
        Lines of Markdown.
    """
    lines = ['| case | against | speed | extra peak memory |', '|---|---|---|---|']
    for row in rows:
        ours = row['sides']['ours']
        for name, side in row['sides'].items():
            if name != 'ours' and is_same(side):
                speed = _spread(side['speed'], True) if 'speed' in side else table_cell(reason_of(row, name))
                lines.append(f'| `{row["name"]}` | {name} | {speed} | {_memory(ours, side)} |')
    return lines
