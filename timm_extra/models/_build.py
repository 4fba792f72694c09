"""Building registered models and loading weights into them, with errors that name the file and the keys."""

import os
import zipfile
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Type

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from timm_extra._timm import torch_load

from ._size import record_input_size, stated_size

StateDict = Dict[str, torch.Tensor]

CONTAINERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')  # keys of training checkpoints; timm has this order
LIGHTNING = 'pytorch-lightning_version'  # a key that all checkpoints of Lightning have
# what a model is called inside DDP and averages, and in Lightning modules (net: in lightning-hydra-template's)
WRAPPERS = ('module.', 'model.', 'net.')


def build_model(
    model_cls: Type[nn.Module],
    variant: str,
    pretrained: bool = False,
    *,
    pretrained_filter_fn: Callable[[StateDict, nn.Module], StateDict],
    **kwargs: Any,
) -> nn.Module:
    """Build a model the way timm does, after checking that the requested weights exist.

    Args:
        model_cls: Class of the model.
        variant: Registered name.
        pretrained: Load weights: a local file or folder, a Hub repository, or what the configuration names.
        pretrained_filter_fn: Converts a state dict of any known layout.
        **kwargs: As for `timm.models.build_model_with_cfg`.

    Returns:
        The model, or timm's feature extractor around it with `features_only=True`.

    Raises:
        RuntimeError: `pretrained=True` for a model without hosted weights and no file given.
        FileNotFoundError: The file or folder named does not exist.
        ValueError: The file cannot be read, or does not fit the model.
    """
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    source = _local_source(variant, kwargs.get('pretrained_cfg'), overlay) if pretrained else None
    if source and os.path.isfile(source):
        overlay['state_dict'] = read_checkpoint(source)
    stated = overlay.get('input_size')

    def filtered(state_dict: StateDict, model: nn.Module) -> StateDict:
        with stated_size(model, stated and stated[1:]):
            return pretrained_filter_fn(state_dict, model)

    try:
        model = build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=filtered,
            **kwargs,
        )
    except (RuntimeError, OSError, SafetensorError) as e:
        if source is None and 'weights_only' in str(e):  # downloaded by timm
            raise ValueError(f'{variant}: cannot load its weights: {_refused(e)}') from e
        if source is None or not _about_loading(e):
            raise
        hint = ''
        if 'head.' in str(e):
            hint = ' (a head of k classes loads with num_classes=k and pretrained_cfg_overlay=dict(…, num_classes=k))'
        raise ValueError(f'{variant}: cannot load {source!r}: {" ".join(str(e).split())}{hint}') from e
    for module in model.modules():
        if isinstance(getattr(module, 'pretrained_cfg', None), dict):
            module.pretrained_cfg.pop('state_dict', None)  # the tensors are in the model now: do not keep them twice
            record_input_size(module)
    return model


def read_checkpoint(path: str) -> StateDict:
    """Read the weights in a checkpoint file.

    Args:
        path: As in `read_training_checkpoint`.

    Returns:
        State dict as `unwrap` gives it, on the CPU.

    Raises:
        ValueError: As in `read_training_checkpoint`.
    """
    return unwrap(read_training_checkpoint(path))


def read_training_checkpoint(path: str) -> Dict[str, Any]:
    """Read a checkpoint file with whatever is beside the weights, executing nothing that is in it.

    Args:
        path: A .safetensors file, or one of `torch.save`.

    Returns:
        What the file holds, on the CPU.

    Raises:
        ValueError: The file is damaged, holds no state dict, would need code to be executed, or unpacks to more.
    """
    _check_archive(path)
    try:
        checkpoint = load_file(path) if path.endswith('.safetensors') else torch_load(path)
    except Exception as e:  # what damaged bytes raise is of nearly any type
        raise ValueError(f'cannot load {path!r}: {_refused(e)}') from e
    if not isinstance(checkpoint, dict):
        raise ValueError(f'cannot load {path!r}: it holds a {type(checkpoint).__name__}, no state dict')
    return checkpoint


def _check_archive(path: str) -> None:
    """Refuse a compressed archive before it is unpacked, to any size; `torch.save` compresses nothing."""
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':
            return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(record.file_size for record in archive.infolist())
    except zipfile.BadZipFile:  # torch says what is wrong
        return
    size = os.path.getsize(path)
    if claimed > size:
        raise ValueError(f'cannot load {path!r}: it would unpack to {claimed:,} bytes, the file has {size:,}')


def _refused(error: Exception) -> str:
    if 'Unsupported globals' in str(error):
        what = str(error).split('Unsupported globals: ')[1].split(' No automatic')[0]
        return f'it holds Python objects, which are never executed: {what} Save its state dict alone'
    if 'weights_only' in str(error):  # what is said there would have them executed
        return 'it is no checkpoint, or holds Python objects, which are never executed'
    return f'truncated, or not a checkpoint ({type(error).__name__}: {error})'


def _about_loading(error: Exception) -> bool:
    """Whether timm raised this while loading weights, and not while building the model."""
    if not isinstance(error, RuntimeError):
        return True
    return any(part in str(error) for part in ('state_dict', 'Pretrained', 'checkpoint', 'PytorchStreamReader'))


def _local_source(variant: str, pretrained_cfg: Any, overlay: Dict[str, Any]) -> Optional[str]:
    """The existing local path that `pretrained=True` will read, or None when the weights come from elsewhere."""
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if cfg.source == 'hf-hub' or cfg.state_dict:
        return None
    if cfg.file:
        path = os.fspath(cfg.file)
        if not os.path.exists(path):
            raise FileNotFoundError(f'{variant}: no checkpoint at {path!r}')
        return path
    if cfg.url or cfg.hf_hub_id:
        return None
    raise RuntimeError(
        f'{variant} has no hosted weights. Give a checkpoint file with '
        f"timm.create_model('{variant}', pretrained=True, pretrained_cfg_overlay=dict(file='….pth')), "
        'or use pretrained=False for random initialisation.'
    )


def unwrap(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    """The state dict of a model, out of what training scripts wrap it in.

    Args:
        checkpoint: A training checkpoint of timm, torchvision or Lightning, or a state dict, of a model that may have
            been compiled, averaged or in DDP.

    Returns:
        The model's own keys and tensors, those of EMA before others; the argument itself where nothing is around them.

    Raises:
        ValueError: It is no state dict.
    """
    state, lightning = checkpoint, False
    while True:
        lightning = lightning or LIGHTNING in state
        inner = next((state[k] for k in CONTAINERS if isinstance(state.get(k), dict)), None)
        if inner is None:
            break
        state = inner
    if unnamed := [k for k in state if not isinstance(k, str)]:
        raise ValueError(f'no state dict has a key {unnamed[0]!r}, which names nothing')
    if any('_orig_mod.' in k for k in state):
        state = {k.replace('_orig_mod.', ''): v for k, v in state.items()}
    while state:
        keys = state.keys() - {'n_averaged'}  # a counter of torch.optim.swa_utils.AveragedModel
        prefix = next((p for p in WRAPPERS if all(k.startswith(p) for k in keys)), None)
        if prefix is None and lightning:  # losses and metrics have keys there too
            prefix = next((p for p in WRAPPERS if any(k.startswith(p) for k in keys)), None)
        if prefix is None:
            break
        state, lightning = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, False
    return state


def check_fit(state_dict: StateDict, model: nn.Module, layout: str, adaptable: Iterable[str]) -> None:
    """Refuse a state dict that would leave a part of the model at its random initialisation.

    Args:
        state_dict: Converted state dict.
        model: Model it is for.
        layout: Name of the layout it came in, for the message.
        adaptable: Prefixes of keys that the caller or timm resizes, replaces or drops (stem, classifier).

    Raises:
        ValueError: Keys are missing, unexpected, or of another shape; the message names them.
    """
    adaptable = tuple(adaptable)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(adaptable)}
    given = {k: v for k, v in state_dict.items() if not k.startswith(adaptable)}
    problems: List[str] = []
    for label, keys in (
        ('missing', [k for k in own if k not in given and not k.endswith('num_batches_tracked')]),
        ('unexpected', [k for k in given if k not in own]),
        ('of another shape', [_shapes(k, given[k], own[k]) for k in own if _differ(given.get(k), own[k])]),
    ):
        if keys:
            more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
            problems.append(f'{label}: {", ".join(keys[:5])}{more}')
    if problems:
        raise ValueError(f'the {layout} checkpoint does not fit {type(model).__name__}: ' + '; '.join(problems))


def _differ(given: Optional[torch.Tensor], own: torch.Tensor) -> bool:
    return given is not None and tuple(given.shape) != tuple(own.shape)


def _shapes(key: str, given: Optional[torch.Tensor], own: torch.Tensor) -> str:
    shape: Tuple[int, ...] = tuple(given.shape) if given is not None else ()
    return f'{key} {shape} for {tuple(own.shape)}'
