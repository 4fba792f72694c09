"""Point clouds and meshes in files as inputs of a Perceiver."""

from dataclasses import dataclass
from typing import Tuple

import numpy as np
import torch

from timm_extra._files import PathLike
from timm_extra.images import FileKind

POINTS = FileKind('point cloud', 'point clouds', frozenset(('.ply', '.off', '.npz')))
LARGEST = 1e30  # of a coordinate: squares of larger ones are not finite in float32
KEYS = ('points', 'xyz', 'pos')  # what arrays of points are called in NPZ files


@dataclass(frozen=True)
class PointReader:
    """Reads as many points as a model takes, in the unit sphere around their mean.

    Attributes:
        input_size: Points and their channels, which are the three coordinates.
        random: Draw the points by the random state of PyTorch; always the same ones if not.

    Raises:
        ValueError: The model takes more than coordinates.
        ModuleNotFoundError: trimesh is not installed.
    """

    input_size: Tuple[int, int]
    random: bool = False

    def __post_init__(self):
        if self.input_size[1] != 3:
            raise ValueError(f'files have points of 3 coordinates, the model takes {self.input_size[1]} channels')
        try:
            import trimesh  # noqa: F401 (missed now, not by the first file)
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError('point clouds need trimesh: pip install "timm-extra[points]"') from e

    def read(self, path: PathLike) -> torch.Tensor:
        """Points (N, 3) of a file: of the surface of a mesh, else of its points, each once if there are enough.

        Raises:
            ValueError: There are none that can be read; the message names the file.
        """
        count = self.input_size[0]
        seed = int(torch.randint(2**31, ())) if self.random else 0
        try:
            points = _drawn(path, count, np.random.default_rng(seed))
        except Exception as e:  # what broken files raise is of nearly any type
            raise ValueError(f'{path} cannot be read: {" ".join(str(e).split()) or type(e).__name__}') from e
        points = points - points.mean(0)
        return torch.from_numpy(points / max(np.linalg.norm(points, axis=1).max(), 1e-12)).float()


def _drawn(path: PathLike, count: int, random: np.random.Generator) -> np.ndarray:
    """Points (count, 3) drawn from a file."""
    import trimesh

    if str(path).lower().endswith('.npz'):
        points = _array(path)
    else:
        shape = trimesh.load(path, process=False)
        if isinstance(shape, trimesh.Trimesh) and len(shape.faces):
            return _checked(np.asarray(trimesh.sample.sample_surface(shape, count, seed=random)[0]))
        points = np.asarray(getattr(shape, 'vertices', ()), dtype=np.float64)
    return _checked(points)[random.choice(len(points), count, replace=len(points) < count)]


def _array(path: PathLike) -> np.ndarray:
    """The points (N, 3) in an NPZ file: of the array that is called so, or of the only one."""
    with np.load(path, allow_pickle=False) as arrays:
        found = [name for name in KEYS if name in arrays] or (arrays.files if len(arrays.files) == 1 else [])
        if not found:
            raise ValueError(f'none of its arrays is called {", ".join(KEYS)}: {", ".join(arrays.files)}')
        points = arrays[found[0]]
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f'{found[0]} must have the shape (N, 3), it has {points.shape}')
    if points.dtype.kind not in 'fiu':
        raise ValueError(f'{found[0]} must hold numbers, it holds {points.dtype}')
    return points[:, :3].astype(np.float64)


def _checked(points: np.ndarray) -> np.ndarray:
    if not len(points) or not (np.abs(points) < LARGEST).all():  # NaN neither
        raise ValueError(f'it has no points, or some that are no numbers below {LARGEST:g}')
    return points
