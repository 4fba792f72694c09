"""Ctrl-C that waits for the step that is running."""

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator

PASSED_ON = 1.0  # seconds within which a launcher passes Ctrl-C on


class Interrupted(KeyboardInterrupt):
    """A training that Ctrl-C has ended in good order; the message says how to go on with it."""


@dataclass
class Interruption:
    """Whether Ctrl-C came.

    Attributes:
        came: It came.
        at: When, by `time.monotonic`.
    """

    came: bool = False
    at: float = 0.0


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Note the first Ctrl-C instead of raising it, for a loop that acts on it between two steps.

    The second one raises KeyboardInterrupt, as ever; not if it is the first once more, which `torchrun` and `accelerate
    launch` pass on to processes that had it from the terminal. Where signals cannot be handled (outside the main
    thread), or something else than Python's own handler is in charge of them, all stays as it is.

    Yields:
        What says whether it came.
    """
    found, launched = Interruption(), 'RANK' in os.environ
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield found
        return

    def note(number, frame) -> None:
        again = found.came and not (launched and time.monotonic() - found.at < PASSED_ON)
        found.came, found.at = True, time.monotonic()
        if again:
            before(number, frame)

    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread
        yield found
        return
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ignored_by_processes() -> Iterator[None]:
    """Let processes that are started in the block ignore Ctrl-C from their first moment on.

    Spawned ones import PyTorch first, and would end in tracebacks then. On Windows, where this is not inherited,
    `ignore_interrupts` takes over when they have started.
    """
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_interrupts(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: Ctrl-C reaches the workers too, and the step that is running still needs them.

    Args:
        worker: Number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
