"""Weights of any known layout into the Hub's format, with an account of what became of every tensor."""

import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import timm
import torch
from torch import nn

from timm_extra._files import PathLike
from timm_extra.models._build import StateDict, read_training_checkpoint, unwrap
from timm_extra.models.info import arguments_refused, check_name, is_ours

from . import training_args
from .save import label_list, save

TORCH_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # how files of torch.save before 1.6 begin


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a checkpoint. Counters of BatchNorms that a layout does not store count nowhere.

    Attributes:
        model: Name of the model.
        source: File that was read.
        mapped: Tensors of the model that hold the checkpoint's values, and the keys these had.
        resized: Tensors of the model whose values were made to fit its size, and the keys they come from.
        new: Tensors of the model that the checkpoint has nothing for: zero where its code adds nothing, else random.
        dropped: Keys of the checkpoint that the model has no use for.
        notes: Warnings of the conversion.
        num_classes: Classes of the model.
        config: What is kept of its training beside the weights, or was given: preprocessing, `label_names`.
        folder: Where it was saved, None if it was not.
    """

    model: str
    source: str
    mapped: Dict[str, List[str]] = field(default_factory=dict)
    resized: Dict[str, List[str]] = field(default_factory=dict)
    new: List[str] = field(default_factory=list)
    dropped: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    num_classes: int = 0
    config: Dict[str, Any] = field(default_factory=dict)
    folder: Optional[str] = None


def convert(
    src: PathLike,
    dst: PathLike,
    model: str,
    model_kwargs: Optional[Dict[str, Any]] = None,
    *,
    data_config: Optional[Dict[str, Any]] = None,
    labels: Optional[PathLike] = None,
    force: bool = False,
) -> Report:
    """Save a checkpoint of any layout that docs/checkpoints.md tables as a folder in the Hub's format.

    What timm's train.py was called with stands in its checkpoints and is kept: arguments of the model, preprocessing,
    and the names of the classes, if the class map or the folder of images is still there.

    Args:
        src: File, or a folder with `model.safetensors` or `pytorch_model.bin`.
        dst: Folder to write, which `timm.create_model('local-dir:DST', pretrained=True)` loads.
        model: Name of a model of this package.
        model_kwargs: Arguments of the model, as `dict(compat='lucidrains')`, before those of the checkpoint.
        data_config: Preprocessing, as `dict(mean=…, std=…, input_size=…, crop_pct=…)`, before that of the checkpoint.
        labels: Names of the classes, as in `training_args.read_labels`.
        force: Replace another model that the folder holds.

    Returns:
        What became of the tensors.

    Raises:
        FileExistsError: `dst` holds a model of another architecture or of other classes.
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint or the name does not fit, the file cannot be read without executing what is in it,
            or `dst` is where `src` lies.
    """
    file = _weights_file(src)
    if Path(dst).resolve() == file.resolve().parent:
        raise ValueError(f'{dst} is the folder of {file.name}, which would be written over: choose another')
    if timm.is_model(model) and not is_ours(model):
        raise ValueError(f"{model} is timm's own: only layouts of this package's models are known here")
    loaded, report = load_checkpoint(file, model, model_kwargs, data_config=data_config, labels=labels)
    save(loaded, dst, force=force)
    return replace(report, folder=str(dst))


def load_checkpoint(
    src: PathLike,
    model: str,
    model_kwargs: Optional[Dict[str, Any]] = None,
    *,
    data_config: Optional[Dict[str, Any]] = None,
    labels: Optional[PathLike] = None,
) -> Tuple[nn.Module, Report]:
    """Build a model with the weights of a checkpoint, and as many classes as its classifier has by default.

    Args:
        src: As for `convert`.
        model: Name of a timm model.
        model_kwargs: As for `convert`, like `data_config` and `labels`.
        data_config: Likewise.
        labels: Likewise.

    Returns:
        The model, and what became of the tensors (nothing but the names for models that are timm's own).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for `convert`.
    """
    file = _weights_file(src)
    check_name(model)
    checkpoint = _read(file)
    state, trained = unwrap(checkpoint), training_args.training_args(checkpoint)
    kwargs = {**training_args.model_args(trained), **(model_kwargs or {})}
    with torch.device('meta'), arguments_refused(model, kwargs):
        empty = timm.create_model(model, **kwargs)
    traced, origins, resampled = state, {}, set()
    if is_ours(model):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # they come again below
            traced, origins, resampled = _trace(state, empty)
    overlay: Dict[str, Any] = dict(state_dict=state)
    head = f'{empty.pretrained_cfg.get("classifier")}.weight'
    if head in traced and (origins.get(head) or not is_ours(model)):
        overlay['num_classes'] = len(traced[head])
        kwargs.setdefault('num_classes', overlay['num_classes'])
    found = _data_config({**trained, **(data_config or {})}, kwargs, empty)
    num_classes = kwargs.get('num_classes', empty.num_classes)
    names = training_args.trained_labels(trained, num_classes) if labels is None else training_args.read_labels(labels)
    if names is not None:
        found['label_names'] = label_list(names, num_classes)
    overlay.update(found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            loaded = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
        except RuntimeError as e:  # load_state_dict's, of keys and shapes
            raise ValueError(f'{model}: cannot load {str(file)!r}: {" ".join(str(e).split())}') from e
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    report = Report(model, str(file), notes=notes, num_classes=loaded.num_classes, config=found)
    if is_ours(model):
        _account(report, state, traced, origins, resampled, loaded)
    return loaded, report


def _weights_file(src: PathLike) -> Path:
    """The file itself, or the weights in a folder as transformers and timm write it."""
    path = Path(src)
    if path.is_dir():
        names = ('model.safetensors', 'pytorch_model.bin')
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f'{path} has neither {" nor ".join(names)}')
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {str(path)!r}')
    return path


def _data_config(options: Dict[str, Any], kwargs: Dict[str, Any], model: nn.Module) -> Dict[str, Any]:
    """Entries of the configuration for images of the channels that the model takes."""
    found = training_args.data_config(options, model.pretrained_cfg)
    channels = kwargs.get('in_chans', model.pretrained_cfg['input_size'][0])
    if found and found['input_size'][0] != channels:
        raise ValueError(f'the model takes {channels} channels, its images have {found["input_size"][0]}')
    return found


def _read(file: Path) -> Dict[str, Any]:
    with file.open('rb') as f:
        start = f.read(len(TORCH_LEGACY))
    if file.suffix == '.pystate' or (start[:1] == b'\x80' and start != TORCH_LEGACY and file.suffix != '.safetensors'):
        raise ValueError(
            f"{file} is a pickle of Python objects, as DeepMind's .pystate files are, which is never executed: take "
            'the same weights from the Hub, model.safetensors of deepmind/vision-perceiver-fourier, -learned or -conv'
        )
    return read_training_checkpoint(str(file))


def _trace(state: StateDict, model: nn.Module) -> Tuple[StateDict, Dict[str, List[str]], set]:
    """Run the model's filter on tensors that remember where they come from.

    Autograd's graph is that memory: it survives whatever a filter does, renaming, joining, splitting or resampling.

    Returns:
        What the filter gives, the source keys of each of its tensors, and the keys of those that were resampled.
    """
    leaves = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in state.items() if torch.is_tensor(v)}
    names = {id(v): k for k, v in leaves.items()}
    filter_fn = sys.modules[timm.model_entrypoint(model.pretrained_cfg['architecture']).__module__].checkpoint_filter_fn
    with torch.enable_grad():
        traced = filter_fn({**state, **leaves}, model)
    origins: Dict[str, List[str]] = {}
    resampled = set()
    for key, value in traced.items():
        found: Dict[str, None] = {}
        if id(value) in names:
            found[names[id(value)]] = None
        seen, nodes = set(), [value.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if 'Upsample' in node.name():
                resampled.add(key)
            if hasattr(node, 'variable'):
                found[names[id(node.variable)]] = None
            nodes += [n for n, _ in node.next_functions]
        origins[key] = sorted(found)
    return traced, origins, resampled


def _account(report, state, traced, origins, resampled, loaded) -> None:
    """Fill in the report, after checking that the model holds what was mapped."""
    own, used = loaded.state_dict(), set()
    for key, value in own.items():
        sources = origins.get(key, [])
        given = traced.get(key)
        adapted = given is not None and given.shape != value.shape
        if not sources or (adapted and key.startswith('head.')):
            if not key.endswith('num_batches_tracked'):
                report.new.append(key)
        elif adapted or key in resampled:
            report.resized[key] = sources
        elif torch.equal(given.detach().to(value), value):
            report.mapped[key] = sources
        else:
            raise ValueError(f'{report.source}: {key} is not what the checkpoint says after loading')
        if sources and key not in report.new:
            used.update(sources)
    report.dropped.extend(k for k in state if k not in used and not k.endswith('num_batches_tracked'))
