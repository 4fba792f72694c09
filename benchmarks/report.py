"""What every result says about where it was measured, and results as Markdown."""

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List


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


def environment(device: str = 'cpu') -> Dict[str, Any]:
    """Versions, device, threads, commit and time, for a result file."""
    import torch

    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=_commit(),
        device=torch.cuda.get_device_name() if device == 'cuda' else _processor(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        **{package: _version(package) for package in ('torch', 'timm', 'triton', 'timm-extra', 'transformers')},
    )


def markdown(result: Dict[str, Any]) -> List[str]:
    """Tables of a result file: ratios of alternating rounds, then time and memory over sizes.

    Args:
        result: What a result file holds.

    Returns:
        Lines of Markdown.
    """
    lines: List[str] = []
    together = [r for r in result['rows'] if 'rounds' in r]
    if together:
        lines += ['| case | speed | extra peak memory, MiB |', '|---|---|---|']
        lines += [f'| `{r["name"]}` | {r["speedup"]["median"]:.2f}× | {_memory(r)} |' for r in together]
    groups: Dict[str, List[Dict[str, Any]]] = {}
    for row in result['rows']:
        if row.get('pixels') and row['correct']:
            groups.setdefault(row['name'].rsplit('/', 1)[0], []).append(row)
    for name, rows in groups.items():
        lines += ['', f'| `{name}` | ours | other |', '|---|---|---|']
        for row in rows:
            side = row['name'].rsplit('/', 1)[1]
            cells = [_cell(row, s) for s in ('ours', 'other')]
            lines.append(f'| {side} × {side} | {cells[0]} | {cells[1]} |')
    return lines


def _memory(row: Dict[str, Any]) -> str:
    if 'ours_peak_mib' not in row:
        return '–'
    return f'{row["ours_peak_mib"]:.0f} instead of {row["other_peak_mib"]:.0f}'


def _cell(row: Dict[str, Any], side: str) -> str:
    if f'{side}_failed' in row:
        return 'out of memory (20 GiB)' if 'allocate' in row[f'{side}_failed'] else 'fails'
    return f'{row[f"{side}_ms"]["median"] / 1e3:.2f} s, {row[f"{side}_peak_mib"]:,.0f} MiB'


if __name__ == '__main__':
    for file in sys.argv[1:]:
        print('\n'.join(markdown(json.loads(Path(file).read_text()))))
