"""Images that are read in parts: tiled TIFF files, Zarr and other arrays, slides."""

import os
import threading
from pathlib import Path
from typing import Any, Sequence, Tuple, Union

import numpy as np

from timm_extra._files import PathLike

AREA = 1 << 20  # pixels that are read at once, about
SIDE = 1024
SLIDES = ('.svs', '.ndpi', '.mrxs', '.scn', '.bif', '.vms', '.vmu', '.svslide')  # what OpenSlide alone reads well


class ArrayTiles:
    """Anything with a shape (height, width) or (height, width, channels) that is cut by slices.

    NumPy's arrays and memory maps, Zarr's and HDF5's arrays: only what is asked for is read.

    Args:
        array: The array.
        name: What errors call it.
    """

    def __init__(self, array: Any, name: str = 'the array'):
        if len(array.shape) not in (2, 3):
            raise ValueError(f'{name} must be (height, width) or (height, width, channels), got {tuple(array.shape)}')
        self.array, self.name = array, name
        self.shape = tuple(array.shape) if len(array.shape) == 3 else (*array.shape, 1)
        chunks = getattr(array, 'chunks', None) or (SIDE, SIDE)
        self.tile = tuple(max(1, SIDE // chunk) * chunk for chunk in chunks[:2])

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (height, width, channels)."""
        pixels = np.ascontiguousarray(self.array[rows, columns])
        return pixels if pixels.ndim == 3 else pixels[..., None]


class TiffTiles:
    """The largest image of a TIFF file, OME-TIFF and BigTIFF among them, in the tiles or strips that it is stored in.

    Args:
        path: The file.

    Raises:
        ValueError: It is no TIFF file, is truncated, or has more than one plane of other than channels.
    """

    def __init__(self, path: PathLike):
        tifffile = _package('tifffile', 'TIFF files')
        self.name = str(path)
        self._lock = threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
            series = max(self._file.series, key=lambda one: one.size)
            self._pages = [page.aspage() for page in series.levels[0].pages]
        except (tifffile.TiffFileError, OSError, ValueError, IndexError) as e:
            raise ValueError(f'{path} is no TIFF file that can be read: {e}') from e
        page = self._pages[0]
        self._channels_apart = len(self._pages) > 1 or page.planarconfig == 2
        channels = len(self._pages) if len(self._pages) > 1 else page.samplesperpixel
        axes = series.levels[0].axes
        if len(self._pages) > 1 and not (set(axes) <= set('CSYX') and page.samplesperpixel == 1):
            raise ValueError(f'{path} has {len(self._pages)} planes along {axes}, not one image')
        self.shape = (page.imagelength, page.imagewidth, channels)
        if page.is_tiled:
            self._segment = page.tilelength, page.tilewidth
        else:
            self._segment = min(page.rowsperstrip, page.imagelength), page.imagewidth
        height, width = self._segment
        if width >= SIDE:
            self.tile = max(1, AREA // (width * height)) * height, width
        else:
            self.tile = max(1, SIDE // height) * height, max(1, SIDE // width) * width
        self._check_length()
        status = os.stat(path)
        self.version = status.st_size, status.st_mtime_ns

    def _check_length(self) -> None:
        size = os.path.getsize(self.name)
        for page in self._pages:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                if offset + count > size:
                    raise ValueError(
                        f'{self.name} is truncated: it has {size} bytes, its pixels go to {offset + count}'
                    )

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (height, width, channels)."""
        out = np.zeros((rows.stop - rows.start, columns.stop - columns.start, self.shape[2]), self._pages[0].dtype)
        height, width = self._segment
        across = -(-self.shape[1] // width)
        down = -(-self.shape[0] // height)
        planes = len(self._pages) if len(self._pages) > 1 else (self.shape[2] if self._channels_apart else 1)
        for plane in range(planes):
            page = self._pages[plane] if len(self._pages) > 1 else self._pages[0]
            skipped = plane * across * down if len(self._pages) == 1 else 0
            target = out[..., plane : plane + 1] if self._channels_apart else out
            for i in range(rows.start // height, -(-rows.stop // height)):
                for j in range(columns.start // width, -(-columns.stop // width)):
                    pixels = self._decoded(page, skipped + i * across + j)
                    _paste(target, pixels, i * height - rows.start, j * width - columns.start)
        return out

    def _decoded(self, page: Any, index: int) -> np.ndarray:
        """A tile or strip (height, width, samples); what lies beyond the image is cut off by the caller."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return np.zeros((*self._segment, 1), page.dtype)  # a tile that the file leaves out
        with self._lock:
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(count)
        segment, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        return segment[0]  # (depth, height, width, samples)


class SlideTiles:
    """The highest resolution of a slide, by OpenSlide; what no scan covers is white.

    Args:
        path: The file.

    Raises:
        ValueError: OpenSlide cannot read it.
    """

    def __init__(self, path: PathLike):
        openslide = _package('openslide', 'slides')
        try:
            self._slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideError as e:
            raise ValueError(f'{path} cannot be read by OpenSlide: {e}') from e
        self.name = str(path)
        width, height = self._slide.dimensions
        self.shape, self.tile = (height, width, 3), (SIDE, SIDE)
        status = os.stat(path)
        self.version = status.st_size, status.st_mtime_ns

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (height, width, 3)."""
        size = columns.stop - columns.start, rows.stop - rows.start
        pixels = np.asarray(self._slide.read_region((columns.start, rows.start), 0, size)).astype(np.uint16)
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def open_tiles(image: Union[PathLike, Any]) -> Union[ArrayTiles, TiffTiles, SlideTiles]:
    """An image for `forward_stream` of a Perceiver, of which only tiles are in memory.

    Args:
        image: A TIFF file, a slide, a Zarr or NumPy (.npy) file, or an array as `ArrayTiles` takes it.

    Returns:
        The image.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none that is read in tiles, or a package is missing.
    """
    if not isinstance(image, (str, os.PathLike)):
        return ArrayTiles(image)
    path = Path(image)
    if not path.exists():
        raise FileNotFoundError(f'no file {str(path)!r}')
    suffix = path.suffix.lower()
    if suffix in ('.tif', '.tiff', '.btf', '.tf8'):
        return TiffTiles(path)
    if suffix in SLIDES:
        return SlideTiles(path)
    if suffix == '.npy':
        try:
            return ArrayTiles(np.load(path, mmap_mode='r'), str(path))
        except (ValueError, EOFError) as e:
            raise ValueError(f'{path} is no array that can be read: {e}') from e
    if suffix == '.zarr' or (path / 'zarr.json').exists() or (path / '.zarray').exists():
        return ArrayTiles(_zarr(path), str(path))
    raise ValueError(f'{path} is not read in tiles: TIFF, .npy and Zarr are, and with OpenSlide {", ".join(SLIDES)}')


def _zarr(path: Path) -> Any:
    zarr = _package('zarr', 'Zarr arrays')
    try:
        found = zarr.open(str(path), mode='r')
    except Exception as e:  # what broken arrays raise is of nearly any type
        raise ValueError(f'{path} is no Zarr array that can be read: {e}') from e
    if hasattr(found, 'shape'):
        return found
    about = dict(found.attrs).get('ome', found.attrs).get('multiscales')
    if not about:
        raise ValueError(f'{path} is a group of Zarr arrays: name one of {sorted(found)}')
    axes = [axis['name'] if isinstance(axis, dict) else axis for axis in about[0].get('axes', 'tczyx')]
    return _Plane(found[about[0]['datasets'][0]['path']], axes, str(path))


class _Plane:
    """The one image (height, width, channels) of an OME-Zarr array, whose axes are in another order."""

    def __init__(self, array: Any, axes: Sequence[str], name: str):
        sizes = dict(zip(axes, array.shape, strict=True))
        if any(size > 1 for axis, size in sizes.items() if axis not in 'cyx'):
            raise ValueError(f'{name} has several images: {sizes}')
        self.array, self.axes = array, axes
        self.shape = (sizes['y'], sizes['x'], sizes.get('c', 1))
        chunks = dict(zip(axes, array.chunks, strict=True))
        self.chunks = chunks['y'], chunks['x']

    def __getitem__(self, key: Tuple[slice, slice]) -> np.ndarray:
        parts = dict(zip('yx', key, strict=True), c=slice(None))
        pixels = np.asarray(self.array[tuple(parts.get(axis, 0) for axis in self.axes)])
        left = [axis for axis in self.axes if axis in 'cyx']
        return pixels.transpose([left.index(axis) for axis in 'yxc']) if 'c' in left else pixels[..., None]


def _package(name: str, words: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as e:
        raise ValueError(f'{words} need the package {name}: pip install "timm-extra[tiles]"') from e


def _paste(out: np.ndarray, pixels: np.ndarray, top: int, left: int) -> None:
    """Put pixels into `out` where they meet it; they begin at row `top` and column `left`, which may be outside."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + pixels.shape[0], out.shape[0]), min(left + pixels.shape[1], out.shape[1])
    out[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]


__all__ = ['ArrayTiles', 'SlideTiles', 'TiffTiles', 'open_tiles']
