"""One implementation of a case in a fresh process: its time, and its peak of memory beyond weights and inputs.

`run_isolated` starts it; `python -m benchmarks.isolated CASE IMPLEMENTATION DEVICE RESULT` is that process.
"""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict

import torch

from .environment import memory_limit, settle

ENOUGH_SECONDS = 6.0
TOO_LONG_SECONDS = 60.0  # for a second call
OUT_OF_MEMORY = ('out of memory', 'allocate', 'memoryerror', 'bad_alloc', 'signal 9')


def reason(error: str) -> str:
    """Why something failed, in few words."""
    return 'out of memory' if any(w in error.lower() for w in OUT_OF_MEMORY) else ' '.join(error.split())[:200]


def release() -> None:
    """Give memory that is not used back to the system, where another process may need it."""
    gc.collect()
    getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: 0)(0)  # glibc's
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_isolated(case: str, name: str, device: str) -> Dict[str, Any]:
    """`seconds`, `peak_mib` and `result`, or `error`, of one implementation of a registered case in a fresh process."""
    release()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'result.pt'
        command = [sys.executable, '-m', 'benchmarks.isolated', case, name, device, str(out)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        if done.returncode < 0:
            return dict(error=reason(f'killed by signal {-done.returncode}'))
        if done.returncode:
            return dict(error=reason((done.stderr.strip().splitlines() or ['no reason given'])[-1]))
        return dict(json.loads(done.stdout.splitlines()[-1]), result=torch.load(out))


def status(field: str) -> float:
    """A field of this process's status in MiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f'{field}:')).split()[1]) / 1024


def main() -> None:
    """Entry point of the fresh process."""
    from .cases import CASES

    name, implementation, device, out = sys.argv[1:]
    settle()
    if device == 'cpu':
        import resource  # Windows has none; this process needs Linux's /proc, too

        resource.setrlimit(resource.RLIMIT_DATA, (int(memory_limit()),) * 2)
    (case,) = [c for c in CASES if c.name == name]
    made, cuda = case.implementations[implementation].ready(device), device == 'cuda'
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        release()  # memory that was freed while weights were made would hide what is needed now
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = status('VmRSS')
    times = []
    while not times or (
        case.isolated and sum(times[1:]) < ENOUGH_SECONDS and times[0] < TOO_LONG_SECONDS and len(times) < 20
    ):
        begin = time.perf_counter()
        result = made.call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        if len(times) == 1:  # the first call alone says what is needed: later ones find memory that was not given back
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else status('VmHWM') - before
    torch.save((made.checked() if made.checked else result).detach().cpu(), out)
    print(json.dumps(dict(seconds=statistics.median(times[1:] or times), peak_mib=peak)))


if __name__ == '__main__':
    main()
