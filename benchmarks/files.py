"""Result files: read with a word about what is wrong, written whole or not at all."""

import json
from pathlib import Path
from typing import Any, Dict

from timm_extra._files import atomic_file


class NoResult(ValueError):
    """A file that is missing, no JSON or no result; the message names it."""


def load(file: Path) -> Dict[str, Any]:
    """Read a result file.

    Args:
        file: JSON that `python -m benchmarks --out` wrote.

    Returns:
        What it holds.

    Raises:
        NoResult: It is missing, no JSON or no result.
    """
    try:
        result = json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise NoResult(f'{file}: {error.strerror}') from error
    except ValueError as error:
        raise NoResult(f'{file} is not JSON: {error}') from error
    parts = (result.get('environment'), result.get('rows')) if isinstance(result, dict) else (None, None)
    if not isinstance(parts[0], dict) or not isinstance(parts[1], list):
        raise NoResult(f'{file} is not a result of the benchmarks: no environment and rows')
    if not parts[1]:
        raise NoResult(f'{file} has no rows: nothing was measured')
    for i, row in enumerate(result['rows']):
        if not isinstance(row, dict) or not {'name', 'device', 'correct'} <= row.keys():
            raise NoResult(f'{file} is not a result of the benchmarks: row {i} has no name, device and correctness')
        if not isinstance(row.get('sides'), dict) or 'ours' not in row['sides']:
            raise NoResult(f'{file}: row {row["name"]!r} has no sides; measure it again with this version')
    return result


def write(text: str, file: Path) -> None:
    """Write a text; a reader finds the old one or the new one.

    Args:
        text: What the file shall hold.
        file: Where to; its folder is made if absent.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as aside:
        aside.write_text(text, encoding='utf-8')
