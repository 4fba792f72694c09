"""Models to folders in the Hub's format: `config.json`, `model.safetensors` and a model card."""

from pathlib import Path
from typing import Any, Dict, Optional

import safetensors.torch
import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from timm_extra._files import PathLike, atomic_folder
from timm_extra._timm import save_config_for_hf
from timm_extra.models.info import PLUGIN, is_ours

from .card import card
from .checks import CARD, CONFIG, WEIGHTS


def save(
    model: nn.Module,
    folder: PathLike,
    *,
    model_config: Optional[Dict[str, Any]] = None,
    model_args: Optional[Dict[str, Any]] = None,
    data_config: Optional[Dict[str, Any]] = None,
) -> Path:
    """Save a timm model so that `timm.create_model('local-dir:FOLDER', pretrained=True)` gives it back.

    Written aside and moved into place at the end, one file after the other, after checking that the configuration
    rebuilds the very tensors that the weights file holds: what is refused leaves the folder as it was. A README.md that
    exists is kept. Neither dtype nor attributes changed by hand are part of the format.

    Args:
        model: Model made by `timm.create_model`; DDP and compiled wrappers are taken off.
        folder: Folder to write to, made if absent.
        model_config: Extra entries for config.json, as `label_names`.
        model_args: Constructor arguments that timm could not record, as JSON values.
        data_config: Preprocessing the model was trained with, as `dict(mean=…, std=…)`.

    Returns:
        The folder.

    Raises:
        ValueError: The model is not a registered one, is on the meta device, or its configuration rebuilds other
            tensors (a fused, pruned or edited model).
    """
    model = unwrap_model(model)
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture or not timm.is_model(architecture) or not hasattr(model, 'num_classes'):
        raise ValueError(f'{type(model).__name__} is not a model made by timm.create_model, or is a feature extractor')
    from_plugin = is_ours(architecture)

    tensors = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    empty = [k for k, v in tensors.items() if v.device.type == 'meta']
    if empty:
        raise ValueError(f'{len(empty)} tensors are on the meta device and hold nothing to save, among them {empty[0]}')

    folder = Path(folder)
    with atomic_folder(folder, last=[CONFIG]) as aside:  # the configuration names the rest
        safetensors.torch.save_file(tensors, aside / WEIGHTS, metadata={'format': 'pt'})
        config = dict(model_config or {}, **({'timm_plugin': PLUGIN} if from_plugin else {}))
        save_config_for_hf(
            model, str(aside / CONFIG), model_config=config, model_args=model_args, data_config=data_config
        )
        _check_rebuilds(aside, tensors)
        if not (folder / CARD).exists():
            (aside / CARD).write_text(card(aside), encoding='utf-8')
    return folder


def _check_rebuilds(folder: Path, tensors: Dict[str, torch.Tensor]) -> None:
    """Build the saved configuration without memory and compare names and shapes."""
    with torch.device('meta'):
        rebuilt = timm.create_model(f'local-dir:{folder}').state_dict()
    saved = {k: tuple(v.shape) for k, v in tensors.items()}
    differing = sorted(
        k
        for k in saved.keys() | rebuilt.keys()
        if saved.get(k) != _shape(rebuilt.get(k))
        and not k.endswith('num_batches_tracked')  # frozen norms count nothing
    )
    if differing:
        more = f' and {len(differing) - 5} more' if len(differing) > 5 else ''
        raise ValueError(
            f'the configuration of this model does not rebuild it, its tensors differ at {", ".join(differing[:5])}'
            f'{more}. Was it fused, pruned or edited? Save before that, or pass what it was built with as model_args.'
        )


def _shape(tensor: Optional[torch.Tensor]) -> Optional[tuple]:
    return None if tensor is None else tuple(tensor.shape)
