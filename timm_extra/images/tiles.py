"""Images that are read in parts: tiled TIFF files, Zarr and other arrays, slides."""

import os
import threading
from pathlib import Path
from typing import Any, Hashable, Optional, Sequence, Tuple, Union

import numpy as np

from timm_extra._files import PathLike

SIDE = 1024  # pixels along each side of what is read at once, about
AREA = SIDE**2
LARGEST = 1 << 26  # pixels that a file may store in one piece
SLIDES = ('.svs', '.ndpi', '.mrxs', '.scn', '.bif', '.vms', '.vmu', '.svslide')  # what OpenSlide alone reads well


class ArrayTiles:
    """Anything with a shape (height, width) or (height, width, channels) that is cut by slices.

    NumPy's arrays and memory maps, Zarr's and HDF5's arrays: only what is asked for is read.

    Args:
        array: The array.
        name: What errors call it.
        path: Where it is stored, if that is known.

    Raises:
        ValueError: It is no such array.
    """

    def __init__(self, array: Any, name: str = 'the array', path: Optional[PathLike] = None):
        shape = tuple(getattr(array, 'shape', ()))
        if len(shape) not in (2, 3):
            raise ValueError(f'{name} must be (height, width) or (height, width, channels), got {shape or type(array)}')
        self.array, self.name, self._path = array, name, path
        self.shape = shape if len(shape) == 3 else (*shape, 1)
        chunks = getattr(array, 'chunks', None) or (1, 1)
        self.tile = _tile(*(chunk if isinstance(chunk, int) else max(chunk) for chunk in chunks[:2]))

    @property
    def version(self) -> Optional[Hashable]:
        """Size and time of what is stored; None where that is not known."""
        return None if self._path is None else _version(self._path)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (height, width, channels)."""
        pixels = np.asarray(self.array[rows, columns])
        pixels = np.array(pixels, pixels.dtype.newbyteorder('='), order='C')  # PyTorch takes no other
        return pixels if pixels.ndim == 3 else pixels[..., None]


class TiffTiles:
    """The largest image of a TIFF file, OME-TIFF and BigTIFF among them, in the tiles or strips that it is stored in.

    Args:
        path: The file.

    Raises:
        ValueError: It is no TIFF file, is truncated, has several images, or pixels that are no grey and no RGB.
    """

    def __init__(self, path: PathLike):
        tifffile = _package('tifffile', 'TIFF files', '"timm-extra[tiles]"')
        self.name, self._lock = str(path), threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
            level = max(self._file.series, key=lambda one: one.size).levels[0]
            self._pages = [page.aspage() for page in level.pages]
            page = self._pages[0]
        except Exception as e:  # what broken files raise is of nearly any type
            raise ValueError(f'{path} is no TIFF file that can be read: {_line(e)}') from e
        several = {axis: size for axis, size in zip(level.axes, level.shape, strict=True) if axis not in 'CSYX'}
        if any(size > 1 for size in several.values()) or page.imagedepth > 1 or level.axes.count('S') > 1:
            raise ValueError(f'{path} has several images: {several or f"depth {page.imagedepth}"}')
        self._by_page = len(self._pages) > 1  # of one channel each
        self._planes = len(self._pages) if self._by_page else page.samplesperpixel if page.planarconfig == 2 else 1
        channels = len(self._pages) if self._by_page else page.samplesperpixel
        if self._by_page and page.samplesperpixel > 1:
            raise ValueError(f'{path} has {len(self._pages)} images of {page.samplesperpixel} channels')
        self.shape = (page.imagelength, page.imagewidth, channels)
        self._check(page)
        self._raw = not page.is_tiled and page.compression == 1 and page.predictor == 1
        if page.is_tiled:
            self._segment = page.tilelength, page.tilewidth
        else:
            self._segment = 1 if self._raw else min(page.rowsperstrip, page.imagelength), page.imagewidth
        self.tile = _tile(*self._segment)
        if self._segment[0] * self._segment[1] > LARGEST:
            pixels = ' × '.join(map(str, self._segment))
            raise ValueError(f'{path} stores {pixels} pixels in one compressed piece: write it in tiles')

    def _check(self, page: Any) -> None:
        """Refuse numbers that are no pixels as they are, and missing ends of files."""
        grey_or_rgb = {1: 'MINISBLACK', 2: 'RGB', 6: 'YCBCR'}
        if page.photometric not in grey_or_rgb:
            raise ValueError(f'{self.name} has {page.photometric.name} pixels, not grey or RGB')
        if page.dtype is None or page.bitspersample != 8 * page.dtype.itemsize:
            raise ValueError(f'{self.name} has {page.bitspersample} bits for each number, not 8, 16 or 32')
        orientation = page.tags.valueof('Orientation', 1)
        if orientation != 1:
            raise ValueError(f'{self.name} has orientation {int(orientation)}: turn it upright first')
        for one in self._pages:
            size = one.parent.filehandle.size
            for offset, count in zip(one.dataoffsets, one.databytecounts, strict=True):
                if offset + count > size:
                    raise ValueError(
                        f'{self.name} is truncated: it has {size} bytes, its pixels go to {offset + count}'
                    )

    @property
    def version(self) -> Hashable:
        """Size and time of the file."""
        return _version(self.name)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Pixels (height, width, channels)."""
        out = np.zeros((rows.stop - rows.start, columns.stop - columns.start, self.shape[2]), self._pages[0].dtype)
        height, width = self._segment
        across, down = -(-self.shape[1] // width), -(-self.shape[0] // height)
        for plane in range(self._planes):
            page = self._pages[plane if self._by_page else 0]
            first = 0 if self._by_page else plane * across * down
            target = out[..., plane : plane + 1] if self._planes > 1 else out
            for i in range(rows.start // height, -(-rows.stop // height)):
                for j in range(columns.start // width, -(-columns.stop // width)):
                    decode = self._row if self._raw else self._decoded
                    _paste(
                        target, decode(page, first + i * across + j), i * height - rows.start, j * width - columns.start
                    )
        return out

    def _bytes(self, page: Any, offset: int, count: int) -> bytes:
        handle = page.parent.filehandle  # channels may lie in files of their own, which tifffile closes
        with self._lock:
            if handle.closed:
                handle.open()
            handle.seek(offset)
            return handle.read(count)

    def _decoded(self, page: Any, index: int) -> np.ndarray:
        """A tile or strip (height, width, samples); what lies beyond the image is cut off by the caller."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return np.zeros((*self._segment, 1), page.dtype)  # a tile that the file leaves out
        segment, _, _ = page.decode(self._bytes(page, offset, count), index, jpegtables=page.jpegtables)
        return segment[0]  # (depth, height, width, samples)

    def _row(self, page: Any, index: int) -> np.ndarray:
        """A row (1, width, samples) of uncompressed strips, which may be of any size."""
        plane, row = divmod(index, self.shape[0])
        strips = -(-self.shape[0] // page.rowsperstrip)
        strip, within = divmod(row, page.rowsperstrip)
        samples = 1 if self._planes > 1 else self.shape[2]
        count = self.shape[1] * samples * page.dtype.itemsize
        data = self._bytes(page, page.dataoffsets[plane * strips + strip] + within * count, count)
        stored = page.dtype.newbyteorder(page.parent.byteorder)
        return np.frombuffer(data, stored).reshape(1, self.shape[1], samples)


class SlideTiles:
    """The highest resolution of a slide, by OpenSlide; what no scan covers is white.

    Args:
        path: The file.

    Raises:
        ValueError: OpenSlide cannot read it.
    """

    def __init__(self, path: PathLike):
        openslide = _package('openslide', 'slides', 'openslide-python openslide-bin')
        try:
            self._slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideError as e:
            raise ValueError(f'{path} cannot be read by OpenSlide: {e}') from e
        self.name = str(path)
        width, height = self._slide.dimensions
        self.shape, self.tile = (height, width, 3), (SIDE, SIDE)

    @property
    def version(self) -> Hashable:
        """Size and time of the file."""
        return _version(self.name)

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
            array = np.load(path, mmap_mode='r')
        except (ValueError, EOFError) as e:
            raise ValueError(f'{path} is no array that can be read: {_line(e)}') from e
        return ArrayTiles(array, str(path), path)
    if suffix == '.zarr' or any((path / name).exists() for name in ('zarr.json', '.zarray', '.zgroup')):
        return ArrayTiles(_zarr(path), str(path), path)
    raise ValueError(f'{path} is not read in tiles: TIFF, .npy and Zarr are, and with OpenSlide {", ".join(SLIDES)}')


def _zarr(path: Path) -> Any:
    zarr = _package('zarr', 'Zarr arrays', '"timm-extra[tiles]"')
    try:
        found = zarr.open(str(path), mode='r')
        if hasattr(found, 'shape'):
            return found
        about = dict(found.attrs).get('ome', found.attrs).get('multiscales')
        if about:
            axes = [axis['name'] if isinstance(axis, dict) else axis for axis in about[0].get('axes', 'tczyx')]
            return _Plane(found[about[0]['datasets'][0]['path']], axes, str(path))
        names = sorted(found)
    except Exception as e:  # what broken arrays raise is of nearly any type
        raise ValueError(f'{path} is no Zarr array that can be read: {_line(e)}') from e
    raise ValueError(f'{path} is a group of Zarr arrays: name one of {names}')


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


def _package(name: str, words: str, install: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as e:
        raise ValueError(f'{words} need the package {name}: pip install {install}') from e


def _tile(height: int, width: int) -> Tuple[int, int]:
    """Height and width of what is read at once, of whole pieces that are stored so."""
    if width >= SIDE:
        return max(1, AREA // (width * height)) * height, width
    return max(1, SIDE // height) * height, max(1, SIDE // width) * width


def _version(path: PathLike) -> Hashable:
    """Size and last change of a file, or of all files in a folder."""
    files = sorted(Path(path).rglob('*')) if Path(path).is_dir() else [Path(path)]
    status = [os.stat(file) for file in files]
    return len(files), sum(one.st_size for one in status), max(one.st_mtime_ns for one in status)


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return ' '.join(str(error).split()) or type(error).__name__


def _paste(out: np.ndarray, pixels: np.ndarray, top: int, left: int) -> None:
    """Put pixels into `out` where they meet it; they begin at row `top` and column `left`, which may be outside."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + pixels.shape[0], out.shape[0]), min(left + pixels.shape[1], out.shape[1])
    out[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]


__all__ = ['ArrayTiles', 'SlideTiles', 'TiffTiles', 'open_tiles']
