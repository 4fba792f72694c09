"""Optical flow in the colours of the field: the hue is the direction, the saturation the length."""

from pathlib import Path
from typing import Any, Generator, NamedTuple, Optional, Union

import torch
from PIL import Image
from torch import nn

from timm_extra._files import PathLike, atomic_file, atomic_folder, check_folder, check_output
from timm_extra.flow import Video, VideoFlow, as_flow, estimate_video_flow, known_flow, open_video, write_flo

# from red over yellow, green, cyan, blue and magenta to red again, in steps that look alike
STEPS = (15, 6, 4, 11, 13, 6)
CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0))
SUFFIXES = ('.flo', '.png')
BEYOND = 0.75  # brightness of flow that is longer than the maximum
FLOAT32 = 1e-6  # what rounding of the components can add to a length


def colour_wheel() -> torch.Tensor:
    """Colours of the 55 directions, (55, 3), in 0 to 255."""
    parts = []
    for steps, begin, end in zip(STEPS, torch.tensor(CORNERS), torch.tensor(CORNERS[1:]), strict=False):
        moved = (255 * torch.arange(steps) // steps)[:, None]  # in whole numbers, as the reference has it
        parts.append(begin + (end - begin).sign() * moved)
    return torch.cat(parts).float()


def flow_colours(flow: Any, max_flow: Optional[float] = None) -> torch.Tensor:
    """Colours of optical flow: no motion is white, to the right red, down yellow, to the left cyan, up violet.

    The wheel of Baker et al. (A Database and Evaluation Methodology for Optical Flow, ICCV 2007), as in
    `colorcode.cpp` of https://vision.middlebury.edu/flow/code/flow-code/: flow beyond the maximum has the full colour,
    darker by a quarter, and unknown flow is black. `torchvision.utils.flow_to_image` gives the same colours to ±1, but
    knows neither of the two, and adds float32's epsilon to the maximum, which shows where that is below 1e-4.

    Args:
        flow: Tensor or NumPy array (2, H, W) in pixels, x to the right and y down; unknown where
            `timm_extra.flow.known_flow` says so.
        max_flow: Length in pixels that has the full colour; that of the longest known flow when None.

    Returns:
        (3, H, W) RGB, uint8.

    Raises:
        ValueError: It is neither, has another shape or no pixels, or the maximum is not positive.
    """
    flow = as_flow(flow, single=True)
    _check_max_flow(max_flow)
    known = known_flow(flow)
    flow = torch.where(known, flow.detach(), 0).double()
    length = torch.linalg.vector_norm(flow, dim=0)
    if max_flow is None:
        max_flow = float(length.max()) or 1.0
    length = (length / max_flow).unsqueeze(-1)
    beyond = length > 1 + FLOAT32
    wheel = colour_wheel().to(flow)
    place = (torch.atan2(-flow[1], -flow[0]) / torch.pi + 1) / 2 * (len(wheel) - 1)
    below = place.floor().long()
    between = (place - below).unsqueeze(-1)
    hue = ((1 - between) * wheel[below] + between * wheel[(below + 1) % len(wheel)]) / 255  # (H, W, 3)
    colours = torch.where(beyond, BEYOND * hue, 1 - length.clamp(max=1) * (1 - hue))
    return (255 * colours * known.unsqueeze(-1)).floor().byte().permute(2, 0, 1)


def write_flow_image(flow: Any, path: PathLike, max_flow: Optional[float] = None) -> Path:
    """Write optical flow in the colours of `flow_colours` as an image file.

    Args:
        flow: As in `flow_colours`, like `max_flow`.
        path: File to write, of the kind that its extension names, which Pillow has to know; PNG keeps the colours.
        max_flow: Likewise.

    Returns:
        The path.

    Raises:
        ValueError: As in `flow_colours`, and for an extension of no images.
    """
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        said = f'the extension {path.suffix!r}' if path.suffix else 'no extension'
        raise ValueError(f'{path} has {said}, which says no kind of image: name it .png')
    image = Image.fromarray(flow_colours(flow, max_flow).permute(1, 2, 0).cpu().numpy())
    with atomic_file(path) as aside:
        image.save(aside)
    return path


class FlowFiles(NamedTuple):
    """What is known of the flow between two frames, and where it was written.

    Attributes:
        first: Frame whose pixels move: its file, or its number in a video.
        second: The next one.
        flo: File of the flow.
        png: Picture of it.
        mean: Mean length in pixels, of known flow; 0 where none is.
        longest: The longest in pixels, likewise.
    """

    first: str
    second: str
    flo: str
    png: str
    mean: float
    longest: float


def plot_flow(
    model: nn.Module,
    video: Union[Video, PathLike],
    folder: PathLike,
    *,
    max_flow: Optional[float] = None,
    device: str = 'auto',
    progress: bool = False,
    force: bool = False,
) -> Generator[FlowFiles, None, None]:
    """Estimate the flow between successive frames and write each as `.flo` and PNG, named as its first frame.

    Args:
        model: As in `timm_extra.flow.estimate_video_flow`, like `device` and `progress`.
        video: What `timm_extra.flow.open_frames` or `open_video` gives, or what the latter takes.
        folder: Folder to write to, made if absent.
        max_flow: As in `flow_colours`.
        device: Likewise.
        progress: Likewise.
        force: Replace files that exist.

    Returns:
        One entry for each pair of successive frames, in order, as they are written.

    Raises:
        OSError: As in `check_flow_files`; before anything is computed.
        ValueError: As in `flow_colours` and `estimate_video_flow`.
    """
    video = open_video(video) if isinstance(video, (str, Path)) else video
    check_flow_files(video, folder, max_flow=max_flow, force=force)
    found = estimate_video_flow(model, video, device=device, progress=progress)
    return (_write(pair, Path(folder), max_flow) for pair in found)


def _check_max_flow(max_flow: Optional[float]) -> None:
    if max_flow is not None and not 0 < max_flow < float('inf'):
        raise ValueError(f'`max_flow` must be positive and finite, got {max_flow}')


def check_flow_files(video: Video, folder: PathLike, *, max_flow: Optional[float] = None, force: bool = False) -> None:
    """Refuse what `plot_flow` refuses, without a model, as one that would have to be downloaded first.

    Args:
        video: As in `plot_flow`, like `folder`, `max_flow` and `force`.
        folder: Likewise.
        max_flow: Likewise.
        force: Likewise.

    Raises:
        FileExistsError: A file to write is there.
        NotADirectoryError: The folder, or one that it lies in, is a file.
        PermissionError: The folder cannot be written to.
        ValueError: A file to write is one of the frames, or the maximum is not positive.
    """
    if not isinstance(video, Video):
        raise ValueError(f'the video must be what open_video gives, got {type(video).__name__}')
    _check_max_flow(max_flow)
    folder = Path(folder)
    check_folder(folder)
    if not folder.exists():
        return
    if video.images:
        names = [image.stem for image in video.images[:-1]]
        there = [folder / f'{name}{suffix}' for name in names for suffix in SUFFIXES]
    else:  # of a number of frames that its file need not say
        there = [f for f in sorted(folder.iterdir()) if f.suffix in SUFFIXES and video.is_frame(f.stem)]
    read = {image.resolve() for image in video.images or [video.path]}
    for file in there:
        if file.resolve() in read:
            raise ValueError(f'{file} is one of the images, and would be replaced: name another folder for the output')
        check_output(file, force)


def _write(pair: VideoFlow, folder: Path, max_flow: Optional[float]) -> FlowFiles:
    flo, png = (f'{pair.first.name}{suffix}' for suffix in SUFFIXES)
    with atomic_folder(folder) as aside:
        write_flo(pair.flow, aside / flo)
        write_flow_image(pair.flow, aside / png, max_flow)
    length = torch.linalg.vector_norm(pair.flow, dim=0)[known_flow(pair.flow)]
    return FlowFiles(
        first=pair.first.source,
        second=pair.second.source,
        flo=str(folder / flo),
        png=str(folder / png),
        mean=float(length.mean()) if len(length) else 0.0,
        longest=float(length.max()) if len(length) else 0.0,
    )
