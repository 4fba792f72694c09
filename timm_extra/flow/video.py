"""Frames of a video: of a file, or images in a folder in the order of their names."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence, Union

import torch
from timm.utils.misc import natural_key

from timm_extra._files import PathLike
from timm_extra.images import as_tensor, find_images, read_header, read_image

CHANNELS = 3
QUARTER_TURN = 90  # degrees


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        name: That of its file without the extension; of a frame in a video file the file's, and a number from 0.
        source: What messages call it.
        pixels: (3, H, W) RGB, float32 in 0 to 1.
    """

    name: str
    source: str
    pixels: torch.Tensor


@dataclass(frozen=True)
class Video:
    """Frames that are read from their files one after the other, as often as wanted.

    Attributes:
        path: Folder or file; of two images the first.
        total: Number of frames; None where a file does not say.
        images: Files of the frames, where each has one.
    """

    path: Path
    total: Optional[int]
    images: Sequence[Path] = ()

    def __iter__(self) -> Iterator[Frame]:
        """Read the frames.

        Raises:
            ValueError: One cannot be read; the message names the file.
        """
        if not self.images:
            yield from _decoded(self.path)
        for file in self.images:
            yield Frame(file.stem, str(file), read_pixels(file))

    def is_frame(self, name: str) -> bool:
        """Whether a frame of a video file may have that name."""
        begin, _, number = name.rpartition('-')
        return begin == self.path.stem and number.isdecimal()


def open_frames(paths: Union[PathLike, Sequence[PathLike]]) -> Video:
    """Two images, or a video that is ready to be read.

    Args:
        paths: Two image files, or one video as `open_video` takes it.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ModuleNotFoundError: As in `open_video`.
        ValueError: There are none or more than two, or as in `open_video`.
    """
    if isinstance(paths, (str, os.PathLike)):
        return open_video(paths)
    if len(paths) == 1:
        return open_video(paths[0])
    if len(paths) != 2:
        raise ValueError(f'give two images, or one video or folder of frames, got {len(paths)} files')
    images = [Path(path) for path in paths]
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f'no image at {str(path)!r}')
    return Video(images[0], 2, images)


def open_video(path: PathLike) -> Video:
    """A video that is ready to be read.

    Args:
        path: Folder of images, which are frames in the order of their names (2 before 10; what lies in its folders does
            not count), or file of any format that FFmpeg reads, by PyAV.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ModuleNotFoundError: It is a file, and PyAV is not installed.
        ValueError: It has no frames, two images in the folder have the same name, or the file is no video.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'no video or folder at {str(path)!r}')
    if not path.is_dir():
        with _opened(path) as container:
            return Video(path, container.streams.video[0].frames or None)
    images = [file for file in find_images([path]).files if file.parent == path]
    images.sort(key=lambda file: (natural_key(file.name), file.name))
    if not images:
        raise ValueError(f'no images in {path} itself, only in its folders')
    names: Dict[str, Path] = {}
    for file in images:
        if names.setdefault(file.stem, file) != file:
            raise ValueError(f'{names[file.stem]} and {file} would be one frame, as they have the same name')
    return Video(path, len(images), images)


def check_frames(video: Video) -> None:
    """Refuse a video without two frames of one size, as far as headers of images and two frames of a file tell.

    What they do not tell is found when a frame is read: a file that is cut off, frames of a video after the second.

    Raises:
        ValueError: There are fewer than two frames, one cannot be read, or they differ in size.
    """
    if not video.images:
        check_number(len(list(islice(video, 2))), video)
        return
    check_number(len(video.images), video)
    headers = [read_header(file) for file in video.images]
    for i in range(1, len(headers)):
        if headers[i - 1] is None or headers[i - 1] != headers[i]:  # decoding has the last word
            check_sizes(*Video(video.path, 2, video.images[i - 1 : i + 1]))


def check_number(count: int, video: Any) -> None:
    """Refuse fewer frames than two of a `Video` or of others."""
    if count < 2:
        what = video.path if isinstance(video, Video) else 'the video'
        raise ValueError(f'{what} has {"one frame" if count else "no frame"}, flow needs two')


def check_sizes(first: Frame, second: Frame) -> None:
    """Refuse two frames of different sizes."""
    if first.pixels.shape != second.pixels.shape:
        said = [f'{frame.source} is {frame.pixels.shape[2]} × {frame.pixels.shape[1]}' for frame in (first, second)]
        raise ValueError(f'{said[0]} and {said[1]} pixels: flow needs images of one size')


def read_pixels(path: PathLike) -> torch.Tensor:
    """The image in a file as (3, H, W) RGB, float32 in 0 to 1.

    Raises:
        ValueError: There is none that can be read; the message names the file.
    """
    image = read_image(path)
    try:
        return unit_pixels(as_tensor(image, CHANNELS))
    except ValueError as e:
        raise ValueError(f'{path} cannot be read: {e}') from e


def unit_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as `as_tensor` gives them as float32 in 0 to 1."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def _decoded(path: Path) -> Iterator[Frame]:
    """Frames of a video file, turned as it says."""
    with _opened(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            pixels = torch.from_numpy(frame.to_ndarray(format='rgb24')).permute(2, 0, 1)
            pixels = pixels.rot90(round(frame.rotation / QUARTER_TURN), (1, 2))  # as phones state it, counter-clockwise
            yield Frame(f'{path.stem}-{number:05}', f'frame {number} of {path}', unit_pixels(pixels))


@contextmanager
def _opened(path: Path):
    """A file as PyAV's container, whose errors name it."""
    try:
        import av
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('videos need PyAV: pip install "timm-extra[video]"') from e
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f'{path} has no pictures')
            yield container
    except av.FFmpegError as e:
        raise ValueError(f'{path} cannot be read: {e.strerror}') from e
