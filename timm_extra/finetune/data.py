"""From a folder whose folders are classes to inputs of a model."""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timm_extra._files import PathLike
from timm_extra.images import FileKind, FolderReader, check_classes, check_splits, holds_shards, image_files, real_path
from timm_extra.inputs import Inputs, inputs_of
from timm_extra.training.interrupt import ignore_interrupts
from timm_extra.training.order import random_state
from timm_extra.training.workers import Failed, RaisingLoader, in_words

from .config import FinetuneConfig
from .shards import ShardImages, ShardSplit, split_shards


@dataclass(frozen=True)
class Labelled:
    """What a model learns from and is measured on.

    Attributes:
        train: Map-style data set of inputs (as the model takes them, floating-point) and classes.
        validation: The same, held out.
        label_names: Names of the classes by number.
        data_config: Preprocessing, for `hub.save`.
        kind: What a file is, in the plural.
        source: Where they are from, in words.
        files: What stands for their names and classes, so that a training is resumed with the same ones.
        roots: Folders that the files are in.
    """

    train: Dataset
    validation: Dataset
    label_names: Sequence[str]
    data_config: Dict[str, Any]
    kind: str = 'images'
    source: str = ''
    files: str = ''
    roots: Sequence[str] = ()


@dataclass(frozen=True)
class Files(Dataset):
    """Labelled files.

    Attributes:
        samples: Path and class of each.
        read: Path to input; raises a ValueError that names the file if it cannot be read.
    """

    samples: Sequence[Tuple[str, int]]
    read: Callable[[str], torch.Tensor]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return self.read(path), label


def folder_data(
    folder: PathLike,
    model: nn.Module,
    config: FinetuneConfig,
    *,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    input_key: Optional[str] = None,
    target_key: Optional[str] = None,
) -> Labelled:
    """Files of a folder as a model sees them.

    Args:
        folder: Folder with `train/CLASS/` and `validation/CLASS/` (or other names that timm knows), or with `CLASS/`,
            of which a part is held out; or shards, as `timm_extra.images.find_shards` finds them.
        model: Model that will learn.
        config: Options: augmentation, what is held out.
        input_size: As in `timm_extra.images.input_config`, like `mean` and `std`.
        mean: What images are normalised with.
        std: Likewise.
        input_key: As in `timm_extra.images.ShardReader`, like `target_key`; for shards alone.
        target_key: Likewise.

    Returns:
        Training and held-out files.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no files that the model takes, or fewer than two classes.
    """
    inputs = inputs_of(model, input_size, mean, std, augmentation=config.image_augmentation())
    for name in ('mixup', 'cutmix'):
        if getattr(config, name) and name not in inputs.mixing:
            raise ValueError(f'`{name}` is not for {inputs.kind.several}, which the model takes')
    if inputs.kind == image_files() and holds_shards(folder, 'train'):
        return _shard_data(split_shards(folder, config, input_key, target_key), inputs)
    if input_key or target_key:
        raise ValueError(f'{folder} has no shards, which `{"input_key" if input_key else "target_key"}` is for')
    split = split_folder(folder, config.holdout, config.seed, inputs.kind)
    return Labelled(
        train=Files(split.train, inputs.read_for_training),
        validation=Files(split.validation, inputs.read),
        label_names=split.classes,
        data_config=inputs.data_config,
        kind=inputs.kind.several,
        source=split.source,
        files=_fingerprint(folder, split),
        roots=split.roots,
    )


def _shard_data(split: ShardSplit, inputs: Inputs) -> Labelled:
    return Labelled(
        train=ShardImages(split.train, split.learned, inputs.read_for_training),
        validation=ShardImages(split.validation, split.held_out, inputs.read),
        label_names=list(split.train.class_to_idx),
        data_config=inputs.data_config,
        source=split.source,
        files=split.files,
        roots=(split.train.root,),
    )


def _fingerprint(folder: PathLike, split: 'Split') -> str:
    names = [[(os.path.relpath(path, folder), label) for path, label in part] for part in split[:2]]
    return hashlib.sha1(repr(names).encode(errors='surrogateescape')).hexdigest()[:8]


class Split(NamedTuple):
    """Files to learn from and files that are held out, as (path, class); names of classes; words; folders."""

    train: List[Tuple[str, int]]
    validation: List[Tuple[str, int]]
    classes: List[str]
    source: str
    roots: Tuple[str, ...]


def split_folder(folder: PathLike, holdout: float, seed: int, kind: Optional[FileKind] = None) -> Split:
    """Find the splits of a folder, or make them.

    Args:
        folder: As in `folder_data`.
        holdout: Part of each class to hold out where there is no folder of held-out files.
        seed: Seed of the draw.
        kind: Which files; images when None.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There are fewer than two classes, files outside of classes, classes without training files, or
            nothing to hold out.
    """
    train = FolderReader(folder, 'train', kind=kind)
    classes = _classes(train)
    empty = _empty_folders(train)
    if empty:
        several = (kind or image_files()).several
        raise ValueError(f'{empty[0]} has no {several}: remove the folder, or fill it')
    held_out = FolderReader(folder, 'validation', kind=kind)
    left_out = [str(reader.found) for reader in (train, held_out) if str(reader.found)]
    if held_out.root not in (train.root, os.fspath(folder)):
        if train.root == os.fspath(folder):
            raise ValueError(f'{folder} has the folder {os.path.basename(held_out.root)}, but none called train')
        check_splits(train, held_out)
        numbers = train.class_to_idx
        renumbered = [(path, numbers[Path(path).parent.name]) for path, _ in held_out.samples]
        source = f'{len(train):,} in {train.root}, {len(held_out):,} held out in {held_out.root}'
        return Split(train.samples, renumbered, classes, '; '.join([source, *left_out]), (train.root, held_out.root))
    check_classes(train)
    learned, kept = _hold_out(train.samples, holdout, seed)
    if not kept:
        raise ValueError(
            f'{train.root} has {len(train)} files in {len(classes)} classes, of which `holdout={holdout:g}` holds out '
            'none: there is nothing to measure accuracy on'
        )
    source = f'{len(learned):,} of {train.root}, {len(kept):,} of it held out (holdout {holdout:g}, seed {seed})'
    return Split(learned, kept, classes, '; '.join([source, *left_out[:1]]), (train.root,))


def _classes(reader: FolderReader) -> List[str]:
    """Names of the classes of a folder, by number."""
    names = list(reader.class_to_idx)
    if names == ['']:
        raise ValueError(
            f'{reader.root} has no folders of classes: put the files of each class in a folder of its name'
        )
    if len(names) == 1:
        raise ValueError(f'{reader.root} has one class only, {names[0]!r}: there is nothing to tell it from')
    if '' in names:
        outside = [path for path, number in reader.samples if number == reader.class_to_idx['']]
        raise ValueError(f'{len(outside)} files in {reader.root} are in no folder of a class, such as {outside[0]}')
    return names


def _empty_folders(reader: FolderReader) -> List[str]:
    """Folders of classes that no file is from."""
    root = Path(reader.root)
    used = {Path(path).relative_to(root).parts[0] for path, _ in reader.samples}
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
    return sorted(str(path) for path in folders if path.name not in used)


def _hold_out(samples: Sequence[Tuple[str, int]], part: float, seed: int):
    """Samples to learn from, and a part of each class (one file at least) that is drawn by a seed, both in order."""
    members: Dict[int, List[int]] = defaultdict(list)
    for index, (_, label) in enumerate(samples):
        members[label].append(index)
    kept = set()
    for label, indices in members.items():
        files = [real_path(samples[index][0]) for index in indices]
        several = list(dict.fromkeys(files))  # a file that links lead to counts once
        count = max(int(part * len(several)), int(len(several) > 1))
        drawn = {several[number] for number in np.random.default_rng([seed, label]).permutation(len(several))[:count]}
        kept.update(index for index, file in zip(indices, files, strict=True) if file in drawn)
    learned = [sample for index, sample in enumerate(samples) if index not in kept]
    return learned, [samples[index] for index in sorted(kept)]


class Batch(NamedTuple):
    """Inputs (B, …) and classes (B,), and why files could not be read, which are not in it."""

    inputs: Optional[torch.Tensor]
    labels: torch.Tensor
    errors: List[Failed]


class Seeded(Dataset):
    """Items by (epoch, index), whose random numbers depend on these and the seed alone.

    Args:
        dataset: Data set of inputs and classes.
        seed: The seed.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, at: Tuple[int, int]):
        """Input and class, or `Failed`."""
        with random_state((self.seed, *at)):
            return in_words(self.dataset.__getitem__, at[1])


def collate(items: Sequence[Any]) -> Union[Batch, Failed]:
    """Items of `Seeded` as a batch; `Failed` where memory is short, which no file is to blame for."""
    errors = [item for item in items if isinstance(item, Failed)]
    if short := next((error for error in errors if error.memory), None):
        return short
    read = [item for item in items if not isinstance(item, Failed)]
    inputs = torch.stack([x for x, _ in read]) if read else None
    return Batch(inputs, torch.tensor([int(label) for _, label in read]), errors)


def loader(dataset: Dataset, seed: int, batches: Any, workers: int, pin_memory: bool) -> DataLoader:
    """`Batch`es read by worker processes that Ctrl-C does not end.

    Args:
        dataset: Data set of inputs and classes.
        seed: Seed of its random numbers.
        batches: Lists of (epoch, index).
        workers: Processes, no more than there are processors.
        pin_memory: For transfers to a GPU.
    """
    return RaisingLoader(
        Seeded(dataset, seed),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=min(workers, os.cpu_count() or 1),
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupts,
        persistent_workers=workers > 0,
    )
