"""What every result says about where it was measured, and results as Markdown, pictures and a section of the README."""

import argparse
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from . import roofline
from .alone import MEMORY_LIMIT
from .compare import load
from .plots import PICTURES, Result, Row, at, failure, groups, is_same, names, overview, where

BEGIN, END = '<!-- benchmarks: written by python -m benchmarks report -->', '<!-- /benchmarks -->'
PACKAGES = (
    'torch',
    'timm',
    'triton',
    'timm-extra',
    'transformers',
    'perceiver-pytorch',
    'glom-pytorch',
    'byol-pytorch',
)
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
REGENERATE = [
    'To measure and write this section anew:',
    '',
    '```bash',
    'make bench ARGS="--out benchmarks/results/cpu.json"',
    'python -m benchmarks report benchmarks/results/cpu.json --readme README.md',
    '```',
]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not installed'


def _commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(
            ['git', *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + (' with changes' if git('status', '--porcelain') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30, 1)


def environment(device: str = 'cpu') -> Dict[str, Any]:
    """Versions, device, threads, commit and time, for a result file; of a CPU the machine's memory too."""
    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=_commit(),
        device=torch.cuda.get_device_name() if device == 'cuda' else _processor(),
        threads=torch.get_num_threads(),
        **(dict(memory_gib=_memory_gib()) if device == 'cpu' else {}),
        python=platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    )


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
    lines += _asked_section(rows, result.get('slopes', {}))
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
        lines += ['', '## Least times', '', *roofline.sheet(dict(result, rows=rows))]
    return lines


def _versions(about: Dict[str, Any]) -> str:
    said = {key: value for key, value in about.items() if key not in ('date', 'device', 'threads', 'commit')}
    memory = said.pop('memory_gib', None)
    versions = ', '.join(f'{package} {number}' for package, number in said.items())
    return (f'{memory:g} GiB of memory, ' if memory else '') + versions


def _table_cell(text: str) -> str:
    """Text that breaks no table: reasons of failures hold what other programs said."""
    return ' '.join(text.split()).replace('|', r'\|').replace('<', '&lt;')


def _time(ms: float) -> str:
    """A time with three figures."""
    value, unit = (ms / 1e3, 's') if ms >= 1e3 else (ms, 'ms') if ms >= 1 else (ms * 1e3, 'µs')
    return f'{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}'


def _spread(ratio: Dict[str, float], rounds: bool) -> str:
    """A ratio with its spread over the rounds, where there were any."""
    return f'{ratio["median"]:.2f}×' + (f' ({ratio["p10"]:.2f} to {ratio["p90"]:.2f})' if rounds else '')


def _reason(row: Row, name: str) -> str:
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
    return 'results compared only' if row['correct'] else 'no time, as ours has no right result'


def _memory(ours: Dict[str, Any], peer: Dict[str, Any]) -> str:
    if 'peak_mib' not in ours or 'peak_mib' not in peer:
        return 'not measured' if 'memory_failed' in ours or 'memory_failed' in peer else '–'
    return f'{ours["peak_mib"]:,.0f} instead of {peer["peak_mib"]:,.0f} MiB'


def _speed_lines(row: Row) -> List[str]:
    """Lines of a table: one for every peer, or a single one that says why ours has no time."""
    case, ours = f'`{row["name"]}`', row['sides']['ours']
    reason = _reason(row, 'ours')
    peers = {name: side for name, side in row['sides'].items() if name != 'ours'}
    if reason:
        return [f'| {case} | {row["reference"] or "–"} | – | – | {_table_cell(f"ours {reason}")} | – |']
    if not peers:
        return [f'| {case} | – | {_time(ours["ms"]["median"])} | – | – | – |']
    lines = []
    for name, side in peers.items():
        against = name if is_same(side) else f'{name}, a yardstick'
        cells = [case, against, _time(ours['ms']['median'])]
        if 'speed' in side:
            cells += [_time(side['ms']['median']), _spread(side['speed'], 'rounds' in row), _memory(ours, side)]
        else:
            cells += ['–', _table_cell(_reason(row, name)), '–']
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def _words(row: Row) -> str:
    """What the sides of a row are."""
    said = '; '.join(f'{name}: {side["words"]}' for name, side in row['sides'].items())
    return f'- `{row["name"]}`: {said}'


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
        lines += ['', f'Each side in a process of its own, which may hold {MEMORY_LIMIT / 2**30:g} GiB on a CPU.']
    return [*lines, '', _words(rows[0])]


def _axis_cell(row: Row, name: str) -> str:
    side, reason = row['sides'][name], _reason(row, name)
    if reason:
        return _table_cell(reason)
    memory = f', {side["peak_mib"]:,.0f} MiB' if 'peak_mib' in side else ''
    alone = name == 'ours' and row['reference'] is None
    return _time(side['ms']['median']) + memory + (' (no peer to compare the result with)' if alone else '')


def _share_section(rows: List[Row]) -> List[str]:
    """How much of a whole its parts take."""
    if not rows:
        return []
    lines = ['', '## Shares', '', '| case | part | the whole takes | the part takes | share |', '|---|---|---|---|---|']
    for row in rows:
        whole, reason = row['sides']['ours'], _reason(row, 'ours')
        if reason:
            lines.append(f'| `{row["name"]}` | – | – | – | {_table_cell(f"the whole {reason}")} |')
            continue
        for name, side in row['sides'].items():
            if 'speed' in side:
                low, median, high = (100 * side['speed'][k] for k in ('p10', 'median', 'p90'))
                share = f'{median:.1f} % ({low:.1f} to {high:.1f})'
                times = f'{_time(whole["ms"]["median"])} | {_time(side["ms"]["median"])}'
                lines.append(f'| `{row["name"]}` | {name} | {times} | {share} |')
            elif name != 'ours':
                lines.append(f'| `{row["name"]}` | {name} | – | – | {_table_cell(_reason(row, name))} |')
    return [*lines, '', *(_words(row) for row in rows)]


GOALS = {  # how it is stated, and how what was measured is
    'speed': ('at least {:g}× as fast', '{:.2f}×'),
    'memory': ('extra peak memory of the peer at least {:g}× ours', '{:.1f}×'),
    'ms': ('at most {:g} ms', '{:.1f} ms'),
    'slope': ('time grows at most to the power of {:g}', '{:.2f}'),
    'peak_gib': ('at most {:g} GiB of extra peak memory', '{:.2f} GiB'),
}
AGAINST_PEERS = ('speed', 'memory')  # the larger the better; of the others, the smaller


def _measured(one: Dict[str, Any], row: Row, slopes: Dict[str, Any]) -> Tuple[Optional[float], str]:
    """The figure asked for, or why there is none."""
    ours, peer = row['sides']['ours'], row['sides'].get(one['peer'], {})
    needed = ['ours', *([one['peer']] if one['what'] in AGAINST_PEERS else [])]
    if one['what'] == 'slope':
        group = slopes.get(row['name'].rsplit('/', 1)[0], {})
        return (group['ours'], '') if 'ours' in group else (None, 'fewer than three sizes have a time')
    for name in needed:
        reason = _reason(row, name) if name in row['sides'] else f'there is no side {name!r}'
        if reason:
            return None, f'{name}: {reason}'
    if one['what'] == 'ms':
        return ours['ms']['median'], ''
    if one['what'] == 'speed':
        return peer['speed']['median'], ''
    for name in needed:
        if 'peak_mib' not in row['sides'][name]:
            return None, f'{name}: {row["sides"][name].get("memory_failed", "memory was not measured")}'
    if one['what'] == 'peak_gib':
        return ours['peak_mib'] / 1024, ''
    return peer['peak_mib'] / max(ours['peak_mib'], 0.1), ''  # what is stated is rounded to 0.1


def _asked_section(rows: List[Row], slopes: Dict[str, Any]) -> List[str]:
    """What the project asked of itself, what came out, and why where that falls short."""
    lines, met, unknown = [], 0, 0
    for row in rows:
        for one in row.get('asked', ()):
            wanted, stated = GOALS[one['what']]
            value, reason = _measured(one, row, slopes)
            if value is None:
                unknown += 1
                found, verdict = f'not measured: {reason}', '–'
            else:
                good = value >= one['value'] if one['what'] in AGAINST_PEERS else value <= one['value']
                met += good
                found = stated.format(value)
                verdict = 'yes' if good else ': '.join(filter(None, ('no', one['why'])))
            cells = [f'`{row["name"]}`', one['peer'] or '–', wanted.format(one['value']), found, verdict]
            lines.append(f'| {" | ".join(map(_table_cell, cells))} |')
    if not lines:
        return []
    said = f'{met} of {len(lines)} met' + (f', {unknown} not measured' if unknown else '') + '.'
    head = [
        '',
        '## What was asked',
        '',
        said,
        '',
        '| case | against | asked | measured | met |',
        '|---|---|---|---|---|',
    ]
    return [*head, *lines]


def readme_section(result: Result) -> List[str]:
    """The section of the README: pictures, and a table of the peers that compute the same.

    Args:
        result: What a result file holds.

    Returns:
        Lines of Markdown, for a README beside `docs/`.
    """
    lines = [f'Measured {where(result)}. {RATIO}', '']
    for name, picture in PICTURES.items():
        if picture.select(result):
            lines += [f'![{picture.title}](docs/benchmarks-{name}.png)', '']
    lines += table(overview(result))
    wrong = [f'`{row["name"]}`' for row in result['rows'] if not row['correct']]
    if wrong:
        lines += ['', f'Wrong or failed, and so without a speed: {", ".join(wrong)}.']
    return [*lines, '', *REGENERATE]


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
                speed = _spread(side['speed'], True) if 'speed' in side else _table_cell(_reason(row, name))
                lines.append(f'| `{row["name"]}` | {name} | {speed} | {_memory(ours, side)} |')
    return lines


def splice(text: str, lines: List[str]) -> str:
    """Put a section between the markers of a README.

    Args:
        text: The README.
        lines: The section.

    Returns:
        The README with the section in place of what was there.

    Raises:
        ValueError: A marker is missing, or the end comes before the begin.
    """
    for marker in (BEGIN, END):
        if marker not in text:
            raise ValueError(f'the marker {marker} is missing')
    before, rest = text.split(BEGIN, 1)
    if END not in rest:
        raise ValueError(f'the marker {END} comes before {BEGIN}')
    section = '\n'.join(lines)
    return f'{before}{BEGIN}\n\n{section}\n\n{END}{rest.split(END, 1)[1]}'


def _write(text: str, file: Path) -> None:
    """Write a text; a reader finds the old one or the new one."""
    part = file.with_name(f'{file.name}.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, file)


def _draw(result: Result, folder: Path, stem: str) -> List[str]:
    """Draw what there is to draw; lines that show it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: List[str] = []
    for name, picture in PICTURES.items():
        if picture.draw(result, folder / f'{stem}-{name}.png'):
            lines += [f'![{picture.title}]({stem}-{name}.png)', '']
    return lines


def _run(args: argparse.Namespace) -> None:
    result = load(args.file)
    rows = [row for row in result['rows'] if args.only in row['name']]
    if not rows:
        raise ValueError(f'{args.file} has no row whose name contains {args.only!r}')
    lines = markdown(result, args.only)
    if args.readme:
        text = args.readme.read_text(encoding='utf-8')
        try:
            text = splice(text, readme_section(result))
        except ValueError as error:
            raise ValueError(f'{args.readme}: {error}') from error
        _draw(result, args.readme.parent / 'docs', 'benchmarks')
        _write(text, args.readme)
    if args.out:
        pictures = _draw(dict(result, rows=rows), args.out, args.file.stem)
        _write('\n'.join([*lines[:2], *pictures, *lines[2:]]) + '\n', args.out / f'{args.file.stem}.md')
    if not args.out and not args.readme:
        print('\n'.join(lines))


def main(argv: List[str]) -> int:
    """Entry point of `python -m benchmarks report`.

    Args:
        argv: Arguments behind the verb.

    Returns:
        Exit status: 0, or 2 when a file is missing or not what it has to be.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks report',
        description='Print a result file as Markdown, or write it with its pictures.',
    )
    parser.add_argument('file', type=Path, metavar='FILE', help='what `python -m benchmarks --out FILE` wrote')
    parser.add_argument('--only', default='', metavar='PART', help='rows whose name contains PART')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='write Markdown and pictures there')
    parser.add_argument(
        '--readme', type=Path, metavar='README.md', help='replace its section and docs/benchmarks-*.png'
    )
    args = parser.parse_args(argv)
    if args.readme and args.only:
        parser.error('--readme takes all rows: it goes without --only')
    try:
        _run(args)
    except (ValueError, OSError) as error:
        print(f'benchmarks report: {error}', file=sys.stderr)
        return 2
    return 0
