"""What somebody may have meant."""

import difflib
from typing import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """`: did you mean …?` for a word that is nearly a known one, else nothing."""
    found = difflib.get_close_matches(word, list(known), 1, cutoff=0.7)
    return f': did you mean {found[0]}?' if found else ''
