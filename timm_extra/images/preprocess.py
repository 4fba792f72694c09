"""What input a model takes, and images as it sees them."""

from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Dict, Optional, Sequence, Union

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from timm_extra._files import PathLike
from timm_extra.models._size import check_normalisation, fitting
from timm_extra.models._size import input_size as own_input_size

from .pixels import MODES, as_array, decode


def input_config(
    model: nn.Module,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
) -> Dict[str, Any]:
    """What input a model takes: the one answer that preprocessing, views, export and saving share.

    Args:
        model: A timm model; for other modules give `input_size`.
        input_size: Shape of one input, as (channels, height, width); when None that of the model, as
            `models.info.input_size` finds it.
        mean: The model's when None, averaged over channels if it takes another number of them.
        std: Likewise.

    Returns:
        `input_size`, and `mean` and `std` of as many channels or of one.

    Raises:
        ValueError: The size is unknown, or `mean` or `std` are out of range or not as many as channels.
    """
    model = getattr(model, '_orig_mod', model)  # of torch.compile
    if input_size is None and not getattr(model, 'pretrained_cfg', None):
        raise ValueError(f'{type(model).__name__} does not say the size of its inputs: give `input_size=(C, H, W)`')
    config = resolve_model_data_config(model)
    size = own_input_size(model) if input_size is None else tuple(input_size)
    found = {
        name: fitting(config[name], size[0]) if given is None else tuple(given)
        for name, given in (('mean', mean), ('std', std))
    }
    check_normalisation(size, **found)
    return dict(input_size=size, **found)


def check_takes_images(model: nn.Module) -> None:
    """Refuse a Perceiver for audio, video, points or tokens.

    Args:
        model: A timm model; of other modules it is not known.

    Raises:
        ValueError: The model takes no images.
    """
    size = own_input_size(model) if getattr(model, 'pretrained_cfg', None) else (1, 1, 1)
    if len(size) != 3:
        taken = '×'.join(map(str, size))
        raise ValueError(f'this {type(model).__name__} takes no images, its inputs are {taken}')


@dataclass(frozen=True)
class Preprocessing:
    """How a model sees images in evaluation.

    Attributes:
        config: Arguments of timm's `create_transform`.
        transform: PIL image to tensor (C, height, width).
        as_timm: See pixels as timm's scripts do: 16 bits clipped to eight, no orientation, transparency left out.
    """

    config: Dict[str, Any]
    transform: Callable[[Image.Image], torch.Tensor]
    as_timm: bool = False

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Image, as `decode` gives it, to (C, height, width), normalised."""
        channels = self.config['input_size'][0]
        if self.as_timm:
            return self.transform(image.convert(MODES[channels]))
        pixels = as_array(image, channels)
        if pixels.dtype != np.uint8:
            pixels = (pixels * 255).round().astype(np.uint8)  # the transform resizes eight bits
        return self.transform(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))

    def read(self, path: Union[PathLike, BinaryIO]) -> torch.Tensor:
        """The image in a file, by its path or open, as (C, height, width), normalised.

        Raises:
            ValueError: There is none that can be read; the message names the file.
        """
        try:
            return self(decode(path, upright=not self.as_timm))
        except (ValueError, MemoryError) as e:  # of modes that PIL does not convert, too, and of very long images
            raise ValueError(f'{path} cannot be read: {str(e) or "out of memory"}') from e

    def visible(self, x: torch.Tensor) -> torch.Tensor:
        """Images (…, C, height, width) as before normalisation, in 0 to 1."""
        mean, std = (torch.tensor(self.config[name]).view(-1, 1, 1) for name in ('mean', 'std'))
        return (x.cpu() * std + mean).clamp(0, 1)


def preprocessing(
    model: nn.Module,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    as_timm: bool = False,
) -> Preprocessing:
    """What a model's own configuration says about preprocessing.

    Args:
        model: A timm model of images.
        input_size: As in `input_config`, like `mean` and `std`.
        mean: What images are normalised with.
        std: Likewise.
        as_timm: As in `Preprocessing`.

    Returns:
        The preprocessing.

    Raises:
        ValueError: The model does not take images of 1 or 3 channels.
    """
    check_takes_images(model)
    config = {**resolve_model_data_config(model), **input_config(model, input_size, mean, std)}
    if config['input_size'][0] not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, the model takes {config["input_size"][0]}')
    return Preprocessing(config, create_transform(**config), as_timm)
