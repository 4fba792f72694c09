"""Where something was measured."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict

import torch

from .alone import memory_limit

PACKAGES = (
    'torch',
    'timm',
    'triton',
    'timm-extra',
    'transformers',
    'perceiver-pytorch',
    'glom-pytorch',
    'byol-pytorch',
)


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


def _memory() -> Dict[str, float]:
    """What the machine has, and what a process that runs one side may hold."""
    whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return dict(memory_gib=round(whole / 2**30, 1), limit_gib=round(memory_limit() / 2**30, 1))


def environment(device: str = 'cpu') -> Dict[str, Any]:
    """Versions, device, threads, commit and time, for a result file; of a CPU the memory too."""
    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=_commit(),
        device=torch.cuda.get_device_name() if device == 'cuda' else _processor(),
        threads=torch.get_num_threads(),
        **(_memory() if device == 'cpu' else {}),
        python=platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    )
