"""Result files: one JSON per processor, with environment, what the cases are, and a row for each comparison."""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

from timm_extra._files import atomic_file

Result = Dict[str, Any]


def write(result: Result, file: Path) -> None:
    """Write a result, a case and a row to a line; a reader finds the old file or the new one."""

    def text(value: Any, indent: Any = None) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)

    top = {key: text(value, 1) for key, value in result.items() if key not in ('cases', 'rows')}
    cases = ',\n'.join(f'{text(name)}: {text(one)}' for name, one in result['cases'].items())
    top |= dict(cases=f'{{\n{cases}\n}}', rows='[\n' + ',\n'.join(map(text, result['rows'])) + '\n]')
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as aside:
        aside.write_text('{\n' + ',\n'.join(f'{text(k)}: {v}' for k, v in top.items()) + '\n}\n', encoding='utf-8')


def load(folder: Path) -> Dict[str, Result]:
    """All results of a folder by the names of their files; ValueError where there are none, or one is no result."""
    found = {}
    for file in sorted(folder.glob('*.json')):
        result = json.loads(file.read_text(encoding='utf-8'))
        if not isinstance(result, dict) or not {'environment', 'cases', 'rows'} <= result.keys():
            raise ValueError(f'{file} is not a result of the benchmarks: no environment, cases and rows')
        found[file.stem] = result
    if not found:
        raise ValueError(f'{folder} has no results')
    return found


def time_text(ms: float) -> str:
    """A time with three figures."""
    value, unit = (ms / 1e3, 's') if ms >= 1e3 else (ms, 'ms') if ms >= 1 else (ms * 1e3, 'µs')
    return f'{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}'


def groups(results: Sequence[Result]) -> Dict[str, List[str]]:
    """Names of cases on an axis, in its order, by the part of the name that they share."""
    cases = {name: case['axis'][1] for result in results for name, case in result['cases'].items() if 'axis' in case}
    found: Dict[str, List[str]] = {}
    for name in sorted(cases, key=cases.__getitem__):
        found.setdefault(name.rsplit('/', 1)[0], []).append(name)
    return found


def times(result: Result, names: Sequence[str], key: str = 'ms') -> Dict[str, Dict[int, float]]:
    """Times, or peaks of memory, over the axis of some cases: by implementation, then by value on the axis."""
    found: Dict[str, Dict[int, float]] = {}
    for row in result['rows']:
        if row['case'] in names:
            value = result['cases'][row['case']]['axis'][1]
            for who, figure in ((row['implementation'], key), (row['against'], f'against_{key}')):
                if figure in row:
                    found.setdefault(who, {})[value] = row[figure]
    return found
