"""The least time that counted work allows: bytes moved, operations on matrices, special functions."""

import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch

SAMPLES = 4  # of which the best counts; the first also warms up
RULES = (
    'Counted per forward pass: inputs read once and the result written once; two operations per multiply-add of the '
    'products (of the separated ones for Fourier features); one exponential per score, two error functions per '
    'element of LeFF. A step reads the inputs again and the gradient of the result and writes the gradients of the '
    'inputs, with three times the operations and twice the special functions.'
)


@dataclass(frozen=True)
class Work:
    """What one call cannot do without.

    Attributes:
        bytes: Inputs read once and outputs written once.
        flops: Operations of products, two per multiply-add.
        special: Special functions (exponentials, error functions).
    """

    bytes: float
    flops: float
    special: float


class Peak(NamedTuple):
    """What a machine can do per second: bytes copied, operations on matrices, special functions."""

    bytes: float
    flops: float
    special: float


# 80 GB, SXM: bytes are 0.9 of the 2.0e12 of the datasheet, as a copy has them; dense bfloat16 products are the
# datasheet's; special functions are counted, 16 a clock on each multiprocessor
A100 = Peak(bytes=1.8e12, flops=312e12, special=108 * 16 * 1.41e9)
H100 = Peak(bytes=3.0e12, flops=800e12, special=132 * 16 * 1.755e9)  # copy and products as measured, the rest counted


def measured_peak(device: str) -> Peak:
    """Measure what this machine can do.

    Args:
        device: 'cpu' (products in float32) or 'cuda' (products in bfloat16).

    Returns:
        The best of a few samples of a copy far larger than caches, of a product of square matrices and, on the CPU, of
        exponentials in cache. A GPU's special functions are counted: alone they would wait for memory.
    """
    return Peak(_copied(device), _multiplied(device), _special(device))


def _copied(device: str) -> float:
    source = torch.ones(2**30 if device == 'cuda' else 2**27, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _best(lambda: target.copy_(source), device)


def _multiplied(device: str) -> float:
    side, dtype = (8192, torch.bfloat16) if device == 'cuda' else (2048, torch.float32)
    a = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return 2 * side**3 / _best(lambda: torch.mm(a, a, out=out), device)


def _special(device: str) -> float:
    if device == 'cuda':
        about = torch.cuda.get_device_properties(device)
        return about.multi_processor_count * 16 * about.clock_rate * 1e3  # the rate is in kHz
    x = torch.linspace(-10, 0, 2**18)
    out = torch.empty_like(x)
    return x.numel() / _best(lambda: torch.exp(x, out=out), device, repeats=100)


def _best(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Seconds of one call in the best sample."""
    times = []
    for _ in range(SAMPLES):
        if device == 'cuda':
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / repeats)
    return min(times)


def floor_seconds(work: Work, peak: Peak) -> Tuple[float, str]:
    """Seconds that no implementation can beat on a machine, and what sets them.

    Args:
        work: What is to be done.
        peak: What the machine can do.

    Returns:
        The seconds, and 'bytes', 'flops' or 'special'.
    """
    seconds = {part: getattr(work, part) / getattr(peak, part) for part in Peak._fields}
    bound = max(seconds, key=seconds.__getitem__)
    return seconds[bound], bound


def sheet(result: Dict[str, Any]) -> List[str]:
    """Floors of the operations at the models' sizes, and of what a result measured.

    Args:
        result: What a result file holds.

    Returns:
        Lines of Markdown: a table in bfloat16 for two GPUs, with the times of the result where it has them from a GPU,
        then one for all other rows of the result whose work is counted.
    """
    from .cases.operations import CASES  # not above: cases import the harness, and that this module

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
