"""Checkpoints that are there whole or not at all."""

import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from torch import nn

from timm_extra._files import WRITING, atomic_file

NAME = 'step-{:08}.pt'
PATTERN = re.compile(r'step-(\d{8,})\.pt')


def write(state: Dict[str, Any], file: Path) -> None:
    """Write aside, flush, and move into place.

    Args:
        state: Tensors, numbers and strings in dictionaries and lists.
        file: Where to.

    Raises:
        OSError: It cannot be written; no file is left behind and those there stay.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(file) as aside:
            torch.save(state, aside)
    except (OSError, RuntimeError) as e:  # RuntimeError: what torch raises on a full disk
        raise OSError(f'{file} could not be written ({e}); earlier checkpoints are as they were') from e


def read(file: Path) -> Dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        ValueError: It is none.
    """
    try:
        state = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as e:
        raise ValueError(
            f'{file} is no checkpoint of a training: {type(e).__name__}: {str(e).partition(chr(10))[0]}'
        ) from e
    if not isinstance(state, dict) or 'step' not in state or 'settings' not in state:
        raise ValueError(f'{file} is no checkpoint of a training: it has no step and no settings')
    return state


def steps(folder: Path) -> List[int]:
    """Steps that a folder has checkpoints of, in order."""
    names = (PATTERN.fullmatch(file.name) for file in folder.glob('step-*.pt'))
    return sorted(int(name[1]) for name in names if name)


def clean(folder: Path) -> None:
    """Delete what a training that was killed while writing has left.

    Args:
        folder: Folder of the checkpoints, in the folder of the training.
    """
    for file in folder.glob('.*.step-*.pt'):
        file.unlink()
    for pattern in (f'{WRITING}*', f'*/{WRITING}*'):  # of models
        for aside in folder.parent.glob(pattern):
            shutil.rmtree(aside)


def prune(folder: Path, keep: int, best: Optional[int]) -> None:
    """Delete all but the last ones and the best.

    Args:
        folder: Folder of the checkpoints.
        keep: How many of the last.
        best: Step of the best.
    """
    for step in steps(folder)[:-keep]:
        if step != best:
            (folder / NAME.format(step)).unlink()


def described(value: Any) -> Any:
    """An argument as something that a checkpoint can hold and that is the same in another process."""
    if isinstance(value, (tuple, list)):
        return [described(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, nn.Module):
        return ' '.join(repr(value).split())
    return getattr(value, '__qualname__', type(value).__name__)


def differences(
    saved: Dict[str, Any],
    now: Dict[str, Any],
    options: Optional[Dict[str, str]] = None,
    defaults: Optional[Dict[str, Any]] = None,
) -> List[str]:
    """What differs between settings, in words.

    Args:
        saved: Settings before.
        now: Settings now.
        options: Options that settings come from, where those have another name.
        defaults: What settings are that were not given; None where they are not here either.
    """
    found, defaults = [], defaults or {}
    for key in dict.fromkeys([*saved, *now]):
        was, is_now = (settings.get(key, described(defaults.get(key))) for settings in (saved, now))
        if was != is_now:
            found.append(f'`{(options or {}).get(key, key)}` was {was!r} and is {is_now!r}')
    return found
