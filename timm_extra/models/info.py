"""Facts about models: what is registered, what they count, what their classes are called."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_extra._nearest import nearest
from timm_extra_kernels._spec import SPECS

from ._size import input_size

PLUGIN = __package__.split('.')[0]
# models whose weights others publish as files: `timm-extra convert` makes folders of them
FROM_FILES = (
    *('ceit_tiny', 'ceit_small', 'ceit_base', 'ceit_tiny_384', 'ceit_small_384', 'ceit_tiny_article'),
    'glom_base',
)
FLOPS = {spec.operator: spec.flops for spec in SPECS if spec.counted}


@dataclass(frozen=True)
class ModelInfo:
    """One registered model.

    Attributes:
        name: Name for `timm.create_model`.
        params: Number of parameters.
        gmacs: Multiply-accumulates of convolutions, linear layers and attention for one input, in billions, as they are
            computed here: the cheapest route of cross-attention counts.
        input_size: Shape of one input: channels, height and width of images.
        weights: 'on the Hub' (`pretrained=True` finds them), 'convert a file' (others publish them in a layout of their
            own) or 'none'.
    """

    name: str
    params: int
    gmacs: float
    input_size: Tuple[int, ...]
    weights: str


def list_names(pattern: str = '*') -> List[str]:
    """Names of this package's models that match a wildcard pattern; a plain word is looked for anywhere in them."""
    if not set('*?[') & set(pattern):
        pattern = f'*{pattern}*'
    return [n for n in timm.list_models(pattern) if is_ours(n)]


def check_name(name: str) -> None:
    """Refuse a name that `timm.create_model` does not know.

    Args:
        name: Name, with or without the tag of its weights.

    Raises:
        ValueError: There is no such model or tag; the message says what may be meant.
    """
    arch, _, tag = name.partition('.')
    if timm.is_model(name):
        tags = [known.partition('.')[2] for known in timm.list_models(f'{arch}.*', pretrained=True)]
        if tag and tag not in tags:
            raise ValueError(f'{arch} has no weights {tag!r}' + (f', but {", ".join(tags)}' if tags else ''))
        return
    meant = nearest(name, timm.list_models())
    if os.path.isdir(name):
        meant = f'; a saved folder is local-dir:{name}'
    elif name.count('/') == 1 and not os.path.exists(name):
        meant = f'; a model of the Hub is hf-hub:{name}'
    raise ValueError(f'timm has no model {name!r}{meant}')


@contextlib.contextmanager
def arguments_refused(name: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Report what a constructor makes of arguments that somebody wrote as their fault; without any, as it is.

    Args:
        name: Name of the model.
        kwargs: The arguments.

    Raises:
        ValueError: Within the block there was an error that is none of bad values, files or modules.
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as e:  # what constructors raise is of any type: TypeError, ZeroDivisionError, AssertionError, …
        if not kwargs:
            raise
        given = ', '.join(f'{key}={value!r}' for key, value in kwargs.items())
        raise ValueError(f'{name} cannot be built with {given}: {e or type(e).__name__}') from e


def is_ours(name: str) -> bool:
    """Whether a registered model is one of this package."""
    return timm.model_entrypoint(name).__module__.split('.')[0] == PLUGIN


def model_info(name: str) -> ModelInfo:
    """Count a model's parameters and operations on the meta device.

    Args:
        name: Registered name.

    Returns:
        What was counted.
    """
    with torch.device('meta'):
        model = timm.create_model(name)
    params, gmacs = count(model)
    return ModelInfo(
        name=name,
        params=params,
        gmacs=gmacs,
        input_size=input_size(model),
        weights=_weights(name),
    )


def _weights(name: str) -> str:
    """Where the weights of a model are."""
    if timm.models.is_model_pretrained(name):
        return 'on the Hub'
    return 'convert a file' if name in FROM_FILES else 'none'


def modality(model: nn.Module) -> str:
    """What a model takes.

    Args:
        model: A timm model.

    Returns:
        'image', 'audio', 'video', 'point cloud' or 'tokens'.
    """
    stem = getattr(getattr(model, 'stem', None), 'kind', '')  # of a Perceiver
    if stem in ('points', 'tokens'):
        return {'points': 'point cloud', 'tokens': 'tokens'}[stem]
    return {2: 'audio', 3: 'image', 4: 'video'}[len(input_size(model))]


def count(model: nn.Module) -> Tuple[int, float]:
    """Count what a timm model on the meta device holds and computes; it is put in evaluation mode.

    Args:
        model: Model, on the meta device.

    Returns:
        Number of parameters, and GMACs for one input of its size.
    """
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        model.eval()(torch.empty(1, *input_size(model), device='meta'))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def class_labels(model: nn.Module) -> List[str]:
    """Names of a model's classes: what its configuration says, else ImageNet's where their number is ImageNet's.

    Args:
        model: A timm classifier.

    Returns:
        As many names as classes; their numbers where no names are known.
    """
    cfg: Dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    count = model.num_classes
    names = cfg.get('label_names')
    described = cfg.get('label_descriptions')
    if names and len(names) == count:
        return [str(described.get(name, name) if isinstance(described, dict) else name) for name in names]
    subset = infer_imagenet_subset(model) if count else None
    if subset:
        return ImageNetInfo(subset).label_descriptions()
    return [str(i) for i in range(count)]
