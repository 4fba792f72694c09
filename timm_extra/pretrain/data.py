"""From a data set to batches of views that depend on nothing but seed, epoch, index and view."""

from itertools import cycle
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from timm_extra.images import UNREADABLE, ShardReader, as_array, as_tensor, decode
from timm_extra.training.interrupt import ignore_interrupts
from timm_extra.training.order import random_state
from timm_extra.training.workers import BatchesInWords, ItemsInWords, RaisingLoader

from .located import Located, LocatedView, joined
from .views import Images, RandomView

ON_UNREADABLE = ('raise', 'skip')


class Sample(NamedTuple):
    """An image (C, H, W), or None if it could not be read, its class, and its epoch and index."""

    image: Optional[torch.Tensor]
    label: int
    epoch: int
    index: int


class Samples(Dataset):
    """Images of any map-style data set as tensors.

    Items may be an image or a tuple that begins with one and its class, or a dictionary with 'image' (and 'label');
    images may be PIL's, NumPy arrays (H, W) or (H, W, C), or tensors (C, H, W).

    Args:
        dataset: The data set.
        channels: Channels of the images; PIL's are converted.
        labelled: Read the classes, too.
        unreadable: 'raise' or 'skip' what cannot be read.

    Raises:
        ValueError: The data set is no map-style one, or `unreadable` is neither word.
    """

    def __init__(self, dataset: Dataset, channels: int, labelled: bool = False, unreadable: str = 'raise'):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, '__len__'):
            raise ValueError(
                f'{type(dataset).__name__} streams: resuming needs a data set with a length, whose items have an index'
            )
        if unreadable not in ON_UNREADABLE:
            raise ValueError(f'`unreadable` must be one of {", ".join(ON_UNREADABLE)}, got {unreadable!r}')
        self.dataset = dataset
        self.channels = channels
        self.labelled = labelled
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, at: Tuple[int, int]) -> Sample:
        epoch, index = at
        try:
            image, label = self._read(index)
            image = as_tensor(image, self.channels)
        except UNREADABLE as e:
            if self.unreadable == 'raise':
                hint = (
                    '; probes leave no image out' if self.labelled else "; `unreadable='skip'` leaves such images out"
                )
                raise ValueError(f'image {index}{self._name(index)} cannot be read: {e}{hint}') from e
            return Sample(None, -1, epoch, index)
        return Sample(image, label, epoch, index)

    def _read(self, index: int) -> Tuple[Any, int]:
        if isinstance(self.dataset, ImageDataset) and self.dataset.transform is None:
            reader = self.dataset.reader  # the data set itself would put another image in its place
            unlabelled = isinstance(reader, ShardReader) and not self.labelled
            file, label, *_ = (reader.image(index), -1) if unlabelled else reader[index]
            item = decode(file), label
        else:
            item = self.dataset[index]
        image, label = image_of(item, self.channels)
        return image, self._class(label, index) if self.labelled else -1

    def _class(self, label: Any, index: int) -> int:
        try:
            return int(label)
        except (TypeError, ValueError) as e:
            raise ValueError(f'image {index}{self._name(index)} has no class, a number, but {label!r}') from e

    def _name(self, index: int) -> str:
        names = getattr(self.dataset, 'filename', None)
        return f' ({names(index)})' if callable(names) else ''


def fingerprint(dataset: Dataset) -> str:
    """What stands for the files of a data set whose reader has that, as `ShardReader`; empty for others."""
    return getattr(getattr(dataset, 'reader', None), 'fingerprint', '')


def image_of(item: Any, channels: int) -> Tuple[Any, Any]:
    """Image and class in an item of a data set, PIL's as an array (H, W, channels).

    Args:
        item: As `Samples` has it.
        channels: Channels of the image.

    Raises:
        ValueError: It is a dictionary without an image.
        PixelError: It is an image that cannot be read.
    """
    if isinstance(item, dict):
        if 'image' not in item:
            raise ValueError(f"items have no 'image', their keys are {', '.join(map(str, item))}")
        item = item['image'], item.get('label')
    image, label, *_ = (*item, None) if isinstance(item, (tuple, list)) else (item, None)
    return as_array(decode(image), channels) if isinstance(image, Image.Image) else image, label


class MakeViews:
    """Views of images, drawn by (seed, epoch, index, number of the view).

    Args:
        views: `RandomView`s and `LocatedView`s, which draw for every image, or any callables on batches; before one of
            these is called, the states of PyTorch, NumPy and Python are set by the batch's first image.
        seed: Seed of the draws.
    """

    def __init__(self, views: Sequence[Callable[[torch.Tensor], torch.Tensor]], seed: int):
        self.views = tuple(views)
        self.seed = seed

    def __call__(self, images: Images, at: Sequence[Tuple[int, int]]) -> Tuple[Union[torch.Tensor, Located], ...]:
        """All views of images (B, C, H, W), or B images (C, H, W), by their (epoch, index)."""
        out = []
        for number, view in enumerate(self.views):
            keys = [(self.seed, epoch, index, number) for epoch, index in at]
            if isinstance(view, (RandomView, LocatedView)):
                out.append(view(images, keys))
                continue
            with random_state(keys[0]):
                if isinstance(images, torch.Tensor):
                    out.append(view(in_unit_range(images)))
                else:
                    out.append(joined([view(in_unit_range(image[None])) for image in images]))
        return tuple(out)


def in_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Images of uint8 as float32 in [0, 1]; others as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Collate:
    """Samples as a batch, with the views made where the samples are read, or images for views made elsewhere.

    Args:
        make_views: Makes the views; None gives `images` instead of `views`.
    """

    def __init__(self, make_views: Optional[MakeViews]):
        self.make_views = make_views

    def __call__(self, samples: Sequence[Sample]) -> Dict[str, Any]:
        """`views` (tuple of batches) or `images`, `labels`, `at` (epochs and indices), `skipped` (how many).

        So that batches keep their size, other images of the batch take the places of those that could not be read.
        """
        readable = [s for s in samples if s.image is not None]
        if not readable:
            raise ValueError(f'none of the {len(samples)} images of a batch can be read')
        others = cycle(readable)
        filled = [(s, s if s.image is not None else next(others)) for s in samples]
        images: Any = [other.image for _, other in filled]
        if len({(image.shape, image.dtype) for image in images}) == 1:
            images = torch.stack(images)
        at = [(s.epoch, s.index) for s, _ in filled]
        labels = torch.tensor([other.label for _, other in filled])
        batch = dict(labels=labels, at=at, skipped=len(samples) - len(readable))
        made = dict(images=images) if self.make_views is None else dict(views=self.make_views(images, at))
        return dict(batch, **made)


def loader(samples: Samples, batches: Sampler, collate: Collate, workers: int, pin_memory: bool = False) -> DataLoader:
    """Batches read by worker processes, one thread each; their errors arrive as those of this process do."""
    return RaisingLoader(
        ItemsInWords(samples),
        batch_sampler=batches,
        collate_fn=BatchesInWords(collate),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupts,
    )
