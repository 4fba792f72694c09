"""Labelled images of shards as a model sees them."""

from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from timm_extra._files import PathLike
from timm_extra.images import UNREADABLE, ShardReader
from timm_extra.images.shards import ShardFile, has_split

from .config import FinetuneConfig


@dataclass(frozen=True)
class ShardImages(Dataset):
    """Labelled images of shards.

    Attributes:
        reader: The shards.
        indices: Numbers of the images (N,), in order.
        read: From a file in memory to an input; raises a ValueError that names it if it cannot be read.
    """

    reader: ShardReader
    indices: np.ndarray
    read: Callable[[ShardFile], torch.Tensor]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        number = int(self.indices[index])
        try:
            file, label = self.reader[number]
        except UNREADABLE as e:
            raise ValueError(f'{self.reader.filename(number)} cannot be read: {e}') from e
        return self.read(file), label

    def epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        """All places in `indices` in the order of an epoch, which is that of the shards."""
        places = np.full(len(self.reader), -1)
        places[self.indices] = np.arange(len(self.indices))
        found = places[self.reader.epoch_order(rng)]
        return found[found >= 0]


@dataclass(frozen=True)
class ShardSplit:
    """Shards to learn from and images of them or of others that are held out."""

    train: ShardReader
    learned: np.ndarray
    validation: ShardReader
    held_out: np.ndarray
    source: str

    @property
    def files(self) -> str:
        """What stands for the images."""
        return f'{self.train.fingerprint}-{self.validation.fingerprint}'


def split_shards(
    folder: PathLike, config: FinetuneConfig, input_key: Optional[str] = None, target_key: Optional[str] = None
) -> ShardSplit:
    """Find the splits of a folder of shards, or make them.

    Args:
        folder: Folder of shards.
        config: Options: what is held out, what is done with damaged shards.
        input_key: As in `ShardReader`, like `target_key`.
        target_key: Likewise.

    Raises:
        ValueError: There are fewer than two classes, images without one, classes without images to learn from, or
            nothing to hold out.
    """
    options = dict(input_key=input_key, target_key=target_key, unreadable=config.unreadable)
    train = ShardReader(folder, 'train', **options)
    notes: List[str] = [train.found] if train.found else []
    classes = list(train.class_to_idx)
    if len(classes) == 1:
        raise ValueError(
            f'the shards in {folder} have one class only, {classes[0]!r}: there is nothing to tell it from'
        )
    everything = _labelled(train, config.unreadable, notes)
    if has_split(folder, 'validation'):
        validation = ShardReader(folder, 'validation', class_map=train.class_to_idx, **options)
        notes += [validation.found] if validation.found else []
        measured = _labelled(validation, config.unreadable, notes)
        source = (
            f'{len(everything):,} in shards of train in {folder}, {len(measured):,} held out in those of validation'
        )
        return ShardSplit(train, everything, validation, measured, '; '.join([source, *notes]))
    held_out = _drawn(train.targets, config.holdout, config.seed)
    if not len(held_out):
        raise ValueError(
            f'the shards in {folder} have {len(train)} images, of which `holdout={config.holdout:g}` holds out none: '
            'there is nothing to measure accuracy on'
        )
    learned = np.setdiff1d(everything, held_out)
    source = (
        f'{len(learned):,} in shards in {folder}, {len(held_out):,} of them held out '
        f'(holdout {config.holdout:g}, seed {config.seed})'
    )
    return ShardSplit(train, learned, train, held_out, '; '.join([source, *notes]))


def _labelled(reader: ShardReader, unreadable: str, notes: List[str]) -> np.ndarray:
    """Numbers of the images, but for those whose class cannot be read; a note says how many these are."""
    targets, unread = reader.targets, reader.unread_classes
    without = np.setdiff1d(np.flatnonzero(targets < 0), list(unread))
    if len(without):
        have = 'images in {} have' if len(without) > 1 else 'image in {} has'
        name = reader.filename(int(without[0]))
        raise ValueError(f'{len(without):,} {have.format(reader.root)} no class, such as {name}')
    if unread:
        number, reason = next(iter(unread.items()))
        place = f'that of {reader.filename(number)}: {reason}'
        if unreadable == 'raise':
            raise ValueError(f"a class cannot be read, {place}; `unreadable='skip'` leaves such images out")
        images = f'{len(unread):,} image{"s" * (len(unread) > 1)}'
        notes.append(f'left out: {images} whose class cannot be read, such as {place}')
    return np.flatnonzero(targets >= 0)


def _drawn(targets: np.ndarray, part: float, seed: int) -> np.ndarray:
    """A part of each class, an image at least, that is drawn by a seed; in order."""
    drawn = [np.array([], dtype=np.int64)]
    for label in np.unique(targets[targets >= 0]):
        members = np.flatnonzero(targets == label)
        number = max(int(part * len(members)), int(len(members) > 1))
        drawn.append(members[np.random.default_rng([seed, int(label)]).permutation(len(members))[:number]])
    return np.sort(np.concatenate(drawn))
