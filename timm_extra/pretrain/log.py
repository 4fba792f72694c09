"""What a pretraining writes beside its checkpoints."""

import copy
import csv
import warnings
from pathlib import Path
from typing import Any, Dict, List

import safetensors.torch

from timm_extra import hub
from timm_extra._files import atomic_file

from .tasks.task import PretrainingTask

COLUMNS = ('step', 'epoch', 'loss', 'std', 'learning_rate', 'images_per_second', 'skipped', 'knn', 'linear')


class Log:
    """Rows in `log.csv`, and TensorBoard's events if wanted.

    Args:
        folder: Folder to write to, made if absent.
        start: Step that the training goes on from; rows of it and later ones are dropped.
        tensorboard: Write events, too.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, start: int, tensorboard: bool):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / 'log.csv'
        rows = read_log(file) if start and file.exists() else []
        with atomic_file(file) as aside, open(aside, 'w', newline='') as out:
            writer = csv.DictWriter(out, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(row for row in rows if int(row['step']) < start)
        self._out = open(file, 'a', newline='')  # noqa: SIM115 (open for the whole training)
        self._csv = csv.DictWriter(self._out, COLUMNS, lineterminator='\n')
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


def save_backbone(task: PretrainingTask, folder: Path) -> None:
    """Save the model that is trained, without a classifier, which has not been.

    In Hub format if timm can build it again; else its tensors alone, as `model.safetensors`, with whatever other
    modules have for a classifier.

    Args:
        task: The task.
        folder: Folder to write to.
    """
    backbone = copy.deepcopy(task.get_eval_model())
    if (getattr(backbone, 'pretrained_cfg', None) or {}).get('architecture'):
        if backbone.num_classes:
            backbone.reset_classifier(0)
        try:
            hub.save(backbone, folder, data_config=task.input_config)
            return
        except ValueError as e:  # edited after timm made it
            warnings.warn(f'{folder} gets the tensors alone: {e}', stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / 'model.safetensors') as aside:
        safetensors.torch.save_model(backbone, str(aside))  # tied weights once
