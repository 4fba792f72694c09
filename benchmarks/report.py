"""Results of all processors side by side: a report with pictures, and the sections of pages that state figures."""

import math
import os
import re
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from timm_extra._files import atomic_file

from .plots import PICTURES
from .results import Result, groups, load, time_text, times
from .roofline import RULES, Work, roofline

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
SECTION = re.compile(r'(<!-- benchmarks: (\S+) -->\n).*?(<!-- /benchmarks -->)', re.DOTALL)
SUMMARY = 'summary'  # the section with pictures and all families; others are named by the beginning of their cases
RATIO = (
    'The ratio is the time of the other implementation over ours, in rounds in which they take turns: the median, and '
    'the 10th to 90th percentile. Above 1 ours is faster, below 1 slower. Memory is the peak beyond weights and '
    'inputs, ours / other. Of a baseline, another computation of like purpose, the result is not compared.'
)
HOW_TO_READ = (
    f'{RATIO} Results are compared before anything is timed, and a wrong one has no time. Memory, and times over '
    'pixels, are those of a fresh process. The roofline is the time that counted work takes at best on the '
    f'processor as measured; what stays in caches can beat it. {RULES}'
)
Results = Dict[str, Result]
Row = Dict[str, Any]


def _ratio(row: Row, result: Result) -> str:
    if row['correct'] is False or 'ratio' not in row:
        return row.get('error', '–').replace('|', r'\|').replace('<', '&lt;')
    ratio = row['ratio']
    return f'{ratio["median"]:.2f}×' + (f' ({ratio["p10"]:.2f} to {ratio["p90"]:.2f})' if 'rounds' in row else '')


def _both(row: Row, key: str, form: Callable[[float], str]) -> str:
    values = [form(row[k]) if k in row else '–' for k in (key, f'against_{key}')]
    return '–' if values == ['–', '–'] else ' / '.join(values)


def _rates(row: Row, result: Result) -> str:
    """Of nothing but a product, how much of it a second."""
    work = result['cases'][row['case']].get('work')
    if not work or Work(*work).special:
        return '–'
    return _both(row, 'ms', lambda ms: f'{Work(*work).flops / ms / 1e9:.2f}')


def _roofline(row: Row, result: Result) -> str:
    work = result['cases'][row['case']].get('work')
    if not work or 'ms' not in row:
        return '–'
    seconds, bound = roofline(Work(*work), Work(**result['peak']))
    return f'{row["ms"] / (1e3 * seconds):.1f}× {time_text(1e3 * seconds)} ({bound})'


COLUMNS: Dict[str, Callable[[Row, Result], str]] = {
    'ratio': _ratio,
    'time': lambda row, result: _both(row, 'ms', time_text),
    'memory, MiB': lambda row, result: _both(row, 'peak_mib', '{:,.0f}'.format),
    'TFLOP/s': _rates,
    'ours over the roofline': _roofline,
}


def table(results: Results, cases: Sequence[str], columns: Sequence[str]) -> List[str]:
    """Lines of Markdown: a row for each comparison of some cases, with the columns of each processor."""
    rows: Dict[Tuple[str, str], Dict[str, Row]] = {}
    for processor, result in results.items():
        for row in result['rows']:
            if row['case'] in cases:
                rows.setdefault((row['case'], row['against']), {})[processor] = row
    rows = dict(sorted(rows.items(), key=lambda item: cases.index(item[0][0])))
    cells: Dict[str, List[str]] = {'case': [f'`{case}`' for case, _ in rows], 'against': []}
    for (_, against), found in rows.items():
        baseline = all(row['correct'] is None and 'error' not in row for row in found.values())
        cells['against'].append(f'{against}, a baseline' if baseline else against)
    for processor, result in results.items():
        for column in columns:
            shown = [
                COLUMNS[column](found[processor], result) if processor in found else '–' for found in rows.values()
            ]
            if set(shown) != {'–'}:
                cells[f'{processor}: {column}'] = shown
    lines = [list(cells), ['---'] * len(cells), *zip(*cells.values(), strict=True)]
    return [f'| {" | ".join(line)} |' for line in lines]


def _cases(results: Results) -> Dict[str, Dict[str, Any]]:
    """All cases by name, in order."""
    return {name: case for result in results.values() for name, case in result['cases'].items()}


def _names(results: Results) -> List[str]:
    """Names of all cases that are on no axis, in order."""
    return [name for name, case in _cases(results).items() if 'axis' not in case]


def where(results: Results) -> List[str]:
    """A line for each processor: when, how many threads and at which load."""
    lines = []
    for name, result in results.items():
        about = result['environment']
        load = [about[key] for key in ('load_at_start', 'load_at_end')]
        said = 'load not recorded' if None in load else f'load {load[0]:g} at the start and {load[1]:g} at the end'
        when = f'{about["date"][:10]}, commit {about["commit"][:10]}{about["commit"][40:]}'
        lines.append(f'- {name}: {about["processor"]}, {about["threads"]} threads, {said}; {when}')
    return lines


def _growth(results: Results, names: List[str]) -> Iterator[str]:
    """Slopes of log time over the log of the axis, of three points or more."""
    for processor, result in results.items():
        slopes = []
        for who, points in times(result, names).items():
            if len(points) > 2:
                logs = [[math.log(v) for v in values] for values in (points, points.values())]
                slopes.append(f'{who} {statistics.linear_regression(*logs).slope:.2f}')
        if slopes:
            yield f'Time grows to the power of, on {processor}: {", ".join(slopes)}.'


def markdown(results: Results) -> List[str]:
    """The report, in lines."""
    lines = ['# Results of the benchmarks', '', *where(results), '', HOW_TO_READ, '', *_pictures(results, '')]
    words = {n: case['implementations'] for r in results.values() for n, case in r['cases'].items()}
    parts: Dict[str, List[str]] = {}
    for name in _names(results):
        parts.setdefault(name.split('/')[0], []).append(name)
    over = groups(list(results.values()))
    for part, names in {**parts, **over}.items():
        lines += [f'## {part}', '', *table(results, names, list(COLUMNS)), '']
        lines += [*(_growth(results, names) if part in over else ()), '']
        for name in names[:1] if part in over else names:
            lines.append(f'- `{name}`: ' + '; '.join(f'{who}: {what}' for who, what in words[name].items()))
        lines.append('')
    return lines[:-1]


def _pictures(results: Results, beside: str) -> Iterator[str]:
    for file, (title, select, _) in PICTURES.items():
        if select(results):
            yield from (f'![{title}]({Path(beside, file).as_posix()})', '')


def splice(text: str, results: Results, folder: Path) -> str:
    """A page in a folder with the figures of the committed results in all its sections.

    A section is what lies between `<!-- benchmarks: NAME -->` and `<!-- /benchmarks -->`: pictures and a table of all
    families where NAME is 'summary'; elsewhere a table of the cases whose name begins with NAME, of the processors that
    they were measured on, with times where they are on an axis.

    Raises:
        ValueError: A section has no end, or no row belongs to it.
    """
    if len(SECTION.findall(text)) != text.count('<!-- benchmarks: '):
        raise ValueError('a section has no <!-- /benchmarks -->')

    def filled(match: 're.Match[str]') -> str:
        if match[2] == SUMMARY:
            of, names, over = results, _names(results), {}
            pictures = list(_pictures(results, os.path.relpath(RESULTS, folder)))
        else:
            names = [name for name in _cases(results) if name.startswith(match[2])]
            of = {who: result for who, result in results.items() if set(names) & set(result['cases'])}
            over = groups([dict(cases={name: _cases(of)[name] for name in names})])
            pictures = []
        if not names:
            raise ValueError(f'no row belongs to the section {match[2]!r}')
        columns = ('ratio', *(('time',) if over else ()), 'memory, MiB', 'TFLOP/s')
        lines = [match[1], *where(of), '', RATIO, '', *pictures, *table(of, names, columns)]
        for part in over.values():
            lines += ['', *_growth(of, part)]
        return '\n'.join([*lines, '', match[3]])

    return SECTION.sub(filled, text)


def write_report(folder: Path) -> List[Path]:
    """Write the report of a folder of results into it, with pictures, and say what was written.

    Of the committed results the sections of pages in docs are filled as well.
    """
    results = load(folder)
    texts = {folder / 'README.md': '\n'.join(markdown(results)) + '\n'}
    for page in sorted((ROOT / 'docs').glob('*.md')) if folder.resolve() == RESULTS else ():
        text = page.read_text(encoding='utf-8')
        if SECTION.search(text):
            texts[page] = splice(text, results, page.parent)
    for page, text in texts.items():
        with atomic_file(page) as aside:
            aside.write_text(text, encoding='utf-8')
    for file, (_, select, draw) in PICTURES.items():
        (folder / file).unlink(missing_ok=True)
        if select(results):
            draw(results, folder / file)
    return list(texts)
