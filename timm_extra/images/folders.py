"""Files of a kind in folders, of images above all."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Union

from timm.data.readers.class_map import load_class_map
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from timm_extra._files import PathLike
from timm_extra._timm import search_split

from .pixels import reads_heic

EXTENSIONS = frozenset(
    ['.jpg', '.jpeg', '.png', '.webp', '.avif', '.tif', '.tiff', '.bmp', '.gif', '.ppm', '.pgm', '.jp2']
)
HEIC = frozenset(('.heic', '.heif'))


class FileKind(NamedTuple):
    """A kind of files.

    Attributes:
        one: What one is called, with its article.
        several: What several are called.
        extensions: Endings of their names, in lower case.
    """

    one: str
    several: str
    extensions: FrozenSet[str]


class Found(NamedTuple):
    """What a search for files of a kind has found.

    Attributes:
        files: Files, in order of their names.
        left_out: What is of another kind by its name, and links that lead nowhere; hidden files do not count.
        kind: What was searched for.
    """

    files: List[Path]
    left_out: List[Path]
    kind: FileKind

    def __str__(self) -> str:
        """What was left out, in a line; empty if nothing."""
        links: List[Path] = []
        others: List[Path] = []
        for path in self.left_out:
            (links if path.is_symlink() and not path.exists() else others).append(path)
        one, several = f'no {self.kind.one} by its name', f'no {self.kind.several} by their names'
        kinds = (others, one, several), (links, 'a broken link', 'broken links')
        said = [_counted(paths, one if len(paths) == 1 else several) for paths, one, several in kinds if paths]
        return f'left out: {"; ".join(said)}' if said else ''


def _counted(paths: List[Path], what: str) -> str:
    return f'{len(paths)}, {what}, ' + (f'the first of which is {paths[0]}' if len(paths) > 1 else str(paths[0]))


def image_files() -> FileKind:
    """Files that are images by their names: those that Pillow reads, and those that timm was given."""
    found = frozenset((*EXTENSIONS, *get_img_extensions()))
    return FileKind('image', 'images', found | HEIC if reads_heic() else found)


def find_images(paths: Iterable[PathLike]) -> Found:
    """Files as they are, and the images in folders and their folders, as `find_files` finds them."""
    return find_files(paths, image_files())


def find_files(paths: Iterable[PathLike], kind: FileKind) -> Found:
    """Files as they are, and those of a kind in folders and their folders.

    Links are followed, but for those back to a folder that they are in. What begins with a dot is hidden and does not
    count.

    Args:
        paths: Files and folders.
        kind: The kind.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder has no such files; the message says what it has.
    """
    found: List[Path] = []
    left_out: List[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f'no {kind.one} or folder at {str(path)!r}')
        if not path.is_dir():
            found.append(path)
            continue
        files = _files_in(path)
        inside = [file for file in files if file.suffix.lower() in kind.extensions and file.is_file()]
        known = set(inside)
        others = [file for file in files if file not in known]
        if not inside:
            more = str(Found([], others, kind))
            raise ValueError(f'no {kind.several} in {path}' + (f' ({more})' if more else ''))
        found += inside
        left_out += others
    return Found(found, left_out, kind)


def _files_in(folder: Path, above: FrozenSet[str] = frozenset()) -> List[Path]:
    """Files in a folder and its folders that are not hidden, sorted.

    Args:
        folder: Folder.
        above: Real paths of the folders that it was reached through: a link back to one of them would not end.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []
    found: List[Path] = []
    for path in folder.iterdir():
        if path.name.startswith('.'):
            continue
        found += _files_in(path, above | {real}) if path.is_dir() else [path]
    return sorted(found)


class FolderReader(Reader):
    """timm's reader of folders whose names are classes, of all files that `find_files` finds.

    As in timm, the class of a file is the name of the folder that it lies in.

    Args:
        root: Folder of folders, or one that has such a folder for each split.
        split: Which split, by any name that timm knows; the root itself when None or where there is no folder of it.
        class_map: Numbers of the classes, as timm's readers take them; in the order of their names when None.
        kind: Which files; images when None.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no such files.
    """

    def __init__(
        self,
        root: PathLike,
        split: Optional[str] = None,
        class_map: Union[str, Dict[str, int], None] = None,
        kind: Optional[FileKind] = None,
    ):
        super().__init__()
        self.root = os.fspath(root) if split is None else search_split(os.fspath(root), split)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f'no folder at {self.root!r}')
        self.found = find_files([self.root], kind or image_files())
        labelled = [
            (os.fspath(path), '' if path.parent == Path(self.root) else path.parent.name) for path in self.found.files
        ]
        self.class_to_idx = load_class_map(class_map, self.root) if class_map else None
        if self.class_to_idx is None:
            names = sorted({label for _, label in labelled}, key=lambda name: (natural_key(name), name))
            self.class_to_idx = {name: i for i, name in enumerate(names)}
        self.samples = [(path, self.class_to_idx[name]) for path, name in labelled if name in self.class_to_idx]
        self.samples.sort(key=lambda sample: (natural_key(sample[0]), sample[0]))
        self.unknown = sorted({name for _, name in labelled} - set(self.class_to_idx))
        if not self.samples:
            raise ValueError(f'no folder in {self.root} has the name of a class: {", ".join(self.class_to_idx)}')

    def __getitem__(self, index: int):
        path, target = self.samples[index]
        return open(path, 'rb'), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        if basename:
            return os.path.basename(path)
        return path if absolute else os.path.relpath(path, self.root)


def real_path(path: str) -> str:
    """The file that a path leads to, by links of its own and of its folders."""
    parent, name = os.path.split(path)
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(parent), name)


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def check_classes(reader: FolderReader) -> None:
    """Refuse what is labelled wrongly because it lies deeper than folders of classes do.

    Raises:
        ValueError: Several folders have the name of one class.
    """
    places: Dict[int, str] = {}
    for path, number in reader.samples:
        parent = os.path.dirname(path)
        if places.setdefault(number, parent) != parent:
            raise ValueError(
                f'{places[number]} and {parent} would be one class, as the name of a class is that of the folder that '
                'its files lie in'
            )


def check_splits(train: FolderReader, held_out: FolderReader) -> None:
    """Refuse splits on which an accuracy says nothing.

    Raises:
        ValueError: Classes are ambiguous, files are in both splits, or only the held-out ones have a class.
    """
    for reader in (train, held_out):
        check_classes(reader)
    unknown = sorted({*held_out.unknown, *held_out.class_to_idx} - set(train.class_to_idx))
    if unknown:
        raise ValueError(f'{held_out.root} has the class {unknown[0]!r}, which {train.root} has not')
    learned = {real_path(path) for path, _ in train.samples}
    twice = next((path for path, _ in held_out.samples if real_path(path) in learned), None)
    if twice is not None:
        raise ValueError(f'{twice} is held out and trained on: a link leads from one split to the other')
