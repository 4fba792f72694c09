"""What other tiles of the kernels take: those beside the ones that an operation's `tiles.py` chooses, on a GPU."""

import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List
from unittest import mock

from timm_extra_kernels import _dispatch

from .case import Ready

Row = Dict[str, Any]
STEPS: Dict[str, Callable[[int], List[int]]] = {  # by field of tiles, what lies beside a value
    'rows': lambda n: [n // 2, 2 * n],
    'keys': lambda n: [n // 2],  # inputs are padded for no more than the present ones
    'stages': lambda n: [n - 1, n + 1],
    'warps': lambda n: [n // 2, 2 * n],
}
LEAST = dict(rows=16, keys=16, stages=1, warps=1)


def beside(tiles: Any) -> Iterator[Any]:
    """Tiles that differ from these in one field."""
    for field, step in STEPS.items():
        for value in step(getattr(tiles, field)):
            if value >= LEAST[field]:
                yield tiles._replace(**{field: value})


@contextmanager
def _choosing(kernel: Any, choose: Callable[..., Any]) -> Iterator[None]:
    """Launches within take the tiles of `choose`, which takes those of `tiles.py` and what they were chosen by."""
    config = kernel.config
    raised = mock.patch.object(_dispatch, 'RAISED', (Exception,))  # PyTorch is not to take what does not run
    with raised, mock.patch.object(kernel, 'config', lambda *args: choose(config(*args), *args)):
        yield


def tune(
    name: str, kernel: Any, ready: Ready, measure: Callable[[Callable], float], tolerance: float, until: float
) -> Iterator[Row]:
    """A row for every choice of tiles of a call, the present ones of each kernel first.

    Args:
        name: Of the case.
        kernel: The module whose `config` gives tiles with `rows`, `keys`, `stages` and `warps` by a kernel's role.
        ready: The call.
        measure: Milliseconds of a call.
        tolerance: Largest difference from the result with the present tiles.
        until: `time.monotonic` after which nothing new is tried.
    """
    present: Dict[Any, Any] = {}

    def noted(tiles: Any, *args: Any) -> Any:
        if all(hasattr(tiles, field) for field in STEPS):
            present[args] = tiles
        return tiles

    with _choosing(kernel, noted):
        expected = ready.checked()
    if not present:
        return
    now = measure(ready.call)
    for args, tiles in present.items():
        yield dict(case=name, kernel=str(args[0]), tiles=dict(tiles._asdict()), ms=now, present=True)
        for other in beside(tiles):
            if time.monotonic() > until:
                return
            row: Row = dict(case=name, kernel=str(args[0]), tiles=dict(other._asdict()))

            def chosen(usual: Any, *given: Any, args: Any = args, other: Any = other) -> Any:
                return other if given == args else usual

            try:
                with _choosing(kernel, chosen):
                    difference = float((ready.checked() - expected).abs().max())
                    if difference <= tolerance:
                        row['ms'] = measure(ready.call)
                    else:
                        row['error'] = f'differs by {difference:.2g}, allowed {tolerance:.2g}'
            except Exception as error:  # such as more shared memory than there is
                row['error'] = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            yield row


def best(rows: List[Row]) -> List[str]:
    """Lines: for each kernel of each case the present tiles, how many others were tried, and the fastest."""
    lines = []
    for key in dict.fromkeys((row['case'], row['kernel']) for row in rows):
        tried = [row for row in rows if (row['case'], row['kernel']) == key]
        timed = [row for row in tried if 'ms' in row]
        now, fastest = tried[0], min(timed, key=lambda row: row['ms'])
        lines.append(
            f'{key[0]} {key[1]}: {now["ms"]:.4g} ms with {_words(now)}; '
            f'of {len(tried) - 1} others {len(timed) - 1} run, '
            + ('none is faster' if fastest is now else f'the fastest {fastest["ms"]:.4g} ms with {_words(fastest)}')
        )
    return lines


def _words(row: Row) -> str:
    return ', '.join(f'{field} {row["tiles"][field]}' for field in STEPS)
