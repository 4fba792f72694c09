"""Flow that a model estimates, between two images and along a video."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import nn

from timm_extra._device import find_device
from timm_extra._progress import progress_bar
from timm_extra.images import as_tensor, input_config

from .video import CHANNELS, Frame, Video, read_pixels, unit_pixels

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
    """Refuse a model that does not take two frames.

    Args:
        model: A timm model.

    Raises:
        ValueError: Its inputs are of another shape.
    """
    size = input_config(model)['input_size']
    if len(size) != 4 or size[:2] != (CHANNELS, FRAMES):
        taken = '×'.join(map(str, size))
        raise ValueError(
            f'this {type(model).__name__} estimates no flow: its inputs are {taken}, not {CHANNELS}×{FRAMES}×H×W'
        )


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
    frames = (_frame(image, which) for image, which in ((first, 'first'), (second, 'second')))
    (found,) = estimate_video_flow(model, frames, device=device)
    return found.flow


def estimate_video_flow(
    model: nn.Module, video: Any, *, device: str = 'auto', progress: bool = False
) -> Iterator[VideoFlow]:
    """Estimate the flow from each frame of a video to the next.

    Args:
        model: As in `estimate_flow`, like `device`.
        video: What `open_video` gives, or other frames (`Frame`), one after the other.
        device: Likewise.
        progress: Show a bar on stderr (needs tqdm).

    Returns:
        One entry for each pair of successive frames, in order, as they are computed.

    Raises:
        ValueError: The model estimates no flow, there is no such device, and while it goes on: a frame cannot be read,
            two differ in size, or there are fewer than two.
    """
    check_estimates_flow(model)
    config = input_config(model)
    model = model.to(find_device(device)).eval()
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    return _estimate(model, video, mean, std, progress)


def _estimate(model, video, mean: torch.Tensor, std: torch.Tensor, progress: bool) -> Iterator[VideoFlow]:
    total = video.total - 1 if isinstance(video, Video) and video.total else None
    bar = progress_bar(total, 'pair') if progress else None
    like = next(model.parameters())
    try:
        for first, second in _pairs(video):
            frames = torch.stack([(frame.pixels - mean) / std for frame in (first, second)], 1)  # (3, 2, H, W)
            with torch.inference_mode(), _sizes_refused():
                flow = model(frames[None].to(like))
            height, width = frames.shape[-2:]
            if flow.shape != (1, 2, height, width):
                raise ValueError(f'the model gives {tuple(flow.shape)}, not flow of (1, 2, {height}, {width})')
            if bar is not None:
                bar.update()
            yield VideoFlow(first, second, flow[0].float().cpu())
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def _sizes_refused() -> Iterator[None]:
    """Report frames that a model does not take, of another size than its learned positions, as a bad value."""
    try:
        yield
    except AssertionError as e:
        raise ValueError(str(e)) from e


def _pairs(video) -> Iterator[Tuple[Frame, Frame]]:
    """Successive frames, of which there must be two."""
    first: Optional[Frame] = None
    single = True
    for second in video:
        if first is not None:
            _check_sizes(first, second)
            single = False
            yield first, second
        first = second
    if single:
        what = video.path if isinstance(video, Video) else 'the video'
        raise ValueError(f'{what} has {"no frame" if first is None else "one frame"}, flow needs two')


def _check_sizes(first: Frame, second: Frame) -> None:
    if first.pixels.shape != second.pixels.shape:
        said = [f'{frame.source} is {frame.pixels.shape[2]} × {frame.pixels.shape[1]}' for frame in (first, second)]
        raise ValueError(f'{said[0]} and {said[1]} pixels: flow needs images of one size')


def _frame(image: Any, which: str) -> Frame:
    """An image in a file or in memory as a frame."""
    if isinstance(image, (str, Path)):
        return Frame(which, str(image), read_pixels(image))
    return Frame(which, f'the {which} image', unit_pixels(as_tensor(image, CHANNELS)))
