"""Which files of a folder are the shards of a split."""

import os
import re
from pathlib import Path
from typing import Callable, List, Sequence, Set

from timm.utils.misc import natural_key

from timm_extra._files import PathLike
from timm_extra._timm import EVAL_WORDS, TRAIN_WORDS, search_split

from ..folders import image_files

TAR, PARQUET = '.tar', '.parquet'
COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
DATA = 'data'  # where repositories of the Hub have them
SPLITS = {*TRAIN_WORDS, *EVAL_WORDS, 'test'}


def holds_shards(folder: PathLike, split: str) -> bool:
    """Whether a folder, or the folder of a split in it, has shards and no images. A single shard has, too."""
    root = Path(search_split(os.fspath(folder), split)) if os.path.isdir(folder) else Path(folder)
    return bool(_shards_in(root)) and not (root.is_dir() and _has_images(root))


def has_split(folder: PathLike, split: str) -> bool:
    """Whether a folder has shards of a split, in a folder of its name or by their names.

    Raises:
        ValueError: The folder of its name has images instead, which would be left out without a word.
    """
    root = Path(search_split(os.fspath(folder), split)) if os.path.isdir(folder) else Path(folder)
    found = _shards_in(root)
    if root != Path(folder) and not found and _has_images(root):
        raise ValueError(f'{root} has images, but no shards as the rest of {folder}: make both splits of one kind')
    return bool(found) and (root != Path(folder) or any(map(_split_of(split), found)))


def find_shards(folder: PathLike, split: str) -> List[Path]:
    """Shards of a split, in order of their names.

    Args:
        folder: One shard, or a folder of shards. They lie in it or in its folder `data`, or in a folder of the split,
            as `train/`, or have the split in their names, as `train-00000-of-00010.parquet` and `photos-train-0.tar`.
        split: Which split, by any name that timm knows. All shards where neither folders nor names say one.

    Returns:
        Tars, or Parquet files. Those beside tars of their names are the lists that img2dataset writes, and left out.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It has no shards of this split, compressed ones, or tars and Parquet files.
    """
    if not os.path.exists(folder):
        raise FileNotFoundError(f'no shard or folder at {os.fspath(folder)!r}')
    root = Path(search_split(os.fspath(folder), split)) if os.path.isdir(folder) else Path(folder)
    found = _shards_in(root)
    if not found:
        raise ValueError(f'{root} has no shards, {TAR} or {PARQUET} files')
    if root == Path(folder) and root.is_dir():
        found = _of_split(found, split, root)
    for path in found:
        if path.name.lower().endswith(COMPRESSED):
            raise ValueError(f'{path} is compressed: no image in it can be read by itself; unpack it to a {TAR} file')
    tars = [path for path in found if path.suffix.lower() == TAR]
    stems = {path.stem for path in tars}
    others = [path for path in found if path.suffix.lower() == PARQUET and path.stem not in stems]
    if tars and others:
        raise ValueError(f'{tars[0]} and {others[0]} are shards of two kinds: give them folders of their own')
    return tars or others


def _shards_in(root: Path) -> List[Path]:
    """A shard, or those that lie in a folder, else in its folder `data`, in order."""
    if root.is_file():
        return [root] if _is_shard(root) else []
    for folder in (root, root / DATA):
        found = [path for path in folder.iterdir() if _is_shard(path)] if folder.is_dir() else []
        if found:
            return sorted(found, key=lambda path: (natural_key(path.name), path.name))
    return []


def _is_shard(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith((TAR, PARQUET, *COMPRESSED)) and not name.startswith('.') and path.is_file()


def _has_images(root: Path) -> bool:
    """Whether an image lies in a folder or its folders; the walk ends at the first."""
    endings = tuple(image_files().extensions)
    for _, folders, files in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith('.')]
        if any(name.lower().endswith(endings) and not name.startswith('.') for name in files):
            return True
    return False


def _of_split(found: Sequence[Path], split: str, root: Path) -> List[Path]:
    """Shards with a split in their names; all where no name has one."""
    of_split = _split_of(split)
    others = sorted(set().union(*(SPLITS.intersection(_words(path)) for path in found)))
    own = [path for path in found if of_split(path)]
    if not own and not others:
        return list(found)
    if not own:
        raise ValueError(f'{root} has no shards of {split}, but of {", ".join(others)}')
    return own


def _split_of(split: str) -> Callable[[Path], bool]:
    """Whether the name of a shard has a split, by any of its names."""
    words = next((set(words) for words in (TRAIN_WORDS, EVAL_WORDS) if split in words), {split})
    return lambda path: bool(words & _words(path))


def _words(path: Path) -> Set[str]:
    words = re.split(r'[-_.]', path.name.lower())
    return {*words, *(word.rstrip('0123456789') for word in words)}  # `train0000.tar`, too
