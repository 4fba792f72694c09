"""Pairs of images with exactly known optical flow, made from photos that packages ship.

A photo is seen through a window that moves by an affine map, and before it patches of other photos move by maps of
their own. Both images are sampled from the same photos (bicubic), so that the flow is exact to a fraction of a pixel.
"""

import importlib.util
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate
from torch.utils.data import Dataset

from timm_extra.flow.video import read_pixels

# package, as pip calls it, and file in its folder; no photo is in both splits
PHOTOS: Dict[str, Tuple[Tuple[str, str, str], ...]] = {
    'train': (
        *(('scikit-image', 'skimage', f'data/{name}.png') for name in ('astronaut', 'chelsea', 'motorcycle_left')),
        *(('scikit-image', 'skimage', f'data/{name}.png') for name in ('camera', 'brick', 'gravel', 'coins')),
        *(('scikit-image', 'skimage', f'data/{name}.jpg') for name in ('rocket', 'hubble_deep_field')),
        ('scikit-learn', 'sklearn', 'datasets/images/china.jpg'),
        ('matplotlib', 'matplotlib', 'mpl-data/sample_data/grace_hopper.jpg'),
    ),
    'test': (
        *(('scikit-image', 'skimage', f'data/{name}.png') for name in ('coffee', 'grass', 'ihc')),
        ('scikit-learn', 'sklearn', 'datasets/images/flower.jpg'),
    ),
}
SHORTER = 256  # pixels of the shorter edge that photos are scaled to


@dataclass(frozen=True)
class Motion:
    """How much moves, all drawn evenly from 0 or from both directions up to these.

    Attributes:
        shift: Pixels along each axis, of the background.
        patch_shift: Likewise, of a patch.
        angle: Degrees.
        scale: Natural logarithm of the magnification.
        shear: Pixels for a pixel.
        patches: Number of patches.
    """

    shift: float = 3.0
    patch_shift: float = 4.0
    angle: float = 5.0
    scale: float = 0.05
    shear: float = 0.03
    patches: int = 3

    def scaled(self, factor: float) -> 'Motion':
        """As many patches, all of which move that much less or more."""
        moved = {one.name: factor * getattr(self, one.name) for one in fields(self) if one.name != 'patches'}
        return replace(self, **moved)


class Pair(NamedTuple):
    """Two images and what moved between them.

    Attributes:
        frames: (3, 2, H, W) RGB in 0 to 1.
        flow: (2, H, W) in pixels of the first image, x to the right and y down.
        valid: (H, W), whether the four pixels around the end point are in the second image and show the same thing.
    """

    frames: torch.Tensor
    flow: torch.Tensor
    valid: torch.Tensor


class Layer(NamedTuple):
    """Something that moves.

    Attributes:
        photo: (3, H, W).
        origin: Point (x, y) of the photo that is at `centre` in the first image.
        zoom: Pixels of the photo for a pixel of the image, at most 1.
        centre: Point (x, y) of the first image that the map turns about.
        matrix: The linear part (2, 2) of the map from the first image to the second.
        shift: Its translation (x, y).
        radii: Half axes of the ellipse around the centre that it fills; infinite for the background.
    """

    photo: torch.Tensor
    origin: np.ndarray
    zoom: float
    centre: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    radii: np.ndarray

    def forward(self, points: np.ndarray) -> np.ndarray:
        """Where points (…, 2) of the first image are in the second."""
        return (points - self.centre) @ self.matrix.T + self.centre + self.shift

    def backward(self, points: np.ndarray) -> np.ndarray:
        """Where points (…, 2) of the second image were in the first."""
        return (points - self.centre - self.shift) @ np.linalg.inv(self.matrix).T + self.centre

    def covers(self, points: np.ndarray) -> np.ndarray:
        """Whether it fills points (…, 2) of the first image."""
        return np.square((points - self.centre) / self.radii).sum(-1) < 1

    def colours(self, points: np.ndarray) -> torch.Tensor:
        """Its colours (3, H, W) at points (H, W, 2) of the first image; photos are mirrored beyond their borders."""
        size = np.array(self.photo.shape[:0:-1]) - 1
        grid = 2 * ((points - self.centre) * self.zoom + self.origin) / size - 1
        grid = torch.from_numpy(grid).float()[None]
        options = dict(mode='bicubic', padding_mode='reflection', align_corners=True)
        return grid_sample(self.photo[None], grid, **options)[0].clamp(0, 1)


class FlowPairs(Dataset):
    """Pairs (`Pair`) made from photos, the same each time for the same arguments.

    Args:
        photos: (3, H, W) each, RGB in 0 to 1.
        length: Number of pairs.
        size: Height and width of the images.
        seed: Which pairs.
        motion: How much moves.
    """

    def __init__(
        self,
        photos: Sequence[torch.Tensor],
        length: int,
        size: Tuple[int, int] = (96, 96),
        seed: int = 0,
        motion: Motion = Motion(),
    ):
        self.photos, self.length, self.size, self.seed, self.motion = list(photos), length, size, seed, motion

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.length:
            raise IndexError(f'pairs are 0 to {self.length - 1}, got {index}')
        random = np.random.default_rng((self.seed, index))
        layers = [self._layer(random, patch=False)]
        layers += [self._layer(random, patch=True) for _ in range(random.integers(self.motion.patches + 1))]
        return render(layers, self.size)

    def _layer(self, random: np.random.Generator, patch: bool) -> Layer:
        photo = self.photos[random.integers(len(self.photos))]
        height, width = self.size
        spread = np.array([width, height], dtype=float)
        motion, centre, radii = self.motion, (spread - 1) / 2, np.full(2, np.inf)
        if patch:
            centre = random.uniform(0, spread - 1)
            radii = random.uniform(0.1, 0.3, 2) * spread.min()
        limit = motion.patch_shift if patch else motion.shift
        angle = np.deg2rad(random.uniform(-motion.angle, motion.angle))
        scale = np.exp(random.uniform(-motion.scale, motion.scale))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shear = np.eye(2) + np.diag(random.uniform(-motion.shear, motion.shear, 2))[::-1]
        return Layer(
            photo=photo,
            origin=random.uniform(0, np.array(photo.shape[:0:-1]) - 1),
            zoom=random.uniform(0.5, 1),
            centre=centre,
            matrix=turn @ shear,
            shift=random.uniform(-limit, limit, 2),
            radii=radii,
        )


def render(layers: Sequence[Layer], size: Tuple[int, int]) -> Pair:
    """Two images of layers, the first of which fills them and later ones are before earlier ones.

    Args:
        layers: What moves.
        size: Height H and width W.
    """
    height, width = size
    points = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(float)  # (H, W, 2)
    first, second = torch.zeros(2, 3, height, width)
    top, later_top = np.zeros((2, height, width), dtype=int)
    flow = np.zeros((height, width, 2))
    for number, layer in enumerate(layers):
        there, before = layer.covers(points), layer.backward(points)
        then = layer.covers(before)
        first = torch.where(torch.from_numpy(there), layer.colours(points), first)
        second = torch.where(torch.from_numpy(then), layer.colours(before), second)
        flow[there] = (layer.forward(points) - points)[there]
        top[there], later_top[then] = number, number
    end = points + flow
    low = np.floor(end).astype(int)
    inside = ((end >= 0) & (end <= (width - 1, height - 1))).all(-1)
    valid = inside.copy()
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = (low[..., 0] + dx).clip(0, width - 1), (low[..., 1] + dy).clip(0, height - 1)
            valid &= later_top[y, x] == top
    flow = torch.from_numpy(flow.transpose(2, 0, 1).astype(np.float32))
    return Pair(torch.stack([first, second], 1), flow, torch.from_numpy(valid))


def load_photos(split: str) -> List[torch.Tensor]:
    """The photos of 'train' or 'test' (3, H, W), RGB in 0 to 1, their shorter edge `SHORTER` pixels at most.

    Raises:
        ModuleNotFoundError: A package that ships one is not installed.
    """
    photos = []
    for package, name, file in PHOTOS[split]:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f'photos of {package} are needed: pip install {package}')
        photo = read_pixels(Path(spec.submodule_search_locations[0]) / file)
        scale = min(1.0, SHORTER / min(photo.shape[1:]))
        photos.append(interpolate(photo[None], scale_factor=scale, mode='bilinear', antialias=True)[0])
    return photos


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """An image (3, H, W) at the end points of flow (2, H, W), bilinear."""
    _, height, width = flow.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    grid = 2 * torch.stack([(x + flow[0]) / (width - 1), (y + flow[1]) / (height - 1)], -1) - 1
    return grid_sample(image[None], grid[None], align_corners=True)[0]
