"""Results of a verb as one list of JSON."""

import json
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List


@contextmanager
def json_list(wanted: bool) -> Iterator[List[Dict[str, Any]]]:
    """A list that is printed at the end, after an error or Ctrl-C too: what is done by then is done.

    Args:
        wanted: Whether it is printed at all.

    Yields:
        The list, for the block to add to.
    """
    done: List[Dict[str, Any]] = []
    try:
        yield done
    finally:
        if wanted:
            print(json.dumps(done, indent=1))
