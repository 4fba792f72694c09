"""Floors of the operations: what counted work allows on GPUs and on the measured machine, as tables."""

from typing import Any, Dict, List, Optional

from .cases.operations import CASES
from .roofline import A100, H100, RULES, Peak, Work, floor_seconds


def sheet(result: Dict[str, Any]) -> List[str]:
    """Floors of the operations at the models' sizes, and of what a result measured.

    Args:
        result: What a result file holds.

    Returns:
        Lines of Markdown: a table in bfloat16 for two GPUs, with the times of the result where it has them from a GPU,
        then one for all other rows of the result whose work is counted.
    """
    here = Peak(**result['peak']) if 'peak' in result else None
    rows = {row['name']: row for row in result['rows'] if 'work' in row}
    kernels = {case.name: case.work for case in CASES if case.work and case.name.startswith('kernels/')}
    measured = [name for name in kernels if name in rows]
    lines = [RULES, '', 'In bfloat16:', '']
    columns = ['floor on A100, ms', 'floor on H100, ms', *(_measured_columns() if measured else [])]
    lines += _head(columns)
    for name, work in kernels.items():
        cells = [_floor(work, A100), _floor(work, H100)]
        if measured:
            cells += _measured(work, here, rows[name]) if name in rows else ['–'] * 3
        lines.append(_line(name, work, cells))
    others = {name: row for name, row in rows.items() if name not in kernels}
    if others:
        lines += ['', f'As measured on {result["environment"]["device"]}. What stays in caches can beat the floor:', '']
        lines += _head(_measured_columns())
        for name, row in others.items():
            work = Work(**row['work'])
            lines.append(_line(name, work, _measured(work, here, row)))
    return lines


def _measured_columns() -> List[str]:
    return ['floor on this machine, ms', 'measured, ms', 'measured / floor']


def _head(columns: List[str]) -> List[str]:
    columns = ['operation and size', 'MB', 'GFLOP', 'special functions, 10⁶', *columns]
    return [f'| {" | ".join(columns)} |', '|---' + '|---:' * (len(columns) - 1) + '|']


def _line(name: str, work: Work, cells: List[str]) -> str:
    counted = [f'{work.bytes / 1e6:.3g}', f'{work.flops / 1e9:.3g}', f'{work.special / 1e6:.3g}']
    return f'| {" | ".join([f"`{name}`", *map(_plain, counted), *cells])} |'


def _plain(number: str) -> str:
    """Three digits without an exponent."""
    return f'{float(number):,.0f}' if 'e+' in number else number


def _floor(work: Work, peak: Optional[Peak]) -> str:
    if peak is None:
        return '–'
    seconds, bound = floor_seconds(work, peak)
    return f'{_plain(f"{seconds * 1e3:.3g}")} ({bound})'


def _measured(work: Work, peak: Optional[Peak], row: Dict[str, Any]) -> List[str]:
    """Floor, milliseconds of ours and their ratio."""
    if 'ms' not in row['sides']['ours']:
        return [_floor(work, peak), '–' if row['correct'] else 'wrong', '–']
    ms = row['sides']['ours']['ms']['median']
    ratio = '–' if peak is None else f'{ms / (1e3 * floor_seconds(work, peak)[0]):.3g}'
    return [_floor(work, peak), _plain(f'{ms:.3g}'), _plain(ratio) if peak else ratio]
