"""Image files, and how a model sees them in evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Union

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.data.readers.img_extensions import get_img_extensions
from torch import nn

from .views import view_config

PathLike = Union[str, Path]
MODES = {1: 'L', 3: 'RGB'}


@dataclass(frozen=True)
class Preprocessing:
    """How a model sees images in evaluation.

    Attributes:
        config: Arguments of timm's `create_transform`.
        transform: PIL image to tensor (C, height, width).
    """

    config: Dict[str, Any]
    transform: Callable[[Image.Image], torch.Tensor]

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Image to (C, height, width), normalised."""
        return self.transform(picture.convert(MODES[self.config['input_size'][0]]))

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
        input_size: As in `timm_extra.views.view_config`, like `mean` and `std`.
        mean: What images are normalised with.
        std: Likewise.

    Returns:
        The preprocessing.

    Raises:
        ValueError: The model does not take images of 1 or 3 channels.
    """
    config = {**resolve_model_data_config(model), **view_config(model, input_size, mean, std)}
    if getattr(getattr(model, 'stem', None), 'num_axes', 2) != 2:  # of a Perceiver for sound, films or points
        raise ValueError(f'this {type(model).__name__} takes no images')
    if config['input_size'][0] not in MODES:
        raise ValueError(f'pictures have 1 or 3 channels, the model takes {config["input_size"][0]}')
    return Preprocessing(config, create_transform(**config))


def read_image(path: PathLike) -> Image.Image:
    """The image in a file.

    Raises:
        ValueError: There is none that can be read.
    """
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:  # SyntaxError: PIL's, of some broken files
        raise ValueError(f'{path} cannot be read: {e}') from e
    return picture


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
