"""The one reader of images: files and arrays to pixels."""

import os
import warnings
from functools import cache
from typing import Any, BinaryIO, Optional, Tuple, Union

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from timm_extra._files import PathLike

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # PIL's modes by channels
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PixelError(ValueError):
    """An image that cannot be read, or whose numbers are no pixels."""


# what `decode` and `as_array` raise, and PIL within other readers, SyntaxError of some broken files
UNREADABLE = (PixelError, OSError, SyntaxError, Image.DecompressionBombError)


def decode(image: Union[PathLike, BinaryIO, Image.Image], upright: bool = True) -> Image.Image:
    """The one reader of image files: their first frame, the right way up.

    Args:
        image: Path, file opened for reading bytes, or an image whose pixels PIL may not have read yet.
        upright: Turn and mirror the image as its EXIF orientation says. (Those of TIFF files PIL turns itself.)

    Returns:
        The image, its pixels in memory.

    Raises:
        PixelError: It cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # of an image that is read all the same
            image = _loaded(image)
    except Exception as e:  # what broken files raise is of nearly any type
        raise PixelError(_reason(e)) from e
    turn = TURNS.get(_orientation(image)) if upright else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {key: image.info[key] for key in ('transparency',) if key in image.info}  # without the orientation
    return turned


def _reason(error: Exception) -> str:
    """What is wrong with a file, without its name, which the caller says."""
    if isinstance(error, UnidentifiedImageError):
        return 'cannot identify image file'
    return getattr(error, 'strerror', None) or str(error)


def read_header(path: PathLike) -> Optional[Tuple[int, int, Optional[int]]]:
    """What the header of an image file says, without its pixels.

    Returns:
        Width and height as they are stored, and the EXIF orientation, if there is one; None where there is no header
        that can be read. What `decode` gives has the last word on the size.
    """
    reads_heic()
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(file)
            return (*image.size, _orientation(image))
    except Exception:  # as in `decode`, which says what is wrong
        return None


@cache
def reads_heic() -> bool:
    """Let Pillow read HEIC where its plugin is installed; whether it is."""
    try:
        from pillow_heif import register_heif_opener
    except ModuleNotFoundError:
        return False
    register_heif_opener()
    return True


def _loaded(image: Union[PathLike, BinaryIO, Image.Image]) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        with open(image, 'rb') as file:  # PIL maps some files into memory by their path, and turned TIFFs wrongly
            return _loaded(file)
    reads_heic()
    image = image if isinstance(image, Image.Image) else Image.open(image)
    image.load()
    return image


def _orientation(image: Image.Image) -> Optional[int]:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # what broken EXIF raises is of nearly any type, and the pixels are fine
        return None


def read_image(path: PathLike) -> Image.Image:
    """The image in a file, as `decode` reads it.

    Raises:
        ValueError: There is none that can be read.
    """
    try:
        return decode(path)
    except PixelError as e:
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
        pixels = np.asarray(image)
        grey = _unit(pixels, image.mode)
        if channels < 4 and isinstance(image.info.get('transparency'), int):
            grey[pixels == image.info['transparency']] = 1
        return np.repeat(grey[..., None], channels, 2)
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
        ValueError: It is none of these, or has other channels.
        PixelError: Numbers are out of range.
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
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f'an image must be uint8, uint16 or floating-point in [0, 1], got {image.dtype}')
    low, high = map(float, image.aminmax())
    if not (low >= 0 and high <= 1):  # NaN neither
        raise PixelError(f'an image of {image.dtype} must be in 0 to 1, it is in {low:,g} to {high:,g}')
    return image
