"""Images as pixels and tensors, and what input a model takes."""

from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Dict, Optional, Sequence, Union

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from ._files import PathLike
from .models.info import input_size as own_input_size

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # PIL's modes by channels
UPRIGHT = 1  # the EXIF orientation of an image that is stored as it is seen


class PixelError(ValueError):
    """An image whose numbers are no pixels."""


# what PIL raises, SyntaxError of some broken files, and what `as_array` does
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError, PixelError)


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
        ValueError: The size is unknown.
    """
    if input_size is None and not getattr(model, 'pretrained_cfg', None):
        raise ValueError(f'{type(model).__name__} does not say the size of its inputs: pass input_size=(C, H, W)')
    config = resolve_model_data_config(model)
    size = own_input_size(model) if input_size is None else tuple(input_size)
    found = {}
    for name, given in (('mean', mean), ('std', std)):
        values = tuple(config[name] if given is None else given)
        if given is None and len(values) != size[0]:
            values = (sum(values) / len(values),)
        found[name] = values
    return dict(input_size=size, **found)


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

    def read(self, path: PathLike) -> torch.Tensor:
        """The image in a file as (C, height, width), normalised.

        Raises:
            ValueError: There is none that can be read; the message names the file.
        """
        try:
            if not self.as_timm:
                return self(decode(path))
            with Image.open(path) as image:
                return self(image)
        except UNREADABLE as e:
            raise ValueError(f'{path} cannot be read: {e}') from e

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
    config = {**resolve_model_data_config(model), **input_config(model, input_size, mean, std)}
    if len(config['input_size']) != 3:  # of a Perceiver for audio, video or points
        raise ValueError(f'this {type(model).__name__} takes no images')
    if config['input_size'][0] not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, the model takes {config["input_size"][0]}')
    return Preprocessing(config, create_transform(**config), as_timm)


def decode(image: Union[PathLike, BinaryIO, Image.Image]) -> Image.Image:
    """The one reader of image files: their first frame, the right way up.

    Args:
        image: Path, file opened for reading bytes, or an image whose pixels PIL may not have read yet.

    Returns:
        The image, its pixels in memory, turned and mirrored as its EXIF orientation says.

    Raises:
        UNREADABLE: It cannot be read.
    """
    image = image if isinstance(image, Image.Image) else Image.open(image)
    image.load()
    return image if _orientation(image) == UPRIGHT else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # what broken EXIF raises is of nearly any type, and the pixels are fine
        return UPRIGHT


def read_image(path: PathLike) -> Image.Image:
    """The image in a file, as `decode` reads it.

    Raises:
        ValueError: There is none that can be read.
    """
    try:
        return decode(path)
    except UNREADABLE as e:
        raise ValueError(f'{path} cannot be read: {e}') from e


def as_array(image: Image.Image, channels: int) -> np.ndarray:
    """The pixels of an image.

    16 bits are taken as 0 to 1 over 65,535, also where 32 bits hold them, and floating-point numbers as they are; no
    image is stretched to its own range. What is transparent is seen on white, unless the model takes four channels.
    Everything else (palettes, 1 bit, CMYK) is PIL's conversion to 8 bits.

    Args:
        image: As `decode` gives it.
        channels: C: 1 grey, 3 RGB or 4 RGBA; any number for the same grey in each of 16-bit and floating-point images.

    Returns:
        (H, W, C), uint8, or float32 in [0, 1].

    Raises:
        ValueError: There are no pixels of that many channels.
        PixelError: Numbers are out of range, or PIL cannot convert them.
    """
    if image.mode.startswith('I;16') or image.mode in ('I', 'F'):  # which PIL would clip to eight bits
        return np.repeat(_unit(np.asarray(image), image.mode)[..., None], channels, 2)
    if channels not in MODES:
        raise ValueError(f'an image of mode {image.mode} has no {channels} channels')
    try:
        if channels < 4 and image.has_transparency_data:
            image = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        pixels = np.asarray(image.convert(MODES[channels]))
    except ValueError as e:
        raise PixelError(str(e)) from e
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _unit(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Numbers of a PIL image of more than eight bits as float32 in [0, 1]."""
    low, high, largest = pixels.min(), pixels.max(), 1 if mode == 'F' else 65535
    if not (low >= 0 and high <= largest):  # NaN neither
        raise PixelError(f'pixels of mode {mode} must be in 0 to {largest:,}, they are in {low:,} to {high:,}')
    return pixels.astype(np.float32) / np.float32(largest)


def as_tensor(image: Any, channels: int) -> torch.Tensor:
    """An image as a tensor (channels, H, W).

    Args:
        image: PIL image, array (H, W) or (H, W, C), or tensor (C, H, W).
        channels: C; a PIL image is converted, as `as_array` does.

    Returns:
        uint8, or floating-point; uint16 becomes float32 in [0, 1].

    Raises:
        ValueError: It is none of these, has other channels, or other numbers.
    """
    if isinstance(image, Image.Image):
        image = as_array(image, channels)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image[..., None] if image.ndim == 2 else image)).permute(2, 0, 1)
    if not isinstance(image, torch.Tensor):
        raise ValueError(f'an image must be a PIL image, an array or a tensor, got {type(image).__name__}')
    if image.ndim != 3 or image.shape[0] != channels:
        raise ValueError(f'an image must have shape ({channels}, H, W), got {tuple(image.shape)}')
    if image.dtype == torch.uint16:
        return image.float() / 65535
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f'an image must be uint8, uint16 or floating-point in [0, 1], got {image.dtype}')
    return image
