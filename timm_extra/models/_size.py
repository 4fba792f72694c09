"""The size of a model's inputs: where it is read, and where it is written for others to read."""

import math
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Sequence, Tuple

from timm.layers import to_2tuple
from timm.models import get_model_input_config, get_pretrained_cfg
from torch import nn

STATED = '_stated_size'


def input_size(model: nn.Module) -> Tuple[int, ...]:
    """Shape of one input of a timm model, without the batch.

    Args:
        model: A timm model, or timm's feature extractor around one.

    Returns:
        What was asked for by `img_size`, `in_chans` or `set_input_size`, else what the configuration says: channels,
        height and width; of a Perceiver for audio, video, points or tokens the shape that those have.
    """
    other = getattr(model, '_traits', {}).get('input_size')  # of a Perceiver: timm's own traits are of images
    return tuple(other or get_model_input_config(model)['input_size'])


def record_input_size(model: nn.Module) -> None:
    """Let `model.pretrained_cfg` say what the model takes, for timm's `resolve_model_data_config` and all who read it.

    timm's own models keep there what their weights were trained at.

    Args:
        model: Model with its `pretrained_cfg`, or timm's feature extractor around it.
    """
    cfg, traits = getattr(model, 'pretrained_cfg', None), getattr(model, '_traits', {})
    if not cfg:  # of a class, not of a name
        return
    own = input_size(model)
    taken = tuple(traits.get('image_size') or own)  # of sound (C, 1, N)
    if len(own) == 2 and cfg['input_size'][1] > 1:  # colours of images say nothing of sound or points
        cfg.update(mean=(0.0,), std=(1.0,))
    cfg['input_size'] = taken
    cfg.update({key: fitting(cfg[key], taken[0]) for key in ('mean', 'std') if cfg.get(key)})


def fitting(values: Tuple[float, ...], channels: int) -> Tuple[float, ...]:
    """A mean or standard deviation of as many channels, or of one: the average, where it is of another number."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),)


def check_normalisation(input_size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a size, a mean or a standard deviation that no input has.

    Raises:
        ValueError: They are out of range, or not as many as channels and not one.
    """
    if not all(length > 0 for length in input_size):
        raise ValueError(f'`input_size` must be positive, got {tuple(input_size)}')
    for name, values in (('mean', mean), ('std', std)):
        if len(values) not in (1, input_size[0]):
            raise ValueError(f'`{name}` has {len(values)} values for {input_size[0]} channels')
        if not all(math.isfinite(v) and (name == 'mean' or v > 0) for v in values):
            raise ValueError(f'`{name}` must be {"finite" if name == "mean" else "positive"}, got {tuple(values)}')


@contextmanager
def stated_size(model: nn.Module, size: Optional[Sequence[int]]) -> Iterator[None]:
    """Tell `trained_grid` what image size the caller says that a checkpoint was trained at.

    Args:
        model: Model that is loaded.
        size: Height and width; None if the caller says nothing.
    """
    setattr(model, STATED, size)
    try:
        yield
    finally:
        delattr(model, STATED)


def trained_grid(
    model: nn.Module, num_positions: int, own: Sequence[int], grid_of: Callable[[Tuple[int, int]], Sequence[int]]
) -> Optional[Tuple[int, int]]:
    """Grid of the images that a checkpoint's positions are for, as far as their number and its configuration tell.

    Args:
        model: Model that the checkpoint is for.
        num_positions: Positions in the checkpoint, without those of prefix tokens.
        own: Grid of the model.
        grid_of: Grid for an image of a height and width.

    Returns:
        The first that has so many positions: of the image size that the caller gives (`stated_size`) or a folder, the
        model's own, a square; None if none has.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    stated, configured = getattr(model, STATED, None), cfg.get('input_size', ())[1:]
    sizes = [stated, getattr(model, 'pretrained_model_args', {}).get('img_size'), configured]
    if cfg and tuple(configured) == tuple(get_pretrained_cfg(cfg['architecture']).input_size[1:]):
        sizes.pop()  # says nothing about this checkpoint
    side = math.isqrt(num_positions)
    grids = [*(grid_of(to_2tuple(size)) for size in sizes if size), own, (side, side)]
    return next((tuple(grid) for grid in grids if math.prod(grid) == num_positions), None)
