"""Classes of images, audio and point clouds in files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generator, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import nn

from timm_extra._device import find_device
from timm_extra._files import PathLike, check_folder, check_output
from timm_extra._progress import progress_bar
from timm_extra.images import check_normalisation, find_files, open_tiles
from timm_extra.inputs import Inputs, inputs_of
from timm_extra.models.info import class_labels


@dataclass(frozen=True)
class Guess:
    """A class that an image may show.

    Attributes:
        index: Its number.
        label: Its name, its number where the model does not say.
        probability: Of the softmax over all classes.
    """

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model takes an image for.

    Attributes:
        path: File of the image.
        guesses: Classes, the most probable first; none if the file cannot be read.
        error: Why it cannot.
    """

    path: str
    guesses: List[Guess]
    error: Optional[str] = None


def predict(
    model: nn.Module,
    images: Iterable[PathLike],
    *,
    topk: int = 5,
    batch_size: int = 32,
    device: str = 'auto',
    progress: bool = False,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    as_timm: bool = False,
) -> Generator[Prediction, None, None]:
    """Classify images or other files that the model takes, preprocessed as the model's configuration says.

    Args:
        model: A timm classifier of images, audio or points; it is set to evaluation mode and moved.
        images: Files and folders.
        topk: Classes for each image, fewer if the model has fewer.
        batch_size: Images at a time.
        device: Where to compute, as `find_device` takes it: 'auto', 'cpu', 'cuda'.
        progress: Show a bar on stderr (needs tqdm).
        input_size: As in `timm_extra.images.input_config`, like `mean` and `std`.
        mean: What images are normalised with.
        std: Likewise.
        as_timm: As in `timm_extra.images.Preprocessing`.

    Returns:
        One entry for each image, in order, as they are computed.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The model has no classifier or takes no images, a value is out of range, or there is no such device.
    """
    _check(model, topk=topk, batch_size=batch_size)
    inputs = inputs_of(model, input_size, mean, std, as_timm=as_timm)
    files, labels = find_files(images, inputs.kind).files, class_labels(model)
    model = model.to(find_device(device)).eval()
    return _predict(model, files, inputs, labels, min(topk, len(labels)), batch_size, progress)


def predict_stream(
    model: nn.Module,
    images: Iterable[PathLike],
    *,
    topk: int = 5,
    device: str = 'auto',
    progress: bool = False,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    state: Optional[PathLike] = None,
) -> Generator[Prediction, None, None]:
    """Classify images that are larger than memory, each read tile by tile as a whole: neither resized nor cut apart.

    Args:
        model: A Perceiver that streams (`forward_stream`); it is set to evaluation mode and moved.
        images: Files that `timm_extra.images.open_tiles` opens.
        topk: As in `predict`, like `device`.
        device: Likewise.
        progress: Show a bar of tiles on stderr (needs tqdm).
        mean: What pixels from 0 to 1 are normalised with; the model's when None.
        std: Likewise.
        state: File that what is done of an image is written to, for one image alone: an interrupted call goes on there.

    Returns:
        One entry for each image, in order, as they are computed.

    Raises:
        ValueError: The model has no classifier or does not stream, a value is out of range, or there is no such device.
            What is wrong with an image or with the state is the `error` of its entry.
    """
    _check(model, topk=topk)
    images = list(images)
    if not hasattr(model, 'forward_stream'):
        raise ValueError(f'this {type(model).__name__} reads no image in tiles: Perceiver and Perceiver IO do')
    model.stem.naflex_patch_size()  # refuses what sees beyond a tile
    if state is not None and len(images) != 1:
        raise ValueError(f'a state is of one image, got {len(images)}')
    if state is not None:
        check_output(state, force=True)
        check_folder(Path(state).parent)
    for name, values in (('mean', mean), ('std', std)):
        if values is not None:
            check_normalisation((model.in_chans,), **{'mean': (0.0,), 'std': (1.0,), name: values})
    labels = class_labels(model)
    model = model.to(find_device(device)).eval()
    options = dict(mean=mean, std=std, state=state, progress=progress)
    return _predict_stream(model, images, labels, min(topk, len(labels)), options)


def _predict_stream(model, images, labels, topk, options) -> Generator[Prediction, None, None]:
    for file in images:
        try:
            source = open_tiles(file)
            with torch.inference_mode():
                logits = model.forward_stream(source, **options)
        except (ValueError, FileNotFoundError) as e:
            yield Prediction(str(file), [], str(e))
        else:
            yield Prediction(str(file), _guesses(logits, 1, labels, topk)[0])


def _check(model: nn.Module, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if getattr(model, 'num_classes', 0) < 1:
        raise ValueError(f'this {type(model).__name__} has no classifier')


def _predict(model, files, inputs, labels, topk, batch_size, progress) -> Generator[Prediction, None, None]:
    like = next(model.parameters())
    with progress_bar(len(files), inputs.kind.one, progress) as update:
        for begin in range(0, len(files), batch_size):
            read = [_read(file, inputs) for file in files[begin : begin + batch_size]]
            tensors = [x for x, _ in read if x is not None]
            guesses = iter(())
            if tensors:
                with torch.inference_mode():
                    guesses = iter(_guesses(model(torch.stack(tensors).to(like)), len(tensors), labels, topk))
            for file, (x, error) in zip(files[begin : begin + batch_size], read, strict=True):
                yield Prediction(str(file), [] if x is None else next(guesses), error)
            update(len(read))


def _guesses(logits: torch.Tensor, count: int, labels: Sequence[str], topk: int) -> List[List[Guess]]:
    """The most probable classes of each input of a batch."""
    if logits.shape != (count, len(labels)):
        raise ValueError(f'the model gives {tuple(logits.shape)}, not ({count}, {len(labels)}) logits')
    probable = logits.float().softmax(-1).topk(topk)
    return [
        [Guess(i, labels[i], v) for v, i in zip(values, indices, strict=True)]
        for values, indices in zip(probable.values.tolist(), probable.indices.tolist(), strict=True)
    ]


def _read(file: PathLike, inputs: Inputs) -> Tuple[Optional[torch.Tensor], Optional[str]]:
    """A file as the model sees it, or why there is none."""
    try:
        return inputs.read(file), None
    except ValueError as e:
        return None, str(e)
