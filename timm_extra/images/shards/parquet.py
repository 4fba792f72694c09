"""Parquet files of images, as Hugging Face datasets writes them, read by row groups."""

import json
from contextlib import suppress
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from timm_extra._files import PathLike

from ..pixels import PixelError

WINDOW = 256 << 20  # bytes of row groups that are shuffled together, and that a process that reads keeps
AT_ONCE = 1 << 30  # bytes of images that pyarrow reads at once; it cannot from 2 GiB on
PART = 128 << 20  # bytes of images that are read at once of a larger row group
IMAGES = ('image', 'img', 'jpg', 'jpeg', 'png', 'webp', 'tif', 'tiff')  # names of columns, first come first served
SEVERAL = 'lists or structs'
TWICE = 'columns of one name'
LABELS = ('label', 'labels', 'cls', 'class', 'target')


class Columns(NamedTuple):
    """Columns of images and of classes (None if there are none), and names of classes where the file says them."""

    image: str
    label: Optional[str]
    label_names: Optional[List[str]]
    candidates: Tuple[str, ...] = ()  # several of classes, none of which has a usual name
    label_type: str = ''  # numbers, words, or what else the file holds; empty where it holds none


class Parquets:
    """Images in Parquet files by number, of which row groups are read.

    Args:
        files: The files.
        input_key: Column of images; found by its type and name when None.
        target_key: Column of classes, likewise.
        window: Bytes of row groups that are shuffled together and kept.

    Attributes:
        no_classes: Why classes cannot be taken from these files, in words; empty if they can.

    Raises:
        ValueError: There is no such column, or files have other columns of images.
        ModuleNotFoundError: pyarrow is not installed.
    """

    def __init__(
        self,
        files: Sequence[Path],
        input_key: Optional[str] = None,
        target_key: Optional[str] = None,
        window: int = WINDOW,
    ):
        try:
            import pyarrow.parquet as pq
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError('Parquet files need pyarrow: pip install "timm-extra[shards]"') from e
        self.files: List[Path] = []
        self.damaged: Dict[Path, str] = {}
        self.window, self.left_out = window, ''
        self._metadata: List[Any] = []
        self.columns: Optional[Columns] = None
        self.no_classes = ''
        typed: Optional[Tuple[Path, Columns]] = None  # the first file whose column of classes holds any
        groups: List[Tuple[int, ...]] = []  # file, number in it, first row, rows, bytes
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    metadata, schema = file.metadata, file.schema_arrow
            except _errors() as e:
                self.damaged[path] = _reason(e)
                continue
            found = find_columns(schema, path, input_key, target_key)
            self.columns = self.columns or found
            if found.image != self.columns.image:
                raise ValueError(f'{path} has the columns {found[:2]}, {self.files[0]} has {self.columns[:2]}')
            if found.label_type or not found.label:  # a column of nothing but null fits any
                typed = typed or (path, found)
                self.no_classes = self.no_classes or _no_classes(path, found, *typed)
            groups += [(len(self.files), *rest) for rest in _row_groups(metadata, self.columns.image)]
            self.files.append(path)
            self._metadata.append(metadata)
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 5)
        self._ends = np.cumsum(self._groups[:, 3])
        self._kept: Dict[int, Any] = {}
        self.label_names = self.columns.label_names if self.columns else None
        self.in_folders = False

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> Dict[str, Any]:
        return {name: value for name, value in dict(self.__dict__, _kept={}).items() if name != '_labels'}

    def file_of(self, index: int) -> Path:
        """File that an image is in."""
        return self.files[self._groups[self._place(index)[0], 0]]

    def member(self, index: int) -> str:
        """Row of an image in its file, counted from 0."""
        group, row = self._place(index)
        return f'row {int(self._groups[group, 2]) + row}'

    @property
    def labels(self) -> np.ndarray:
        """Classes (N,) as they are written, None where there is none or it cannot be read."""
        return self._labels[0]

    @property
    def unread_labels(self) -> Dict[int, str]:
        """Why classes cannot be read, by the number of the image."""
        return self._labels[1]

    @cached_property
    def _labels(self) -> Tuple[np.ndarray, Dict[int, str]]:
        label = self.columns.label if self.columns else None
        found, unread = np.full(len(self), None, dtype=object), {}
        for group, (number, rows) in enumerate(self._groups[:, [1, 3]].tolist()) if label else ():
            end = int(self._ends[group])
            try:
                found[end - rows : end] = self._read_group(group, [label]).column(label).to_pylist()
            except MemoryError:
                raise
            except _errors() as e:
                unread.update(dict.fromkeys(range(end - rows, end), f'row group {number}: {_reason(e)}'))
        return found, unread

    @property
    def distinct(self) -> Set[Any]:
        """Classes as they are written."""
        return set(self.labels)

    def read(self, index: int, labelled: bool = True) -> Tuple[bytes, Any]:
        """An image as it is stored, and its class as it is written (None unless `labelled`).

        Raises:
            PixelError: Its row group cannot be read, or the file has a path in its place.
            MemoryError: Its row group does not fit into memory.
        """
        group, row = self._place(index)
        image, label = self.columns.image, self.columns.label if labelled else None
        table = self._kept.pop(group, None)
        if table is None or (label and label not in table.column_names):
            try:
                table = self._read_group(group, [name for name in (image, label) if name])
            except MemoryError as e:  # pyarrow's is one of its other errors, too
                where = f'{self.file_of(index)}: row group {int(self._groups[group, 1])}'
                size = f'{self._groups[group, 4] / 2**30:.1f} GiB of images'
                raise MemoryError(f'{where}, {size}, does not fit into memory: fewer `workers` need less') from e
            except _errors() as e:
                raise PixelError(f'row group {int(self._groups[group, 1])}: {_reason(e)}') from e
        self._kept[group] = table  # as the last one
        while len(self._kept) > 1 and sum(self._groups[kept, 4] for kept in self._kept) > self.window:
            self._kept.pop(next(iter(self._kept)))
        value = table.column(image)[row].as_py()
        value = value.get('bytes') if isinstance(value, dict) else value
        if value is None:
            raise PixelError('the row holds none, or the path of another file')
        return value, table.column(label)[row].as_py() if label in table.column_names else None

    def epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        """All images in an order of an epoch, for which no row group is read twice.

        Row groups come in any order, and the images of as many as `window` holds in any order among themselves.
        """
        parts: List[np.ndarray] = []
        open_parts: List[np.ndarray] = []
        size = 0
        for group in rng.permutation(len(self._groups)):
            rows, content = self._groups[group, 3:]
            if open_parts and size + content > self.window:
                parts.append(rng.permutation(np.concatenate(open_parts)))
                open_parts, size = [], 0
            open_parts.append(np.arange(self._ends[group] - rows, self._ends[group]))
            size += content
        return np.concatenate([*parts, rng.permutation(np.concatenate(open_parts))])

    def _place(self, index: int) -> Tuple[int, int]:
        group = int(np.searchsorted(self._ends, index, 'right'))
        return group, int(index - (self._ends[group] - self._groups[group, 3]))

    def _read_group(self, group: int, columns: List[str]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, number = map(int, self._groups[group, :2])
        rows, size = map(int, self._groups[group, 3:])
        # no threads of pyarrow's own: a data loader's processes are forked
        how = dict(columns=columns, use_threads=False)
        with pq.ParquetFile(self.files[file], metadata=self._metadata[file], page_checksum_verification=True) as opened:
            if size <= AT_ONCE or self.columns.image not in columns:
                with suppress(pa.ArrowNotImplementedError):  # what is compressed may be larger than it says
                    return opened.read_row_group(number, **how)
            part = max(1, min(rows * PART // max(size, 1), rows // 32))
            return pa.Table.from_batches(opened.iter_batches(part, row_groups=[number], **how))


def find_columns(schema: Any, path: PathLike, input_key: Optional[str], target_key: Optional[str]) -> Columns:
    """Columns of images and classes, as named, as datasets declares them, else by type and usual name.

    Args:
        schema: pyarrow's schema of a file.
        path: The file.
        input_key: Column of images, if it is named.
        target_key: Column of classes, likewise.

    Raises:
        ValueError: There is no such column, or it is not clear which.
    """
    import pyarrow as pa

    features = _features(schema)
    for key in (input_key, target_key):
        if key is not None and key not in schema.names:
            raise ValueError(f'{path} has no column {key!r}, but {", ".join(schema.names)}')
    if input_key is None:
        declared = [name for name in schema.names if features.get(name, {}).get('_type') == 'Image']
        declared = declared or [field.name for field in schema if _holds_bytes(field.type, pa)]
        input_key = _one(declared, IMAGES)
        if input_key is None:
            of = f'several columns of images, {", ".join(declared)}' if declared else 'no column of images'
            raise ValueError(f'{path} has {of}: give `input_key`' if declared else f'{path} has {of}')
    kind = schema.types[schema.names.index(input_key)]
    if not _holds_bytes(kind, pa):
        raise ValueError(f'the column {input_key!r} of {path} holds no images, but {kind}')
    if schema.names.count(input_key) > 1:
        raise ValueError(f'{path} has several columns {input_key!r}')
    candidates: Sequence[str] = ()
    if target_key is None:
        candidates = [name for name in schema.names if features.get(name, {}).get('_type') == 'ClassLabel']
        usual = [name for name in LABELS if name in schema.names]
        target_key = _one(candidates, LABELS) if candidates else next(iter(usual), None)
    if target_key is None:
        return Columns(input_key, None, None, tuple(candidates))
    label_type = _label_type(schema.types[schema.names.index(target_key)], pa)
    if schema.names.count(target_key) > 1:
        label_type = TWICE
    names = features.get(target_key, {}).get('names')
    if isinstance(names, dict) and list(names) == [str(number) for number in range(len(names))]:
        names = list(names.values())  # as cards of the Hub have them
    return Columns(input_key, target_key, names, label_type=label_type)


def _label_type(kind: Any, pa: Any) -> str:
    """What a column of classes holds, in words."""
    types = pa.types
    if types.is_dictionary(kind):
        return _label_type(kind.value_type, pa)
    if types.is_null(kind):
        return ''
    if types.is_integer(kind):
        return 'numbers'
    if types.is_string(kind) or types.is_large_string(kind) or str(kind) == 'string_view':
        return 'words'
    return SEVERAL if types.is_nested(kind) else str(kind)


def _no_classes(path: Path, found: Columns, first_path: Path, first: Columns) -> str:
    """Why the classes of a file cannot be taken, alone or together with those of the first; empty if they can."""
    if found.label_type == SEVERAL:
        return f'the column {found.label!r} of {path} holds lists or structs, no class of an image'
    if found.label_type == TWICE:
        return f'{path} has several columns {found.label!r}'
    names = found.label_names
    if names and not (
        isinstance(names, list) and all(isinstance(n, str) for n in names) and len({*names}) == len(names)
    ):
        return f'the names of classes of {path} are no list of distinct words: {str(names)[:80]}'
    if (found.label, found.label_type) != (first.label, first.label_type):
        ours, theirs = (f'{each.label!r} of {each.label_type}' if each.label else 'none' for each in (found, first))
        return f'columns of classes differ: {path} has {ours}, {first_path} has {theirs}'
    for number, (ours, theirs) in enumerate(zip_longest(found.label_names or (), first.label_names or ())):
        if ours != theirs:
            return f'names of classes differ: class {number} is {ours!r} in {path}, {theirs!r} in {first_path}'
    return ''


def _features(schema: Any) -> Dict[str, Any]:
    """What datasets says about columns, by their names."""
    try:
        found = json.loads((schema.metadata or {})[b'huggingface'])['info']['features']
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_bytes(kind: Any, pa: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index('bytes') >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == 'binary_view'


def _one(names: Sequence[str], usual: Sequence[str]) -> Optional[str]:
    """The only name, or the first usual one."""
    return names[0] if len(names) == 1 else next((name for name in usual if name in names), None)


def _row_groups(metadata: Any, column: str) -> List[Tuple[int, int, int, int]]:
    """Number, first row, rows and bytes of a column of each row group that has rows."""
    found, first = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        # parts of a struct stand after a dot; names may have one, too
        size = sum(c.total_uncompressed_size for c in chunks if f'{c.path_in_schema}.'.startswith(f'{column}.'))
        found.append((number, first, group.num_rows, size))
        first += group.num_rows
    return [row for row in found if row[2]]


def _errors() -> Tuple[type, ...]:
    import pyarrow as pa

    return pa.ArrowException, OSError, ValueError


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())[:200]
