"""`python -m benchmarks`: this package against its peers, in turns, with ratios; no speed is told of a wrong result."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch

from . import compare, pages
from .alone import settle
from .environment import environment
from .files import load, write
from .harness import Case, run_case, slopes
from .roofline import measured_peak

EXAMPLES = """examples:
  python -m benchmarks --only ceit/small
  python -m benchmarks --out benchmarks/results/cpu.json
  python -m benchmarks --quick
  python -m benchmarks report benchmarks/results/cpu.json
  python -m benchmarks compare before.json after.json"""
VERBS: Dict[str, Callable[[List[str]], int]] = dict(compare=compare.main, report=pages.main)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'a whole number of at least 1 is needed, not {text!r}')
    return int(text)


def _arguments(argv: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=f'{__doc__} `report` and `compare` work on its results: report --help, compare --help.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--only', default='', metavar='PART', help='cases whose name contains PART')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--rounds',
        type=positive,
        default=20,
        help='samples of each side (default: %(default)s; no fewer than 5 where a case takes more than 30 s)',
    )
    parser.add_argument(
        '--quick', action='store_true', help='compare results only, measure nothing, leave out large cases'
    )
    parser.add_argument('--threads', type=positive, help="threads of all sides (default: torch's)")
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.json',
        help='write rows as they come, then the report beside it',
    )
    parser.add_argument('--resume', action='store_true', help='keep the correct rows of FILE.json, or of a run cut off')
    parser.add_argument('--list', action='store_true', help='list the cases, their sides and what is asked of them')
    args = parser.parse_args(argv)
    if args.resume and not args.out:
        parser.error('--resume goes with --out')
    return args


def _lines(row: Dict[str, Any], quick: bool) -> List[str]:
    """What is printed of a row: one line, and one more for every side that has no time."""
    ours = row['sides']['ours']
    lines = [f'{row["name"]:<48}']
    if not row['correct']:
        what = 'FAILED' if 'failed' in ours else 'WRONG' if 'wrong' in ours else 'NOT COMPARED'
        lines[0] += f'{what}, no speed reported'
    elif quick:
        lines[0] += 'ok'
    else:
        lines[0] += f'{ours["ms"]["median"]:>10.2f} ms' + _mib(ours)
    for name, side in row['sides'].items():
        if 'failed' in side:
            lines.append(f'    {name}: failed: {side["failed"]}')
        elif 'missing' in side:
            lines.append(f'    {name}: left out, {side["missing"]}')
        elif 'wrong' in side:
            found = (
                'other shape, or values that are not finite'
                if side['difference'] is None
                else f'{side["difference"]:.2g}'
            )
            lines.append(f'    {name}: differs from {row["reference"]} by {found}, allowed {row["atol"]:.2g}')
        elif 'speed' in side:
            speed = side['speed']
            lines.append(
                f'    {name:<44}{side["ms"]["median"]:>10.2f} ms{_mib(side)}  = {speed["median"]:.2f}×'
                f' ({speed["p10"]:.2f} to {speed["p90"]:.2f})'
            )
    return lines


def _mib(side: Dict[str, Any]) -> str:
    return f'{side["peak_mib"]:>8.0f} MiB' if 'peak_mib' in side else ''


def run(
    cases: List[Case],
    device: str,
    rounds: int,
    quick: bool = False,
    out: Optional[Path] = None,
    kept: Sequence[Dict[str, Any]] = (),
) -> Dict[str, Any]:
    """Measure cases, printing and writing as they come.

    Args:
        cases: What to measure.
        device: 'cpu' or 'cuda'.
        rounds: Most samples of each side.
        quick: Compare only.
        out: JSON to write; until the end it is called like that with '.part' behind.
        kept: Rows that the result has already.

    Returns:
        Environment, peaks of this machine, rows and slopes.
    """
    result: Dict[str, Any] = dict(environment=environment(device), rows=list(kept), slopes={})
    if not quick:
        result['peak'] = measured_peak(device)._asdict()
    for case in cases:
        row = run_case(case, device, rounds, quick)
        result['rows'].append(row)
        print('\n'.join(_lines(row, quick)), flush=True)
        result['slopes'] = slopes(result['rows'])
        if out:
            write(_text(result), part_of(out))
    for name, found in result['slopes'].items():
        sides = ', '.join(f'{side} {slope:.2f}' for side, slope in found.items() if side != 'axis')
        print(f'{name}: time grows with {found["axis"]} to the power of: {sides}')
    if out:
        write(_text(result), out)
        part_of(out).unlink(missing_ok=True)
    return result


def _text(result: Dict[str, Any]) -> str:
    return json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + '\n'


def part_of(out: Path) -> Path:
    """Where a result is written until it is whole."""
    return out.with_name(f'{out.name}.part')


def kept_rows(out: Path, device: str) -> List[Dict[str, Any]]:
    """Correct rows of a run that was cut off, or of a whole one; others may have failed for a reason that has gone.

    Raises:
        ValueError: There are none, or they are of another machine, commit or version.
    """
    file = part_of(out) if part_of(out).exists() else out
    found = load(file)
    now = environment(device)
    was = found['environment']
    differ = [f'{k} was {was.get(k)} and is {v}' for k, v in now.items() if k != 'date' and was.get(k) != v]
    if differ:
        raise ValueError(f'{file} cannot be resumed: {"; ".join(differ)}')
    return [row for row in found['rows'] if row['correct']]


def _list(cases: List[Case]) -> None:
    for case in cases:
        print(case.name)
        for name, side in case.sides.items():
            print(f'  {name}: {side.words}' + ('' if side.same else ' (a yardstick, results are not compared)'))
        for one in case.asked:
            print(f'  asked on {one.on}: {one.what} {one.value:g}' + (f' against {one.peer}' if one.peer else ''))


def main(argv: Optional[List[str]] = None, cases: Optional[List[Case]] = None) -> int:
    """Entry point.

    Args:
        argv: Command line; that of the process when None.
        cases: Cases to choose from; the registry when None.

    Returns:
        Exit status: 0, 1 when a result is wrong, 2 when there is nothing to do.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    args = _arguments(argv)
    if cases is None:
        from .cases.registry import CASES as cases
    chosen = [c for c in cases if args.only in c.name]
    if not chosen:
        print(f'benchmarks: no case contains {args.only!r}; --list shows them', file=sys.stderr)
        return 2
    if args.list:
        _list(chosen)
        return 0
    chosen = [c for c in chosen if (args.device == 'cuda' or not c.gpu) and not (args.quick and c.large)]
    if not chosen:
        need = (
            'are too large for --quick' if args.device == 'cuda' else 'need --device cuda, or are too large for --quick'
        )
        print(f'benchmarks: the cases that contain {args.only!r} {need}', file=sys.stderr)
        return 2
    if args.device == 'cuda' and not torch.cuda.is_available():
        print('benchmarks: --device cuda, but torch finds no GPU', file=sys.stderr)
        return 2
    for package in sorted({c.lacks for c in chosen} - {''}):
        names = [c.name for c in chosen if c.lacks == package]
        print(f'left out, as {package} is not installed (pip install "timm-extra[bench]"): {", ".join(names)}')
    chosen = [c for c in chosen if not c.lacks]
    settle(args.threads or torch.get_num_threads())
    try:
        kept = kept_rows(args.out, args.device) if args.resume else []
    except ValueError as error:
        print(f'benchmarks: {error}', file=sys.stderr)
        return 2
    chosen = [c for c in chosen if c.name not in {row['name'] for row in kept}]
    if not chosen:
        print('benchmarks: nothing is left to measure', file=sys.stderr)
        return 2
    result = run(chosen, args.device, args.rounds, args.quick, args.out, kept)
    if args.out and not args.quick:
        try:
            pages.write_page(result, args.out)
        except ModuleNotFoundError as error:
            print(f'no pictures: {error}')
    return 0 if all(row['correct'] for row in result['rows']) else 1


if __name__ == '__main__':
    sys.exit(main())
