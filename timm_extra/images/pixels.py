"""The one reader of images: files and arrays to pixels."""

from typing import Any, BinaryIO, Union

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from timm_extra._files import PathLike

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # PIL's modes by channels
UPRIGHT = 1  # the EXIF orientation of an image that is stored as it is seen


class PixelError(ValueError):
    """An image whose numbers are no pixels."""


# what PIL raises, SyntaxError of some broken files, and what `as_array` does
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError, PixelError)


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
