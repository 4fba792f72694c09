"""Where something was measured, and equal terms for all who are."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict

import torch

ORIGINALS = ('transformers', 'perceiver-pytorch', 'glom-pytorch', 'byol-pytorch')
PACKAGES = ('torch', 'timm', 'triton', 'timm-extra', *ORIGINALS)


def settle() -> None:
    """float32 is float32, on GPUs too."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def memory_limit() -> float:
    """Bytes of data that a fresh process may hold on a CPU: it shall fail before the machine does."""
    return min(20 * 2**30, 0.8 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


def load() -> float:
    """Processes that ran or waited in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def processor(device: str = 'cpu') -> str:
    """Name of the CPU or GPU."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    try:
        return re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def slug(processor: str) -> str:
    """Name of a processor as that of a file: 'Intel(R) Xeon(R) Processor' is 'intel-xeon'."""
    plain = re.sub(r'\(\w+\)|\b(Processor|CPU)\b|@.*', ' ', processor)
    return '-'.join(re.findall(r'[a-z0-9]+', plain.lower()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not installed'


def _commit() -> str:
    def git(*args: str) -> str:
        done = subprocess.run(['git', *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + (' with changes' if git('status', '--porcelain') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def environment(device: str = 'cpu') -> Dict[str, Any]:
    """Processor, threads, load, memory, versions, commit and date."""
    whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=_commit(),
        processor=processor(device),
        device=device,
        threads=torch.get_num_threads(),
        load_at_start=load(),
        memory_gib=round(whole / 2**30, 1),
        limit_gib=round(memory_limit() / 2**30, 1),
        python=platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    )
