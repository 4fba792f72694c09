"""Shards as timm reads data sets."""

import hashlib
import io
import os
import re
from functools import cached_property, partial
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union

import numpy as np
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from timm_extra._files import PathLike

from .find import PARQUET, find_shards
from .parquet import Parquets
from .tars import Tars

KEYS = ('input_key', 'target_key')
NAMED = 3  # damaged shards that messages name
LARGEST = 1_000_000  # number of a class


class ShardFile(io.BytesIO):
    """A file of a shard, in memory.

    Args:
        content: Its bytes.
        name: Gives what messages call it.
    """

    def __init__(self, content: bytes, name: Callable[[], str]):
        super().__init__(content)
        self._name = name

    def __str__(self) -> str:
        return self._name()


class ShardReader(Reader):
    """timm's reader for a folder of WebDataset tars or Parquet files, any image of which can be read by its number.

    `ImageDataset(folder, reader=ShardReader(folder))` is a map-style data set. Items are the same in every process.

    Args:
        root: Folder, or one shard, as `find_shards` takes it.
        split: Which split.
        class_map: Numbers of the classes, as timm's readers take them.
        input_key: Of Parquet the column of images, of tars endings, as `jpg;png`; found when None.
        target_key: Of Parquet the column of classes, found when None; of tars the key of `.json` members that holds
            them, instead of `.cls` members.
        unreadable: 'raise', or 'skip' what is damaged of a shard: all of a Parquet file without its footer, of a tar
            what comes after the damage.

    Attributes:
        found: What was left out and is damaged, in a line; empty if nothing.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no shards or no images, or a shard is damaged.
    """

    def __init__(
        self,
        root: PathLike,
        split: str = 'train',
        class_map: Union[str, Dict[str, int], None] = None,
        input_key: Optional[str] = None,
        target_key: Optional[str] = None,
        unreadable: str = 'raise',
    ):
        super().__init__()
        self.root = os.fspath(root)
        files = find_shards(root, split)
        kind = Parquets if files[0].suffix.lower() == PARQUET else Tars
        self.shards = kind(files, input_key, target_key)
        self._keys = input_key, target_key
        self.found = self._checked(unreadable)
        self._class_map = load_class_map(class_map, self.root) if class_map else None

    def _checked(self, unreadable: str) -> str:
        damaged = self.shards.damaged
        more = f' and {len(damaged) - NAMED:,} more' if len(damaged) > NAMED else ''
        if damaged and unreadable == 'raise':
            named = '; '.join(f'{path} is damaged: {reason}' for path, reason in list(damaged.items())[:NAMED])
            more = f'{more} are damaged' if more else ''
            raise ValueError(
                f"{named}{more}; `unreadable='skip'` takes what can be read of {'them' if len(damaged) > 1 else 'it'}"
            )
        if not len(self):
            reasons = [f': {path} is damaged: {reason}' for path, reason in damaged.items()]
            reasons += [f': left out: {self.shards.left_out}'] * bool(self.shards.left_out)
            raise ValueError(f'no images in the shards in {self.root}' + ''.join(reasons[:1]))
        said = []
        if self.shards.left_out:
            said.append(f'left out: {self.shards.left_out}')
        if damaged:
            shards = f'{len(damaged):,} damaged shard{"s" * (len(damaged) > 1)}'
            named = ', '.join(f'{path} ({reason})' for path, reason in list(damaged.items())[:NAMED])
            said.append(f'{shards}, of which only what can be read is taken: {named}{more}')
        return '; '.join(said)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Tuple[ShardFile, Optional[int]]:
        index = self._counted(index)
        self._check_classes()
        content, label = self.shards.read(index)
        return ShardFile(content, partial(self.filename, index)), self._target(label)

    def image(self, index: int) -> ShardFile:
        """An image without a look at its class, which may be of any kind."""
        index = self._counted(index)
        return ShardFile(self.shards.read(index, labelled=False)[0], partial(self.filename, index))

    def _counted(self, index: int) -> int:
        """An index from 0; those below count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'there are {len(self):,} images, got the index {index}')
        return index % len(self)

    def epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        """All indices in the order of an epoch, as fast as any to read."""
        return self.shards.epoch_order(rng)

    @cached_property
    def class_to_idx(self) -> Dict[str, int]:
        """Numbers of the classes by name; classes that are written as numbers have these as names.

        Raises:
            ValueError: There are no classes, those of files differ, or there is one that `class_map` has not.
        """
        self._check_classes()
        if not self._distinct:
            candidates = getattr(getattr(self.shards, 'columns', None), 'candidates', ())
            hint = f': give `target_key`, one of {", ".join(candidates)}' if candidates else ''
            reasons = [f' that can be read: {reason}' for reason in self.unread_classes.values()]
            raise ValueError(f'the shards in {self.root} have no classes{"".join(reasons[:1])}{hint}')
        classes = self._class_map
        if classes is None:
            classes = {name: number for number, name in enumerate(self._names())}
        unknown = sorted({self._name(label) for label in self._distinct} - set(classes))
        if unknown:
            where = 'in the class map' if self._class_map else 'among their names of classes'
            raise ValueError(f'the shards in {self.root} have the class {unknown[0]!r}, which is not {where}')
        return classes

    @cached_property
    def targets(self) -> np.ndarray:
        """Numbers of the classes (N,), −1 where there is none.

        Raises:
            ValueError: As `class_to_idx` does.
        """
        classes, labels = self.class_to_idx, self.shards.labels
        numbers = {label: classes[self._name(label)] for label in self._distinct}
        return np.array([numbers.get(label, -1) for label in labels], dtype=np.int64)

    @property
    def unread_classes(self) -> Dict[int, str]:
        """Why classes cannot be read where their part of a shard is damaged, by the number of the image."""
        return getattr(self.shards, 'unread_labels', {})

    @cached_property
    def _distinct(self) -> Set[Any]:
        """Classes as they are written."""
        return {label for label in self.shards.distinct if not _is_missing(label)}

    @cached_property
    def _numbered(self) -> bool:
        """Whether classes are written as numbers; names of folders are none."""
        return not self.shards.in_folders and all(str(label).isdecimal() for label in self._distinct)

    def _target(self, label: Any) -> Optional[int]:
        """Number of a class as it is written; None where there is none."""
        if _is_missing(label):
            return None
        if isinstance(label, int) and self._class_map is None:
            self._check_named(label)
            return label  # without a look at the others, which takes a while in large files
        return self.class_to_idx.get(self._name(label))

    def _check_classes(self) -> None:
        if reason := getattr(self.shards, 'no_classes', ''):
            raise ValueError(reason)

    def _check_named(self, label: int) -> None:
        names = self.shards.label_names
        if names and label >= len(names):
            raise ValueError(f'the shards in {self.root} have the class {label}, but names of {len(names)} classes')

    def _name(self, label: Any) -> str:
        """Name of a class as it is written."""
        names = self.shards.label_names
        if isinstance(label, int):
            self._check_named(label)
            return names[label] if names else str(label)
        return str(int(label)) if self._numbered else str(label)

    def _names(self) -> List[str]:
        """Names of classes by number."""
        if self.shards.label_names:
            return list(self.shards.label_names)
        if not self._numbered:
            return sorted(map(str, self._distinct), key=lambda name: (natural_key(name), name))
        largest = max(map(int, self._distinct))
        if largest > LARGEST:
            column = getattr(getattr(self.shards, 'columns', None), 'label', None)
            where = f' in the column {column!r}' if column else ''
            raise ValueError(
                f'the shards in {self.root} have the class {largest}{where}: numbers of classes begin at 0'
            )
        return [str(number) for number in range(largest + 1)]

    @cached_property
    def fingerprint(self) -> str:
        """What stands for names and sizes of the shards and for the columns, so that a training is resumed with them.

        Of Parquet these are the columns that were found: to name them is no other training. Of tars they are the keys.
        """
        files = [(path.name, path.stat().st_size) for path in self.shards.files]
        found = hashlib.sha1(repr((files, len(self))).encode(errors='surrogateescape')).hexdigest()[:8]
        keys = getattr(self.shards, 'columns', None) or self._keys
        return ', '.join([found, *(f'{name} {key}' for name, key in zip(KEYS, keys[:2], strict=True) if key)])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        index = self._counted(index)
        path, member = self.shards.file_of(index), self.shards.member(index)
        if basename:
            return f'{path.name}: {member}'
        root = self.root if os.path.isdir(self.root) else path.parent
        return f'{os.path.abspath(path) if absolute else os.path.relpath(path, root)}: {member}'


def _is_missing(label: Any) -> bool:
    """Whether a label stands for no class: empty, not a number, or below 0, as in test sets of the Hub."""
    if isinstance(label, (int, float)):
        return not label >= 0
    return label is None or label == '' or re.fullmatch(r'-\d+', str(label)) is not None
