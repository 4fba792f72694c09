"""The fresh process of `alone.run_alone`: one side of one case, its time and its peak of memory."""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

from .alone import memory_limit, release, settle
from .cases.registry import CASES
from .harness import Made

ENOUGH_SECONDS = 6.0
TOO_LONG_SECONDS = 60.0  # for a second call


def _status(field: str) -> float:
    """A field of this process's status in MiB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def main() -> None:
    """Entry point of the fresh process."""
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
