"""One side of a case in a process of its own: its time, and its peak memory beyond what was there before."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

import torch


def memory_limit() -> float:
    """Bytes of data a side may hold on a CPU: it shall fail before the machine does."""
    return min(20 * 2**30, 0.8 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


def settle(threads: int) -> None:
    """Equal terms: as many threads for every side, and float32 that is float32 on GPUs too."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def release() -> None:
    """Give memory that is not used back to the system, where another process may need it."""
    gc.collect()
    getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: 0)(0)  # glibc's
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_alone(name: str, side: str, device: str) -> Dict[str, Any]:
    """Run one side of a registered case in a fresh process.

    Args:
        name: Name of the case.
        side: 'ours' or the name of a peer.
        device: 'cpu' or 'cuda'.

    Returns:
        `seconds`, `calls`, `peak_mib` and `result`, or `failed` with the reason.
    """
    release()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'result.pt'
        command = [
            sys.executable,
            '-m',
            'benchmarks.alone_process',
            name,
            side,
            device,
            str(torch.get_num_threads()),
            str(out),
        ]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        if done.returncode:
            if done.returncode < 0:
                return dict(failed=f'killed by signal {-done.returncode}')
            return dict(failed=(done.stderr.strip().splitlines() or ['no reason given'])[-1][:200])
        return dict(json.loads(done.stdout.splitlines()[-1]), result=torch.load(out))
