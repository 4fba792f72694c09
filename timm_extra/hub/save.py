"""Models to folders in the Hub's format: `config.json`, `model.safetensors` and a model card."""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import safetensors.torch
import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from timm_extra._files import PathLike, atomic_folder
from timm_extra._timm import save_config_for_hf
from timm_extra.models.info import PLUGIN, input_size, is_ours

from .card import card, is_generated
from .checks import CARD, CONFIG, WEIGHTS, another_model
from .provenance import Provenance

FORCE = 'choose another folder, or replace it with --force (in Python force=True)'


def save(
    model: nn.Module,
    folder: PathLike,
    *,
    model_config: Optional[Dict[str, Any]] = None,
    model_args: Optional[Dict[str, Any]] = None,
    data_config: Optional[Dict[str, Any]] = None,
    provenance: Optional[Provenance] = None,
    force: bool = False,
) -> Path:
    """Save a timm model so that `timm.create_model('local-dir:FOLDER', pretrained=True)` gives it back.

    Written aside and moved into place at the end, one file after the other, after checking that the configuration
    rebuilds the very tensors that the weights file holds: what is refused leaves the folder as it was. A README.md that
    this function wrote is renewed, one that was written or edited by hand is kept, with a warning. Neither dtype nor
    attributes changed by hand are part of the format.

    Args:
        model: Model made by `timm.create_model`; DDP and compiled wrappers are taken off.
        folder: Folder to write to, made if absent.
        model_config: Extra entries for config.json, as `label_names`: a name for every class, or names by number.
        model_args: Constructor arguments that timm could not record, as JSON values.
        data_config: Preprocessing the model was trained with, as `dict(mean=…, std=…)`.
        provenance: How it was trained, for the card; what the model's configuration says about other weights, as their
            licence, is then left out.
        force: Replace another model that the folder holds.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds a model of another architecture or of other classes.
        ValueError: The model is not a registered one, `label_names` are not as many as its classes, its tensors are on
            the meta device, quantised or tied, or its configuration rebuilds others (a fused, pruned or edited model).
    """
    model = unwrap_model(model)
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture or not timm.is_model(architecture) or not hasattr(model, 'num_classes'):
        raise ValueError(f'{type(model).__name__} is not a model made by timm.create_model, or is a feature extractor')
    config = _with_labels(model, dict(model_config or {}))
    if is_ours(architecture):
        config['timm_plugin'] = PLUGIN
    data_config = dict(data_config or {})
    size = input_size(model)
    if len(size) == 3 and size != tuple(model.pretrained_cfg['input_size']) and 'img_size' not in data_config:
        data_config.setdefault('input_size', size)  # timm's own models keep there what they were trained at
    tensors = {k: v.detach() for k, v in model.state_dict().items()}
    _check_storable(tensors)
    tensors = {k: v.contiguous() for k, v in tensors.items()}

    folder = Path(folder)
    with atomic_folder(folder, last=[CONFIG]) as aside:  # the configuration names the rest
        safetensors.torch.save_file(tensors, aside / WEIGHTS, metadata={'format': 'pt'})
        save_config_for_hf(
            model, str(aside / CONFIG), model_config=config, model_args=model_args, data_config=data_config
        )
        config = _settle(aside / CONFIG, provenance)
        _check_rebuilds(aside, tensors)
        if not force and (other := another_model(folder, config)):
            raise FileExistsError(f'{other}: {FORCE}')
        if not keeps_card(folder):
            (aside / CARD).write_text(card(aside), encoding='utf-8')
    return folder


def keeps_card(folder: Path) -> bool:
    """Whether a folder has a card that somebody wrote or edited, which is then kept, with a warning."""
    file = folder / CARD
    if not file.is_file() or is_generated(file.read_text(encoding='utf-8', errors='replace')):
        return False
    warnings.warn(f'{file} was written or edited by hand and is kept: see that it still fits', stacklevel=3)
    return True


def _with_labels(model: nn.Module, config: Dict[str, Any]) -> Dict[str, Any]:
    """Entries for config.json with the names of all classes as a list: those given, else those that the model has."""
    names = config.pop('labels', None)  # what timm called them
    names = config.pop('label_names', names)
    if names is None:
        known = model.pretrained_cfg.get('label_names')
        names = known if known and len(known) == model.num_classes else None
    return config if names is None else dict(config, label_names=label_list(names, model.num_classes))


def label_list(names: Union[Sequence[str], Mapping[Any, str]], num_classes: int) -> List[str]:
    """Names of all classes.

    Args:
        names: A name for every class, or names by number; a class without one is called by its number.
        num_classes: How many there are.

    Raises:
        ValueError: There are names of other classes.
    """
    if isinstance(names, str):
        raise ValueError(f'label_names must be a list of names, or names by number, got {names!r}')
    if not isinstance(names, Mapping):
        if len(names) != num_classes:
            raise ValueError(f'label_names has {len(names)} names, the model {num_classes} classes')
        return list(names)
    odd = [number for number in names if not str(number).lstrip('-').isdigit()]
    if odd:
        raise ValueError(f'label_names must be names by number, got {odd[0]!r} for a number')
    by_number = {int(number): name for number, name in names.items()}
    if beyond := sorted(set(by_number) - set(range(num_classes))):
        raise ValueError(f'label_names names class {beyond[0]}, the model has {num_classes} classes from 0')
    return [by_number.get(i, str(i)) for i in range(num_classes)]


def _check_storable(tensors: Dict[str, torch.Tensor]) -> None:
    """Refuse what a safetensors file cannot hold."""
    empty = [k for k, v in tensors.items() if v.device.type == 'meta']
    if empty:
        raise ValueError(f'{len(empty)} tensors are on the meta device and hold nothing to save, among them {empty[0]}')
    for name, tensor in tensors.items():
        if type(tensor) is not torch.Tensor:
            kind = type(tensor).__name__
            raise ValueError(
                f'{name} is a {kind}, not a plain tensor: save before quantising, and gather sharded weights'
            )
    held = [(k, v) for k, v in tensors.items() if v.is_contiguous() and v.numel()]  # other views are copied
    spans = sorted((str(v.device), v.data_ptr(), v.data_ptr() + v.nbytes, k) for k, v in held)
    for (device, _, end, one), (other, start, _, two) in pairwise(spans):
        if device == other and start < end:
            raise ValueError(f'{one} and {two} are tied, one tensor under two names: give one of them a clone')


def _settle(path: Path, provenance: Optional[Provenance]) -> Dict[str, Any]:
    """Add to a configuration how the model was trained, and leave out of it what it says twice.

    What it says at its top transformers hands to the model, and fails if it comes a second time.
    """
    config = json.loads(path.read_text(encoding='utf-8'))
    config['model_args'].pop('num_classes', None)
    if 'label_names' in config:
        config['pretrained_cfg'].pop('label_names', None)
    if provenance:
        provenance.write(config)
    path.write_text(json.dumps(config, indent=2), encoding='utf-8')
    return config


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
