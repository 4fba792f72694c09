"""What timm's train.py writes into a checkpoint beside the weights: how it was called."""

import argparse
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from timm.data import resolve_data_config
from timm.data.readers.class_map import load_class_map

from timm_extra._files import PathLike
from timm_extra.images import FolderReader

DATA = ('input_size', 'img_size', 'in_chans', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
CLASS_MAPS = ('.txt', '.pkl')  # what timm reads


def training_args(checkpoint: Mapping[str, Any]) -> Dict[str, Any]:
    """Options of the training that wrote a checkpoint, those that have a value; none if it says nothing of them."""
    args = checkpoint.get('args')
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return {k: v for k, v in args.items() if v is not None} if isinstance(args, dict) else {}


def model_args(args: Mapping[str, Any]) -> Dict[str, Any]:
    """Arguments of `timm.create_model` that train.py makes of its options."""
    found = dict(args.get('model_kwargs') or {})
    if 'in_chans' in args or 'input_size' in args:
        found['in_chans'] = args['in_chans'] if 'in_chans' in args else args['input_size'][0]
    if 'gp' in args:
        found['global_pool'] = args['gp']
    return found


def data_config(args: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """What train.py makes of its options for images, as entries of a model's configuration.

    Args:
        args: Options.
        pretrained_cfg: Configuration of the model, for what the options leave open.

    Returns:
        `input_size`, `mean`, `std`, `interpolation`, `crop_pct` and `crop_mode`; nothing if no option is of these.

    Raises:
        ValueError: Options contradict each other; the message has them.
    """
    given = {k: args[k] for k in DATA if k in args}
    if not given:
        return {}
    try:
        return resolve_data_config(given, pretrained_cfg=dict(pretrained_cfg))
    except (AssertionError, TypeError) as e:
        options = ', '.join(f'{k} {v}' for k, v in given.items())
        raise ValueError(f'these options of images do not go together: {options}') from e


def read_labels(source: PathLike) -> Dict[int, str]:
    """Names of classes by their number.

    Args:
        source: Class map as timm reads it (.txt or .pkl), or the folder of images whose folders are classes.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is neither.
    """
    if os.path.isdir(source):
        classes = FolderReader(source, 'train').class_to_idx
    elif not os.path.exists(source):
        raise FileNotFoundError(f'no class map or folder at {os.fspath(source)!r}')
    elif Path(source).suffix.lower() not in CLASS_MAPS:
        raise ValueError(f'labels are read from {" or ".join(CLASS_MAPS)} or a folder, got {os.fspath(source)!r}')
    else:
        classes = load_class_map(os.fspath(source))
    names: Dict[int, str] = {}
    for name, number in classes.items():
        names.setdefault(number, name)
    return names


def trained_labels(args: Mapping[str, Any], num_classes: int) -> Optional[Dict[int, str]]:
    """Names of the classes that a model was trained on, if what the options name is still there and has as many."""
    for source in (args.get('class_map'), args.get('data_dir'), args.get('data')):
        if isinstance(source, str) and source and os.path.exists(source):
            try:
                names = read_labels(source)
            except ValueError:  # no longer what it was
                continue
            if sorted(names) == list(range(num_classes)):
                return names
    return None
