"""`python -m benchmarks`: this package against its peers, in one process, with ratios."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from .harness import Case, run_case, slopes
from .report import environment
from .suites import CASES

EXAMPLES = """examples:
  python -m benchmarks --only ceit
  python -m benchmarks --only ceit/small --rounds 30 --out benchmarks/results/ceit-cpu.json
  python -m benchmarks --quick"""


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'a whole number of at least 1 is needed, not {text!r}')
    return int(text)


def _arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--only', default='', metavar='PART', help='cases whose name contains PART')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=positive, default=20, help='samples of each side (default: 20)')
    parser.add_argument('--quick', action='store_true', help='three rounds: correctness, and hardly a measurement')
    parser.add_argument('--threads', type=positive, help="threads of both sides (default: torch's)")
    parser.add_argument('--out', type=Path, help='write the result as JSON')
    parser.add_argument('--list', action='store_true', help='list the cases')
    return parser.parse_args(argv)


def _line(row: Dict[str, Any]) -> str:
    if not row['correct']:
        if 'ours_failed' in row:
            return f'{row["name"]:<44} FAILED: {row["ours_failed"]}'
        return f'{row["name"]:<44} WRONG by {row["max_difference"]:.2g} (allowed {row["atol"]:.2g}): no speed reported'
    line = f'{row["name"]:<44}{row["ours_ms"]["median"]:>10.1f} ms'
    if 'other_failed' in row:
        line += f'  other failed: {row["other_failed"][-60:]}'
    else:
        speedup = row['speedup']
        line += f'{row["other_ms"]["median"]:>10.1f} ms{speedup["median"]:>8.2f}×'
        line += f'  ({speedup["p10"]:.2f} to {speedup["p90"]:.2f})' if 'rounds' in row else ''
    if 'floor_ms' in row:
        line += f'  floor {row["floor_ms"]:.3f} ms'
    if 'ours_peak_mib' in row:
        line += f'  peak {row["ours_peak_mib"]:.0f}'
        line += f' against {row["other_peak_mib"]:.0f} MiB' if 'other_peak_mib' in row else ' MiB'
    return line


def run(cases: List[Case], device: str, rounds: int) -> Dict[str, Any]:
    """Measure cases, printing a line each.

    Args:
        cases: What to measure.
        device: 'cpu' or 'cuda'.
        rounds: Samples of each side.

    Returns:
        Environment and rows, for a result file.
    """
    print(f'{"case":<44}{"ours":>13}{"other":>13}{"speedup":>9}  (p10 to p90)')
    rows = []
    for case in cases:
        rows.append(run_case(case, device, rounds))
        print(_line(rows[-1]), flush=True)
    result = dict(environment=environment(device), rows=rows)
    for name, slope in slopes(rows).items():
        result.setdefault('slopes', {})[name] = slope
        print(f'{name}: time grows with pixels to the power of {slope:.3f}')
    return result


def main(argv: Optional[List[str]] = None, cases: Optional[List[Case]] = None) -> int:
    """Entry point.

    Args:
        argv: Command line; that of the process when None.
        cases: Cases to choose from; the registry when None.

    Returns:
        Exit status: 0, 1 when a result is wrong, 2 when nothing matches.
    """
    args = _arguments(argv)
    chosen = [c for c in (CASES if cases is None else cases) if args.only in c.name]
    if not chosen:
        print(f'benchmarks: no case contains {args.only!r}; --list shows them', file=sys.stderr)
        return 2
    if args.device == 'cpu' and not args.list:
        chosen = [c for c in chosen if not c.gpu]
        if not chosen:
            print(f'benchmarks: the cases that contain {args.only!r} need --device cuda', file=sys.stderr)
            return 2
    if args.list:
        for case in chosen:
            print(f'{case.name}\n  ours: {case.ours}\n  other: {case.other}')
            if case.floor_ms is not None:
                print(f'  floor: {case.floor_ms:.3f} ms on an H100, counted')
        return 0
    if args.device == 'cuda' and not torch.cuda.is_available():
        print('benchmarks: --device cuda, but torch finds no GPU', file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    result = run(chosen, args.device, 3 if args.quick else args.rounds)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    return 0 if all(row['correct'] for row in result['rows']) else 1


if __name__ == '__main__':
    sys.exit(main())
