"""What a training writes beside its checkpoints."""

import csv
from pathlib import Path
from typing import Any, Dict, List, Sequence

from timm_extra._files import atomic_file


class Log:
    """Rows in `log.csv`, and TensorBoard's events if wanted.

    Args:
        folder: Folder to write to, made if absent.
        columns: Names of the columns, `step` first.
        start: Step that the training goes on from; rows of it and later ones are dropped.
        tensorboard: Write events, too.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, columns: Sequence[str], start: int, tensorboard: bool):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / 'log.csv'
        rows = read_log(file) if start and file.exists() else []
        with atomic_file(file) as aside, open(aside, 'w', newline='') as out:
            writer = csv.DictWriter(out, columns, lineterminator='\n')
            writer.writeheader()
            writer.writerows(row for row in rows if int(row['step']) < start)
        self._out = open(file, 'a', newline='')  # noqa: SIM115 (open for the whole training)
        self._csv = csv.DictWriter(self._out, columns, lineterminator='\n')
        self._events = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as e:
                raise ModuleNotFoundError('events need tensorboard: pip install tensorboard') from e
            self._events = SummaryWriter(str(folder / 'tensorboard'), purge_step=start)

    def row(self, row: Dict[str, Any]) -> None:
        """Add a row; floats are written with all their digits."""
        self._csv.writerow(row)
        if self._events:
            for name, value in row.items():
                if name not in ('step', 'epoch'):
                    self._events.add_scalar(name, value, row['step'])

    def flush(self) -> None:
        """Write what is held back."""
        self._out.flush()

    def close(self) -> None:
        """Write what is held back and close."""
        self._out.close()
        if self._events:
            self._events.close()


def read_log(file: Path) -> List[Dict[str, str]]:
    """Rows of a log.csv, without one that was cut off."""
    with open(file, newline='') as lines:
        return [row for row in csv.DictReader(lines) if row['step'] and None not in row.values()]
