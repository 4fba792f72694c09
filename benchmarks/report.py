"""What every result says about where it was measured."""

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict


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
