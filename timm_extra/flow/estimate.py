"""Flow that a model estimates, between two images and along a video."""

import os
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any, Iterator, NamedTuple, Tuple

import torch
from torch import nn

from timm_extra._device import find_device
from timm_extra._progress import progress_bar
from timm_extra.images import as_tensor, input_config

from .video import CHANNELS, Frame, Video, check_number, check_sizes, open_video, read_pixels, unit_pixels

FRAMES = 2


class VideoFlow(NamedTuple):
    """Flow between two frames of a video.

    Attributes:
        first: Frame whose pixels move.
        second: The next one.
        flow: (2, H, W) in pixels, x to the right and y down, float32 on the CPU.
    """

    first: Frame
    second: Frame
    flow: torch.Tensor


def check_estimates_flow(model: nn.Module) -> None:
    """Refuse a model that does not take two frames, or gives something else for them, as classes of a video.

    Args:
        model: A timm model.

    Raises:
        ValueError: Its inputs or its outputs are others.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'the model must be a timm model, got {type(model).__name__}')
    size = input_config(model)['input_size']
    # of two classes for the whole video, only what the model gives can tell
    outputs, classifies = getattr(model, 'num_classes', 2), getattr(model, 'query_type', None) == 'learned'
    if len(size) != 4 or size[:2] != (CHANNELS, FRAMES):
        taken = '×'.join(map(str, size))
        problem = f'its inputs are {taken}, not {CHANNELS}×{FRAMES}×H×W'
    elif outputs != 2:
        problem = f'its num_classes is {outputs}, not 2, x and y of every pixel'
    elif classifies:
        problem = "it classifies, as its query_type is 'learned'"
    else:
        return
    raise ValueError(f'this {type(model).__name__} estimates no flow: {problem}')


def estimate_flow(model: nn.Module, first: Any, second: Any, *, device: str = 'auto') -> torch.Tensor:
    """Estimate where every pixel of an image has moved to in another.

    Args:
        model: A timm model of flow, as `perceiver_io_flow`; it is set to evaluation mode and moved.
        first: Image of any size: a file, or what `timm_extra.images.as_tensor` takes.
        second: The later image, of the same size.
        device: Where to compute, as `find_device` takes it: 'auto', 'cpu', 'cuda'.

    Returns:
        (2, H, W) in pixels, x to the right and y down, float32 on the CPU: pixel (x, y) of the first image is at
        (x + flow[0, y, x], y + flow[1, y, x]) in the second.

    Raises:
        ValueError: The model estimates no flow, an image cannot be read, the sizes differ, or there is no such device.
    """
    frames = (_frame(image, which, f'the {which} image') for image, which in ((first, 'first'), (second, 'second')))
    (found,) = estimate_video_flow(model, frames, device=device)
    return found.flow


def estimate_video_flow(
    model: nn.Module, video: Any, *, device: str = 'auto', progress: bool = False
) -> Iterator[VideoFlow]:
    """Estimate the flow from each frame of a video to the next.

    Args:
        model: As in `estimate_flow`, like `device`.
        video: What `open_video` takes or gives, or other frames one after the other, each a `Frame` or what
            `estimate_flow` takes.
        device: Likewise.
        progress: Show a bar on stderr (needs tqdm).

    Returns:
        One entry for each pair of successive frames, in order, as they are computed.

    Raises:
        FileNotFoundError: As in `open_video`, like `ModuleNotFoundError`.
        ValueError: The model estimates no flow, there is no such device or video, and while it goes on: a frame cannot
            be read, two differ in size, or there are fewer than two.
    """
    check_estimates_flow(model)
    video = _frames(video)
    config = input_config(model)
    model = model.to(find_device(device)).eval()
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    return _estimate(model, video, mean, std, progress)


def _estimate(model, video, mean: torch.Tensor, std: torch.Tensor, progress: bool) -> Iterator[VideoFlow]:
    total = video.total - 1 if isinstance(video, Video) and video.total else None
    like = next(model.parameters())
    with progress_bar(total, 'pair', progress) as update:
        for first, second in _pairs(video):
            frames = torch.stack([(frame.pixels - mean) / std for frame in (first, second)], 1)  # (3, 2, H, W)
            with torch.inference_mode(), _sizes_refused():
                flow = model(frames[None].to(like))
            height, width = frames.shape[-2:]
            if flow.shape != (1, 2, height, width):
                raise ValueError(f'the model gives {tuple(flow.shape)}, not flow of (1, 2, {height}, {width})')
            update(1)
            yield VideoFlow(first, second, flow[0].float().cpu())


@contextmanager
def _sizes_refused() -> Iterator[None]:
    """Report frames that a model does not take, of another size than its learned positions, as a bad value."""
    try:
        yield
    except AssertionError as e:
        raise ValueError(str(e)) from e


def _frames(video: Any) -> Iterable[Frame]:
    """The frames of what stands for a video."""
    if isinstance(video, Video):
        return video
    if isinstance(video, (str, os.PathLike)):
        return open_video(video)
    if not isinstance(video, Iterable):
        raise ValueError(f'the video must be a file, a folder or frames, got {type(video).__name__}')
    return (_frame(frame, str(number), f'frame {number}') for number, frame in enumerate(video))


def _pairs(video: Iterable[Frame]) -> Iterator[Tuple[Frame, Frame]]:
    """Successive frames, of which there must be two."""
    count, first = 0, None
    for second in video:
        count += 1
        if first is not None:
            check_sizes(first, second)
            yield first, second
        first = second
    check_number(count, video)


def _frame(image: Any, name: str, source: str) -> Frame:
    """An image in a file or in memory as a frame."""
    if isinstance(image, Frame):
        return image._replace(pixels=unit_pixels(as_tensor(image.pixels, CHANNELS)))
    if isinstance(image, (str, os.PathLike)):
        return Frame(name, str(image), read_pixels(image))
    return Frame(name, source, unit_pixels(as_tensor(image, CHANNELS)))
