"""What a training shows on stderr: a summary, then a bar on terminals and plain lines elsewhere."""

import sys
import time
from typing import Mapping

INTERVAL = 10.0  # seconds between plain lines


def print_summary(rows: Mapping[str, str]) -> None:
    """Show what is about to run, in a line each.

    Args:
        rows: Words to say by the name of what they are about; empty ones are left out.
    """
    width = max(map(len, rows))
    for name, words in rows.items():
        if words:
            print(f'{name:{width}}  {words}', file=sys.stderr)


class Progress:
    """Steps done: a tqdm bar where stderr is a terminal, else lines, at most one in `INTERVAL` seconds.

    To be used as a context manager. In other than the first process nothing is shown.

    Args:
        total: Steps of the whole training.
        start: Steps done before.
        shown: Show anything.
    """

    def __init__(self, total: int, start: int = 0, shown: bool = True):
        from tqdm import tqdm

        self.total, self.done = total, start
        self._start, self._clock, self._last = start, time.monotonic(), -INTERVAL
        self._shown = shown
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(initial=start, total=total, unit='step', mininterval=0.5)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """Count a step."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()

    def show(self, words: str) -> None:
        """Say how it goes, beside the bar or in a line: the first, the last, and others when it is time for one.

        Args:
            words: Such as 'loss 0.123'.
        """
        if self._bar is not None:
            self._bar.set_description(words, refresh=False)
        elif self._shown:
            now = time.monotonic()
            if self.done >= self.total or now - self._last >= INTERVAL:
                self._last = now
                print(f'step {self.done}/{self.total}  {words}  {self._times(now)}', file=sys.stderr, flush=True)

    def line(self, words: str) -> None:
        """Say something in a line of its own, which stays."""
        if self._bar is not None:
            self._bar.write(words, file=sys.stderr)
        elif self._shown:
            print(words, file=sys.stderr, flush=True)

    def _times(self, now: float) -> str:
        """Time passed, and an estimate of what is left."""
        from tqdm import tqdm

        passed, steps = now - self._clock, self.done - self._start
        left = f', {tqdm.format_interval(passed / steps * (self.total - self.done))} left' if steps else ''
        return f'{tqdm.format_interval(passed)} passed{left}'
