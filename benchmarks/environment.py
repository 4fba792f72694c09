"""Where something was measured, and equal terms for all who are."""

import os
import platform
import re
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Dict

import torch

from timm_extra_kernels.linear import processors

PACKAGES = (
    'torch',
    'timm',
    'triton',
    'timm-extra',
    'ffpa-attn',
    'flash-attn',
    'transformers',
    'perceiver-pytorch',
    'glom-pytorch',
    'byol-pytorch',
)


def settle() -> None:
    """float32 is float32, on GPUs too."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _memory() -> int:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def memory_limit() -> float:
    """Bytes of data that a fresh process may hold on a CPU: it shall fail before the machine does."""
    return min(20 * 2**30, 0.8 * _memory())


def processor(device: str = 'cpu') -> str:
    """Name of the CPU or GPU."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    about = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*:\s*(.+)', about.read_text()) if about.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    chosen = processors.choice()
    return f'{name}, {chosen.processor.removeprefix("AMD ")}' if isinstance(chosen, processors.Choice) else name


def slug(processor: str) -> str:
    """Name of a processor as that of a file: 'Intel(R) Xeon(R) Processor' is 'intel-xeon'."""
    plain = re.sub(r'\(\w+\)|\b(Processor|CPU)\b|@.*', ' ', processor)
    return '-'.join(re.findall(r'[a-z0-9]+', plain.lower()))


def driver() -> str:
    """The driver of a GPU, as NVIDIA's tool says; empty where there is none."""
    if not shutil.which('nvidia-smi'):
        return ''
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    return subprocess.run(command, capture_output=True, text=True).stdout.split('\n')[0].strip()


def _commit() -> str:
    here = dict(cwd=Path(__file__).parent, capture_output=True, text=True)
    commit, changes = (subprocess.run(['git', *a.split()], **here).stdout for a in ('rev-parse HEAD', 'status -s'))
    return commit.strip() + (' with changes' if changes else '')


def environment(device: str = 'cpu') -> Dict[str, Any]:
    """Processor, threads, load, memory, versions, commit and date."""
    installed = {package.metadata['Name']: package.version for package in distributions()}
    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=_commit(),
        processor=processor(device),
        device=device,
        **(dict(driver=driver(), cuda=torch.version.cuda or torch.version.hip) if device == 'cuda' else {}),
        threads=torch.get_num_threads(),
        load_at_start=round(os.getloadavg()[0], 2),  # processes that ran or waited in the last minute
        memory_gib=round(_memory() / 2**30, 1),
        limit_gib=round(memory_limit() / 2**30, 1),
        python=platform.python_version(),
        **{package: installed.get(package, 'not installed') for package in PACKAGES},
    )
