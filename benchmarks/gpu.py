"""`python -m benchmarks gpu`: kernel tests on the GPU, the operations beside other libraries, then other tiles."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List
from unittest import mock

import torch

from timm_extra_kernels import _dispatch
from timm_extra_kernels._spec import SPECS

from .case import OURS, Case
from .environment import slug
from .report import write_report
from .results import write
from .tuning import best, tune

ROOT = Path(__file__).resolve().parents[1]
GATE = 'kernels/tests/test_ops.py'  # every kernel against its definition in float64, in every dtype
MEASURED = 0.75  # of the time, the rest is for tiles
ROUNDS = 5


def first_things_first(cases: List[Case]) -> List[Case]:
    """The first case of every operation, then the second: a run that is cut off has something of all."""
    seen: Dict[str, int] = {}
    places = []
    for case in cases:
        operation = '/'.join(case.name.split('/')[:2])
        places.append(seen.setdefault(operation, 0))
        seen[operation] += 1
    return [case for _, case in sorted(zip(places, cases, strict=True), key=lambda pair: pair[0])]


def gate() -> bool:
    """Whether the kernels are right on this GPU."""
    workers = ['-n', str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec('xdist') else []
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', *workers, GATE]
    return not subprocess.run(command, cwd=ROOT, env={**os.environ, 'TRITON_INTERPRET': '0'}).returncode


def run_gpu(cases: List[Case], run: Callable[..., List[Dict[str, Any]]], folder: Path, minutes: float) -> int:
    """Run everything within a time: status 0, 1 when a test or a result is wrong.

    Args:
        cases: The cases that there are.
        run: Measures cases and writes them, as `benchmarks.__main__.run` does.
        folder: For the JSON named after the GPU, and the report.
        minutes: After which no further case or choice of tiles is begun.
    """
    begin = time.monotonic()
    print(f'gate: {GATE}', flush=True)
    if not gate():
        print('gate: red, so nothing is measured')
        return 1
    chosen = first_things_first([case for case in cases if case.name.startswith('kernels/')])
    with mock.patch.object(_dispatch, 'RAISED', (Exception,)):  # no row of ours is PyTorch in the place of a kernel
        rows = run(chosen, 'cuda', ROUNDS, False, folder, begin + 60 * MEASURED * minutes)
    wrong = any(row['correct'] is False for row in rows)
    if wrong:
        print('a result is wrong, so no other tiles are tried')
    else:
        _tune(chosen, folder, begin + 60 * minutes)
    write_report(folder)
    return 1 if wrong else 0


def _tune(cases: List[Case], folder: Path, until: float) -> None:
    """Try other tiles for the cases of operations that have them, and add what was found to the GPU's JSON."""
    from triton.testing import do_bench

    file = folder / f'{slug(torch.cuda.get_device_name())}.json'
    result = json.loads(file.read_text(encoding='utf-8'))
    result['tuning'] = []
    kernels = {spec.name: spec.kernel for spec in SPECS}
    for case in cases:
        kernel = kernels.get(case.name.split('/')[1])
        if not hasattr(kernel, 'config') or case.isolated or time.monotonic() > until:
            continue
        ready = case.implementations[OURS].ready('cuda')
        for row in tune(case.name, kernel, ready, do_bench, case.tolerance, until):
            result['tuning'].append(row)
            write(result, file)
    print('\n'.join(best(result['tuning'])) or 'no time was left for other tiles')
