"""What a training writes beside its checkpoints."""

import csv
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from timm_extra._files import atomic_file

PROJECT = 'timm-extra'  # that runs belong to, where a tracker has projects


class Log:
    """Rows in `log.csv`, and in the tracker that an accelerator has; for the first process alone.

    Args:
        folder: Folder to write to, made if absent. TensorBoard's events go to `tensorboard/` in it, the runs of other
            trackers have its name.
        columns: Names of the columns, `step` first.
        start: Step that the training goes on from; rows of it and later ones are dropped.
        accelerator: Of `create_accelerator`.
        options: What a tracker stores with the run, of any types.

    Raises:
        FileExistsError: There is a log.csv of something else.
    """

    def __init__(self, folder: Path, columns: Sequence[str], start: int, accelerator: Any, options: Mapping[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / 'log.csv'
        check_log(file, columns)
        rows = read_log(file) if start and file.exists() else []
        with atomic_file(file) as aside, open(aside, 'w', newline='') as out:
            writer = csv.DictWriter(out, columns, lineterminator='\n')
            writer.writeheader()
            writer.writerows(row for row in rows if int(row['step']) < start)
        self._out = open(file, 'a', newline='')  # noqa: SIM115 (open for the whole training)
        self._csv = csv.DictWriter(self._out, columns, lineterminator='\n')
        self._accelerator = accelerator
        name = folder.absolute().name
        each = dict(tensorboard=dict(purge_step=start), wandb=dict(name=name, dir=str(folder)), trackio=dict(name=name))
        project = 'tensorboard' if 'tensorboard' in map(str, accelerator.log_with) else PROJECT  # there it is a folder
        simple = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in options.items()}
        accelerator.init_trackers(project, simple, each)

    def row(self, row: Mapping[str, Any]) -> None:
        """Add a row; floats are written with all their digits."""
        self._csv.writerow(row)
        values = {name: value for name, value in row.items() if name not in ('step', 'epoch')}
        self._accelerator.log(values, step=row['step'])

    def flush(self) -> None:
        """Write what is held back."""
        self._out.flush()

    def close(self) -> None:
        """Write what is held back and close."""
        self._out.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()


def check_log(file: Path, columns: Sequence[str]) -> None:
    """Refuse a file that is no log of such a training.

    Raises:
        FileExistsError: It has other columns.
    """
    if file.exists():
        with open(file, newline='', errors='replace') as lines:
            first = lines.readline().strip()
        if first and first != ','.join(columns):
            raise FileExistsError(f'{file} is no log of such a training: choose another folder')


def read_log(file: Path) -> List[Dict[str, str]]:
    """Rows of a log.csv, without one that was cut off."""
    with open(file, newline='') as lines:
        return [row for row in csv.DictReader(lines) if row['step'] and None not in row.values()]
