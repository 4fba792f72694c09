"""Image files and tensors, and what input a model takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, List, Optional, Sequence, Union

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.data.readers.img_extensions import get_img_extensions
from torch import nn

from ._files import PathLike
from .models._size import fitting
from .models._size import input_size as own_input_size

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # PIL's modes by channels
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what PIL raises; SyntaxError of some broken files


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
    found = {
        name: fitting(config[name], size[0]) if given is None else tuple(given)
        for name, given in (('mean', mean), ('std', std))
    }
    return dict(input_size=size, **found)


@dataclass(frozen=True)
class Preprocessing:
    """How a model sees images in evaluation.

    Attributes:
        config: Arguments of timm's `create_transform`.
        transform: PIL image to tensor (C, height, width).
    """

    config: Dict[str, Any]
    transform: Callable[[Image.Image], torch.Tensor]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Image to (C, height, width), normalised."""
        return self.transform(image.convert(MODES[self.config['input_size'][0]]))

    def visible(self, x: torch.Tensor) -> torch.Tensor:
        """Images (…, C, height, width) as before normalisation, in 0 to 1."""
        mean, std = (torch.tensor(self.config[name]).view(-1, 1, 1) for name in ('mean', 'std'))
        return (x.cpu() * std + mean).clamp(0, 1)


def preprocessing(
    model: nn.Module,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
) -> Preprocessing:
    """What a model's own configuration says about preprocessing.

    Args:
        model: A timm model of images.
        input_size: As in `input_config`, like `mean` and `std`.
        mean: What images are normalised with.
        std: Likewise.

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
    return Preprocessing(config, create_transform(**config))


def decode(image: Union[PathLike, BinaryIO, Image.Image]) -> Image.Image:
    """The one reader of image files.

    Args:
        image: Path, file opened for reading bytes, or an image whose pixels PIL may not have read yet.

    Returns:
        The image, its pixels in memory.

    Raises:
        UNREADABLE: What PIL raises.
    """
    image = image if isinstance(image, Image.Image) else Image.open(image)
    image.load()
    return image


def read_image(path: PathLike) -> Image.Image:
    """The image in a file.

    Raises:
        ValueError: There is none that can be read.
    """
    try:
        return decode(path)
    except UNREADABLE as e:
        raise ValueError(f'{path} cannot be read: {e}') from e


def as_tensor(image: Any, channels: int) -> torch.Tensor:
    """An image as a tensor (channels, H, W).

    Args:
        image: PIL image, array (H, W) or (H, W, C), or tensor (C, H, W).
        channels: C.

    Returns:
        uint8, or floating-point; uint16 becomes float32 in [0, 1].

    Raises:
        ValueError: It is none of these, has other channels, or other numbers.
    """
    if isinstance(image, Image.Image):
        if image.mode.startswith('I;16') or image.mode in ('I', 'F'):  # which PIL would clip to eight bits
            image = np.asarray(image)
            image = np.repeat((image.astype(np.uint16) if image.dtype == np.int32 else image)[..., None], channels, 2)
        elif channels in MODES:
            image = image.convert(MODES[channels])
        image = np.asarray(image)
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


def find_images(paths: Iterable[PathLike]) -> List[Path]:
    """Files as they are, and the images in folders and their folders, in order of their names.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder has no images.
    """
    extensions, found = tuple(get_img_extensions()), []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f'no image or folder at {str(path)!r}')
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(f for f in path.rglob('*') if f.is_file() and f.name.lower().endswith(extensions))
        if not inside:
            raise ValueError(f'no images in {path}')
        found += inside
    return found
