"""The model that a pretraining leaves behind."""

import copy
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from timm_extra import hub
from timm_extra._files import atomic_file

from .tasks.task import PretrainingTask

# what cards call the methods, and the numbers of their papers
METHODS = {
    'byol': ('Pretrained without labels by BYOL', '2006.07733'),
    'simsiam': ('Pretrained without labels by SimSiam', '2011.10566'),
    'pixpro': ('Pretrained without labels by PixPro', '2011.10043'),
    'glom': ('Pretrained without labels by denoising', '2102.12627'),
}


def provenance(method: str, **facts: Any) -> hub.Provenance:
    """How a backbone was trained, for its card.

    Args:
        method: Key of `METHODS`.
        **facts: The rest of a `hub.Provenance`.
    """
    name, arxiv = METHODS[method]
    return hub.Provenance(name, arxiv=arxiv, **facts)


def check_output(model: nn.Module, folder: Path) -> None:
    """Refuse a folder that holds another model, before the training that would end with it.

    Args:
        model: The model that will be trained.
        folder: Folder that it will be saved to.

    Raises:
        FileExistsError: There is another in it.
    """
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if architecture and (other := hub.another_model(folder, dict(architecture=architecture, num_classes=0))):
        raise FileExistsError(f'{other}: choose another folder')


def save_backbone(task: PretrainingTask, folder: Path, provenance: hub.Provenance) -> None:
    """Save the model that is trained, without a classifier, which has not been.

    In Hub format if timm can build it again; else its tensors alone, as `model.safetensors`, with whatever other
    modules have for a classifier.

    Args:
        task: The task.
        folder: Folder to write to.
        provenance: How it was trained.
    """
    backbone = copy.deepcopy(task.get_eval_model())
    if (getattr(backbone, 'pretrained_cfg', None) or {}).get('architecture'):
        if backbone.num_classes:
            backbone.reset_classifier(0)
        try:
            hub.save(backbone, folder, data_config=task.input_config, provenance=provenance)
            return
        except ValueError as e:  # edited after timm made it
            warnings.warn(f'{folder} gets the tensors alone: {e}', stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / 'model.safetensors') as aside:
        safetensors.torch.save_model(backbone, str(aside))  # tied weights once
