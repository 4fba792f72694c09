"""Saved models from elsewhere are not trusted: looked at before anything is built or allocated."""

import inspect
import json
import math
import re
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import timm
import torch
from timm.models import PretrainedCfg, build_model_with_cfg
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')  # extensions of files that are not read
LARGEST_CONFIG = 16 << 20  # bytes; a thousand labels with descriptions take a tenth of one
LARGEST_NUMBER = 1 << 20  # of anything a model is built with
LARGEST_HEADER = 100 << 20  # bytes, as safetensors has it
BUFFERS = 1 << 27  # elements that a model may compute beside what is stored, as positions
DTYPE_BITS = {
    **{'F64': 64, 'F32': 32, 'F16': 16, 'BF16': 16, 'F8_E4M3': 8, 'F8_E5M2': 8, 'F8_E8M0': 8, 'C64': 64},
    **{'I64': 64, 'I32': 32, 'I16': 16, 'I8': 8, 'U64': 64, 'U32': 32, 'U16': 16, 'U8': 8, 'BOOL': 8},
}
# what timm's factory takes beside a model's own arguments: paths, other weights, devices
RESERVED = {
    *(set(inspect.signature(timm.create_model).parameters) - {'kwargs'}),
    *(set(inspect.signature(build_model_with_cfg).parameters) - {'kwargs'}),
    *('features_only', 'feature_cls', 'out_indices', 'pruned', 'device', 'dtype'),
}
CFG_KEYS = set(PretrainedCfg.__dataclass_fields__)
CFG_SOURCES = ('file', 'state_dict', 'hf_hub_filename', 'custom_load')

Header = Dict[str, Tuple[str, Tuple[int, ...]]]


def check_folder(folder: Path) -> Dict[str, Any]:
    """Check that a saved model is what it says, without allocating or executing what it says.

    Args:
        folder: Folder with config.json and model.safetensors.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: One of the two is missing.
        ValueError: The configuration names paths, options of the factory, an unknown model or sizes beyond all limits,
            or the weights are not what the file can hold, or not those of such a model.
    """
    config = read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(p.name for p in folder.glob('*') if p.suffix in PICKLES)
        other = f', and pickles ({", ".join(pickles)}) are not read: convert them' if pickles else ''
        raise FileNotFoundError(f'{folder} holds no {WEIGHTS}{other}')
    header = read_header(folder / WEIGHTS)
    stored = sum(math.prod(shape) for _, shape in header.values())
    try:
        with _limited_parameters(8 * len(header) + 1000), torch.device('meta'):
            model = timm.create_model(f'local-dir:{folder}')
    except ValueError:
        raise
    except Exception as e:  # what values of a wrong kind raise is of any type
        raise ValueError(f'{folder / CONFIG} describes no model: {type(e).__name__}: {e}') from e
    needed = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    if needed > 2 * stored + BUFFERS:
        raise ValueError(f'{folder / CONFIG} describes {needed:,} values, {WEIGHTS} holds {stored:,}: refused')
    return config


def read_config(path: Path) -> Dict[str, Any]:
    """Read a model's configuration and refuse what no configuration has.

    Args:
        path: config.json.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is refused; the message names what of it.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path.parent} holds no {path.name}')
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f'{path} is refused: {path.stat().st_size:,} bytes are not a configuration')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as e:
        raise ValueError(f'{path} is not JSON: {e}') from None
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(f"{path} is not a timm model's: it names no architecture")
    args, cfg = config.get('model_args') or {}, config.get('pretrained_cfg', {})
    if not isinstance(args, dict) or not isinstance(cfg, dict):
        raise ValueError(f'{path} is refused: model_args and pretrained_cfg have to be objects')
    _check_known(path, config)
    for key in args:
        if key in RESERVED or not key.isidentifier() or key.startswith(('_', 'pretrained')):
            raise ValueError(f'{path} is refused: {key!r} is no argument of a model')
    if unknown := sorted(set(cfg) - CFG_KEYS):
        raise ValueError(f'{path} is refused: pretrained_cfg has no {unknown[0]!r}')
    for key in CFG_SOURCES:
        if (cfg or config).get(key):
            raise ValueError(f'{path} is refused: it leads to other files with {key}={(cfg or config)[key]!r}')
    names = {k: v for k, v in (cfg or config).items() if not k.startswith('label') and k in CFG_KEYS}
    for name, value in _leaves({'model_args': args, 'pretrained_cfg': names, 'num_classes': config.get('num_classes')}):
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:
            what = 'is not a number' if value != value else f'exceeds {LARGEST_NUMBER:,}'
            raise ValueError(f'{path} is refused: {name}={value} {what}')
        if isinstance(value, str) and name.startswith('model_args') and re.search(r'[/\\]|\.\.', value):
            raise ValueError(f'{path} is refused: {name}={value!r} is a path')
    return config


def _check_known(path: Path, config: Dict[str, Any]) -> None:
    architecture, plugin = config['architecture'], config.get('timm_plugin')
    if re.search(r'[/\\:]|\.\.', architecture):
        raise ValueError(f'{path} is refused: architecture={architecture!r} is a path')
    if timm.is_model(architecture):
        return
    hint = 'it may need a newer timm, or a plugin that registers it'
    if isinstance(plugin, str) and re.fullmatch(r'[A-Za-z_]\w*', plugin):
        if plugin == __package__.split('.')[0]:
            hint = f'it needs a newer {plugin}: pip install --upgrade {plugin.replace("_", "-")}'
        else:
            hint = f'its configuration names the plugin {plugin}: install and `import {plugin}` first, if you trust it'
    raise ValueError(f'{path}: unknown model {architecture!r}; {hint}')


def _leaves(value: Any, name: str = '') -> Iterator[Tuple[str, Any]]:
    """The values inside nested objects and lists, with dotted names."""
    stack = [(name, value)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((f'{name}.{k}' if name else k, v) for k, v in value.items())
        elif isinstance(value, list):
            stack.extend((name, v) for v in value)
        else:
            yield name, value


def another_model(folder: Path, config: Mapping[str, Any]) -> Optional[str]:
    """Why a folder is not one to write a model to: it holds another.

    The same architecture with the same classes is the same model, whatever its weights: a training writes it again and
    again.

    Args:
        folder: Folder, which need not exist.
        config: `architecture`, `num_classes` and perhaps `label_names` of the model to write, as config.json has them.

    Returns:
        What it holds; None if nothing stands in the way.
    """
    if not any((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        return None
    try:
        held = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        held = None
    if not isinstance(held, dict) or not isinstance(held.get('architecture'), str):
        return f'{folder} holds a model that is not known to be {_named(config)}'
    if _named(held) != _named(config):
        return f'{folder} holds {_named(held)}, not {_named(config)}'
    names, others = held.get('label_names'), config.get('label_names')
    return f'{folder} holds {_named(held)} of other names' if names and others and names != others else None


def _named(config: Mapping[str, Any]) -> str:
    return f'a {config["architecture"]} of {config.get("num_classes")} classes'


def read_header(path: Path) -> Header:
    """Read what a safetensors file says it holds, and compare with its size before anyone allocates that.

    Args:
        path: The file.

    Returns:
        Data type and shape of each tensor.

    Raises:
        ValueError: It is not such a file, or claims what it does not hold.
    """
    size = path.stat().st_size
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f'{path} is refused: its header claims {length:,} bytes, the file has {size:,}')
        try:
            entries = json.loads(file.read(length))
            entries.pop('__metadata__', None)
            header = {k: (v['dtype'], tuple(v['shape']), tuple(v['data_offsets'])) for k, v in entries.items()}
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as e:
            raise ValueError(f'{path} is no safetensors file: {type(e).__name__} in its header') from None
    for name, (dtype, shape, offsets) in header.items():
        if dtype not in DTYPE_BITS or not all(isinstance(n, int) and n >= 0 for n in (*shape, *offsets)):
            raise ValueError(f'{path} is refused: tensor {name!r} is of dtype {dtype!r} and shape {shape}')
        claimed = math.prod(shape) * DTYPE_BITS[dtype] // 8
        if len(offsets) != 2 or offsets[1] - offsets[0] != claimed or offsets[1] > size - 8 - length:
            raise ValueError(f'{path} is refused: tensor {name!r} claims {claimed:,} bytes, the file has {size:,}')
    return {name: (dtype, shape) for name, (dtype, shape, _) in header.items()}


@contextmanager
def _limited_parameters(limit: int) -> Iterator[None]:
    """Stop a model, while it is built, that has more parameters than the weights would give it."""
    thread, found = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal found
        found += threading.get_ident() == thread
        if found > limit:
            raise ValueError('the configuration describes far more layers than the weights have: refused')

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
