"""The model that a pretraining leaves behind."""

import copy
import warnings
from pathlib import Path

import safetensors.torch

from timm_extra import hub
from timm_extra._files import atomic_file

from .tasks.task import PretrainingTask


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
