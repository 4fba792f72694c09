"""One side of a case in a process of its own: its time, and its peak memory beyond what was there before."""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict

import torch

ENOUGH_SECONDS = 6.0
TOO_LONG_SECONDS = 60.0  # for a second call


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
        command = [sys.executable, '-m', 'benchmarks.alone', name, side, device, str(torch.get_num_threads()), str(out)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        if done.returncode:
            if done.returncode < 0:
                return dict(failed=f'killed by signal {-done.returncode}')
            return dict(failed=(done.stderr.strip().splitlines() or ['no reason given'])[-1][:200])
        return dict(json.loads(done.stdout.splitlines()[-1]), result=torch.load(out))


def _status(field: str) -> float:
    """A field of this process's status in MiB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def main() -> None:
    """Entry point of the fresh process."""
    import resource

    from .cases.registry import CASES
    from .harness import Made

    name, side, device, threads, out = sys.argv[1:]
    settle(int(threads))
    if device == 'cpu':
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory_limit()),) * 2)
    (case,) = [c for c in CASES if c.name == name]
    made = case.sides[side].make(device)
    call = made.call if isinstance(made, Made) else made
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        release()  # memory that was freed while weights were made would hide what is needed now
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = _status('VmRSS')

    times = []
    while not times or (sum(times[1:]) < ENOUGH_SECONDS and times[0] < TOO_LONG_SECONDS and len(times) < 20):
        begin = time.perf_counter()
        result = call()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        if len(times) == 1:  # the first call alone says what is needed: later ones find memory that was not given back
            peak = (
                (torch.cuda.max_memory_allocated() - before) / 2**20 if device == 'cuda' else _status('VmHWM') - before
            )
    torch.save(result.detach().cpu(), out)
    timed = times[1:] or times
    print(json.dumps(dict(seconds=statistics.median(timed), calls=len(timed), peak_mib=peak)))


if __name__ == '__main__':
    main()
