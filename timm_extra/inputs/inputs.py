"""Which files a model takes, and how they are read."""

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
from timm.data import create_transform
from torch import nn

from timm_extra._files import PathLike
from timm_extra.images import FileKind, Preprocessing, image_files, input_config, preprocessing

from .audio import AUDIO, AudioReader
from .points import POINTS, PointReader

IMAGE_CONFIG = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


@dataclass(frozen=True)
class Inputs:
    """Files that a model takes.

    Attributes:
        kind: Which files.
        read: Path to input, as the model sees it when it is measured. Raises a ValueError that names the file if it
            cannot be read.
        read_for_training: The same with random crops and what else there is, by the random states.
        data_config: Preprocessing as `timm_extra.hub.save` takes it.
        mixing: What timm's `Mixup` can do to inputs and their classes.
    """

    kind: FileKind
    read: Callable[[PathLike], torch.Tensor]
    read_for_training: Callable[[PathLike], torch.Tensor]
    data_config: Dict[str, Any]
    mixing: Tuple[str, ...] = ('mixup', 'cutmix')


def inputs_of(
    model: nn.Module,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    *,
    as_timm: bool = False,
    augmentation: Optional[Dict[str, Any]] = None,
) -> Inputs:
    """What files a timm model takes: images, or what a Perceiver for audio or for points takes.

    Args:
        model: The model.
        input_size: As in `timm_extra.images.input_config`, like `mean` and `std`; for images alone.
        mean: What images and audio are normalised with.
        std: Likewise.
        as_timm: As in `timm_extra.images.Preprocessing`; for images alone.
        augmentation: Arguments of timm's `create_transform` for training on images; when None, images are read for
            training as they are to be measured.

    Raises:
        ValueError: The model takes something else, or an argument does not fit.
    """
    config = input_config(model, None, mean, std)
    size = config['input_size']
    stem = getattr(getattr(model, 'stem', None), 'kind', None)
    if len(size) == 3 or stem is None:
        return _images(preprocessing(model, input_size, mean, std, as_timm), augmentation)
    if as_timm or input_size is not None:
        raise ValueError(f'this {type(model).__name__} takes no images, but inputs of {_shape(size)}')
    if stem == 'points':
        if mean is not None or std is not None:
            raise ValueError('every point cloud is normalised by itself: leave out `mean` and `std`')
        points = PointReader(size)
        return Inputs(POINTS, points.read, replace(points, random=True).read, {}, mixing=())
    if len(size) == 2 and stem != 'tokens' and size[0] in (1, 2):
        reader = AudioReader(size, config['mean'][0], config['std'][0])
        kept = {name: config[name] for name in ('mean', 'std')}
        return Inputs(AUDIO, reader.read, replace(reader, random=True).read, kept, mixing=('mixup',))
    raise ValueError(f'no files are read for this {type(model).__name__}, which takes inputs of {_shape(size)}')


def _images(seen: Preprocessing, augmentation: Optional[Dict[str, Any]]) -> Inputs:
    kept = {name: seen.config[name] for name in IMAGE_CONFIG}
    if augmentation is None:
        return Inputs(image_files(), seen.read, seen.read, kept)
    try:
        transform = create_transform(**seen.config, is_training=True, **augmentation)
    except Exception as e:  # what unknown policies raise is of any type
        if not augmentation.get('auto_augment'):
            raise
        raise ValueError(f'`aa={augmentation["auto_augment"]!r}` is no policy that timm knows: {e}') from e
    return Inputs(image_files(), seen.read, replace(seen, transform=transform).read, kept)


def _shape(size: Sequence[int]) -> str:
    return '×'.join(map(str, size))
