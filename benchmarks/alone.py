"""One side of a case in a process of its own: its time, and its peak memory beyond what was there before."""

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict

import torch

MEMORY_LIMIT = 20 * 2**30  # bytes of data a side may hold: it shall fail before the machine does
ENOUGH_SECONDS = 6.0


def run_alone(name: str, side: str, device: str) -> Dict[str, Any]:
    """Run one side of a registered case in a fresh process.

    Args:
        name: Name of the case.
        side: 'ours' or the name of a peer.
        device: 'cpu' or 'cuda'.

    Returns:
        `seconds`, `peak_mib` and `result`, or `failed` with the reason.
    """
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
    torch.set_num_threads(int(threads))
    if device == 'cpu':
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    (case,) = [c for c in CASES if c.name == name]
    made = case.sides[side].make(device)
    call = made.call if isinstance(made, Made) else made
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # memory that was freed while weights were made would hide what is needed now
        getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: 0)(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = _status('VmRSS')

    times = []
    while sum(times) < ENOUGH_SECONDS and len(times) < 20:
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
    print(json.dumps(dict(seconds=statistics.median(times[1:] or times), peak_mib=peak)))


if __name__ == '__main__':
    main()
