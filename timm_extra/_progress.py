"""The bar of what goes through files, and lines beside it."""

from contextlib import contextmanager
from typing import Callable, Iterator, Optional, TextIO


@contextmanager
def progress_bar(total: Optional[int], unit: str, shown: bool = True) -> Iterator[Callable[[int], object]]:
    """A bar on stderr that is removed at the end of the block.

    Args:
        total: How many there are; None if that is not known.
        unit: What one is called.
        shown: Whether there is one at all. Without tqdm there is none either: it is no reason to fail.

    Yields:
        What takes how many more are done.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        shown = False
    if not shown:
        yield lambda count: None
        return
    with tqdm(total=total, unit=unit, mininterval=0.5, leave=False) as bar:
        yield bar.update


def print_line(text: str, file: Optional[TextIO] = None) -> None:
    """Print as `print` does, above the bar where one is shown: in a terminal the two would share a line.

    Args:
        text: What is printed, without the end of its last line.
        file: Where to; stdout when None.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # and so there is no bar
        print(text, file=file)
    else:
        tqdm.write(text, file=file)
