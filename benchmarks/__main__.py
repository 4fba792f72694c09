"""`python -m benchmarks`: ours against the originals, in turns, with ratios; a wrong result has no time."""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import List, Optional

import torch

from .case import Case
from .environment import environment, settle, slug
from .report import COLUMNS, RESULTS, write_report
from .results import Result, write
from .roofline import measured_peak
from .runner import Row, run_case

NO_GPU = (
    'torch finds no GPU; with one, this tests the kernels on it, measures them beside other libraries, tries other '
    'tiles and writes a JSON named after it'
)


def arguments(argv: List[str]) -> argparse.Namespace:
    """Parse a command line."""
    parser = argparse.ArgumentParser('python -m benchmarks', description=__doc__)
    parser.add_argument(
        'verb',
        nargs='?',
        choices=['report', 'gpu'],
        help='rewrite the report of a folder; test and measure kernels on a GPU',
    )
    parser.add_argument('--only', nargs='+', default=[''], metavar='PART', help='cases whose name contains a PART')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=20, help='most samples of each implementation (%(default)s)')
    parser.add_argument('--quick', action='store_true', help='compare results, measure nothing, leave out large cases')
    parser.add_argument(
        '--out', type=Path, metavar='FOLDER', help='for a JSON named after the processor, and the report'
    )
    parser.add_argument('--minutes', type=float, default=12.0, help='of gpu: begin nothing after them (%(default)s)')
    parser.add_argument('--list', action='store_true', help='list the cases and their implementations')
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, not {args.rounds}')
    return args


def _printed(row: Row, result: Result) -> str:
    verdict = {True: 'correct', False: 'WRONG', None: 'not compared'}[row['correct']]
    cells = [COLUMNS[name](row, result) for name in ('ratio', 'time', 'memory, MiB')]
    return f'{row["case"]:<44} {row["against"]:<18} {verdict:<13}' + '  '.join(cell for cell in cells if cell != '–')


def run(
    cases: List[Case], device: str, rounds: int, quick: bool, folder: Optional[Path], until: float = math.inf
) -> List[Row]:
    """Rows of cases, printed and written into a folder as they come; none is begun after `until`, in monotonic time."""
    about = {case.name: case.about for case in cases}
    result: Result = dict(environment=environment(device), cases=about, rows=[])
    file = folder / f'{slug(result["environment"]["processor"])}.json' if folder and not quick else None
    if file:
        result['peak'] = measured_peak(device)._asdict()
    for i, case in enumerate(cases):
        if time.monotonic() > until:
            print('no time was left for', *(late.name for late in cases[i:]))
            break
        rows = run_case(case, device, rounds, quick)
        result['rows'] += rows
        print('\n'.join(_printed(row, result) for row in rows), flush=True)
        if file:
            result['environment']['load_at_end'] = round(os.getloadavg()[0], 2)
            write(result, file)
    return result['rows']


def _chosen(args: argparse.Namespace, cases: List[Case]) -> List[Case]:
    """The cases to run or list; ValueError where there are none."""
    chosen = [case for case in cases if any(part in case.name for part in args.only)]
    if not chosen:
        raise ValueError(f'no case contains {", ".join(map(repr, args.only))}; --list shows them')
    if args.list:
        return chosen
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda, but torch finds no GPU')
    chosen = [c for c in chosen if args.device == 'cuda' or not c.gpu]
    if args.quick:
        chosen = [c for c in chosen if c.compared and not c.large]
    for case in chosen:
        if case.lacks:
            print(f'{case.name} is left out, as {case.lacks} is not installed (pip install "timm-extra[bench]")')
    chosen = [c for c in chosen if not c.lacks]
    if not chosen:
        raise ValueError('all these cases need a GPU or a package, or are not for --quick')
    return chosen


def main(argv: Optional[List[str]] = None, cases: Optional[List[Case]] = None) -> int:
    """Run a command line, with the given cases or all: status 0, 1 when a result is wrong, 2 for nothing to do."""
    args = arguments(sys.argv[1:] if argv is None else argv)
    try:
        if args.verb == 'report':
            print('\n'.join(map(str, write_report(args.out or RESULTS))))
            return 0
        if args.verb == 'gpu' and not torch.cuda.is_available():
            raise ValueError(NO_GPU)
        if cases is None:
            from .cases import CASES as cases
        if args.verb == 'gpu':
            from .gpu import run_gpu

            settle()
            return run_gpu(cases, run, args.out or RESULTS, args.minutes)
        chosen = _chosen(args, cases)
    except ValueError as error:
        print(f'benchmarks: {error}', file=sys.stderr)
        return 2
    if args.list:
        for case in chosen:
            for name, one in case.implementations.items():
                print(f'{case.name}  {name}{", a baseline" if one.baseline else ""}: {one.words}')
        return 0
    settle()
    rows = run(chosen, args.device, args.rounds, args.quick, args.out)
    if args.out and not args.quick:
        write_report(args.out)
    return 1 if any(row['correct'] is False for row in rows) else 0


if __name__ == '__main__':
    sys.exit(main())
