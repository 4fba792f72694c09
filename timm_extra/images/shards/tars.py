"""An index of WebDataset tars: where the images are, so that each can be read by itself."""

import hashlib
import json
import os
import re
import tarfile
import time
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from timm_extra._files import atomic_file

from ..folders import image_files
from ..pixels import PixelError

# WebDataset's: the key ends at the first dot of the file's name; hidden files have none
KEY = re.compile(r'((?:.*/)?[^./]+)\.([^/]*)')
CLASS = 'cls'
SEAM = tarfile.TarInfo()  # stands for the end of a tar that another follows, as in `cat a.tar b.tar`
CHUNK = 1 << 20  # bytes that are read at once after the end of a tar, whole blocks
VERSION = 2  # of the saved index
WORTH_SAVING = 2.0  # seconds that a pass over the headers takes


class Members(NamedTuple):
    """Images of one tar.

    Attributes:
        names: Names of the members (N,), UTF-8.
        offsets: First byte of each (N,).
        sizes: Bytes of each (N,).
        labels: Class of each (N,) as it is written, UTF-8; empty where there is none.
        left_out: How many keys have no image.
        damage: What is wrong after the last of these images; empty if nothing.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    left_out: int = 0
    damage: str = ''


class Tars:
    """Images in tars by number, each read by itself.

    The headers of every tar are read once. An index that took longer than `WORTH_SAVING` is saved in the user's folder
    for caches, and read back as long as size and time of the tar are the same.

    Args:
        files: The tars.
        input_key: Endings of images, as `jpg;png`; all that images have when None.
        target_key: Key of `.json` members that holds the class; when None it is in `.cls` members, and where there is
            none of them, it is the name of the folder that an image lies in.
    """

    def __init__(self, files: Sequence[Path], input_key: Optional[str] = None, target_key: Optional[str] = None):
        self.files = list(files)
        own = {f'.{ending.strip().lower().lstrip(".")}' for ending in (input_key or '').split(';') if ending.strip()}
        endings = frozenset(own or image_files().extensions)
        parts = _indices(self.files, endings, target_key)
        self.counts = np.array([len(part.names) for part in parts], dtype=np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        self.names, self.offsets, self.sizes, labels = (np.concatenate([part[i] for part in parts]) for i in range(4))
        self.left_out = sum(part.left_out for part in parts)
        self.damaged = {path: part.damage for path, part in zip(self.files, parts, strict=True) if part.damage}
        self.in_folders = not target_key and not (labels != b'').any()
        if self.in_folders:
            labels = np.array([name.rpartition(b'/')[0].rpartition(b'/')[2] for name in self.names], dtype=np.bytes_)
            labels[labels == b'.'] = b''
        self._labels = labels
        self.label_names: Optional[List[str]] = None

    def __len__(self) -> int:
        return len(self.names)

    def file_of(self, index: int) -> Path:
        """Tar that an image is in."""
        return self.files[int(np.searchsorted(self.first, index, 'right')) - 1]

    def member(self, index: int) -> str:
        """Name of an image in its tar."""
        return self.names[index].decode(errors='surrogateescape')

    @property
    def labels(self) -> np.ndarray:
        """Classes (N,) as they are written, None where there is none."""
        return np.array([word.decode(errors='replace') or None for word in self._labels.tolist()], dtype=object)

    @property
    def distinct(self) -> Set[Optional[str]]:
        """Classes as they are written."""
        return {word.decode(errors='replace') or None for word in np.unique(self._labels).tolist()}

    def read(self, index: int) -> Tuple[bytes, Optional[str]]:
        """An image as it is stored, and its class as it is written.

        Raises:
            PixelError: The tar is shorter than it was.
        """
        size = int(self.sizes[index])
        with open(self.file_of(index), 'rb', buffering=0) as file:  # nothing that processes would share
            file.seek(int(self.offsets[index]))
            found = file.read(size)
        if found is None or len(found) < size:
            raise PixelError(f'{len(found or b"")} of {size} bytes are there')
        return found, self._labels[index].decode(errors='replace') or None

    def epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        """All images in an order of an epoch: any, as every image is read by itself."""
        return rng.permutation(len(self))


def _indices(files: Sequence[Path], endings: FrozenSet[str], target_key: Optional[str]) -> List[Members]:
    """Indices of tars, saved ones where they are of the same files."""
    places = [os.path.realpath(path) for path in files]
    saved_in = _saved_in([VERSION, places, sorted(endings), target_key])
    saved = _load(saved_in)
    found, stamps, start = [], [], time.monotonic()
    for path, place in zip(files, places, strict=True):
        stat = os.stat(path)
        stamps.append((stat.st_size, stat.st_mtime_ns))
        stamp, members = saved.get(place, (None, None))
        found.append(members if stamp == stamps[-1] else index_tar(path, endings, target_key))
    if time.monotonic() - start > WORTH_SAVING:
        whole = [i for i, part in enumerate(found) if not part.damage]
        _save(saved_in, [places[i] for i in whole], [stamps[i] for i in whole], [found[i] for i in whole])
    return found


def index_tar(path: Path, endings: FrozenSet[str], target_key: Optional[str] = None) -> Members:
    """Read the headers of a tar.

    Args:
        path: The tar.
        endings: Endings of images, with their dots.
        target_key: As in `Tars`.

    Returns:
        Its images, those before the damage if it is damaged.
    """
    rows: List[Tuple[bytes, int, int, bytes]] = []
    left_out, damage = 0, ''
    key: Optional[str] = None
    image: Optional[Tuple[bytes, int, int]] = None
    label = b''

    def end_of_key() -> int:
        if image is not None:
            rows.append((*image, label))
        return int(key is not None and image is None)

    try:
        with tarfile.open(path, 'r:') as tar:
            while (member := _next(tar)) is not None:
                if member is SEAM:
                    left_out += end_of_key()
                    key, image, label = None, None, b''
                    continue
                named = KEY.fullmatch(member.name) if member.isreg() else None
                if named is None:
                    continue
                if named[1] != key:
                    left_out += end_of_key()
                    key, image, label = named[1], None, b''
                ending = named[2].lower()
                if image is None and f'.{ending}' in endings:
                    image = member.name.encode(errors='surrogateescape'), member.offset_data, member.size
                elif ending == ('json' if target_key else CLASS):
                    tar.fileobj.seek(member.offset_data)
                    content = tar.fileobj.read(member.size)
                    if len(content) < member.size:
                        image = key = None
                        raise tarfile.ReadError('unexpected end of data')
                    label = _label(content, target_key)
    except (tarfile.TarError, OSError) as e:
        damage = getattr(e, 'strerror', None) or str(e)
        cut = image is not None and image[1] + image[2] > os.path.getsize(path)
        if cut or (not label and any(row[3] for row in rows)):  # its class may be in what is damaged
            image = key = None
    left_out += end_of_key()
    names, offsets, sizes, labels = zip(*rows, strict=True) if rows else ((), (), (), ())
    numbers = (np.array(values, dtype=np.int64) for values in (offsets, sizes))
    return Members(np.array(names, np.bytes_), *numbers, np.array(labels, np.bytes_), left_out, damage)


def _next(tar: tarfile.TarFile) -> Optional[tarfile.TarInfo]:
    """The next member, `SEAM` before those of another tar that the file goes on with, None at its end.

    Raises:
        tarfile.ReadError: There is neither a member nor the end of the tar, of which tarfile says nothing.
    """
    member = tar.next()
    tar.members.clear()  # which would grow with the tar
    if member is not None:
        return member
    start = tar.offset
    tar.fileobj.seek(start)
    block, place = tar.fileobj.read(tarfile.BLOCKSIZE), start
    damage = tarfile.ReadError(f'neither a member nor the end of the tar is at byte {start:,}')
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        raise damage
    while block and not block.strip(tarfile.NUL):
        place += len(block)
        block = tar.fileobj.read(CHUNK)
    if not block:
        return None
    place += (len(block) - len(block.lstrip(tarfile.NUL))) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    if place - start < 2 * tarfile.BLOCKSIZE:  # an end has two blocks of zeros: this was a header
        raise damage
    tar.offset = place
    tar.fileobj.seek(place)
    return SEAM


def _label(content: bytes, target_key: Optional[str]) -> bytes:
    """The class in a member, as it is written."""
    if not target_key:
        return content.strip()
    try:
        found: Any = json.loads(content)
    except ValueError:
        return b''
    found = found.get(target_key) if isinstance(found, dict) else None
    return b'' if found is None else str(found).encode()


def _saved_in(what: List[Any]) -> Path:
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(cache, 'timm-extra', 'shards', f'{hashlib.sha1(json.dumps(what).encode()).hexdigest()}.npz')


def _save(file: Path, places: List[str], stamps: List[Tuple[int, int]], found: List[Members]) -> None:
    """Save indices; where the folder cannot be written to, the headers are read the next time, too."""
    if not found:
        return
    arrays = {name: np.concatenate([getattr(part, name) for part in found]) for name in Members._fields[:4]}
    counts = np.array([(len(part.names), part.left_out) for part in found])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as aside:
            encoded = np.array([os.fsencode(place) for place in places])
            np.savez(aside, places=encoded, stamps=np.array(stamps), counts=counts, **arrays)
    except OSError:
        return


def _load(file: Path) -> Dict[str, Tuple[Tuple[int, int], Members]]:
    """Saved indices with size and time of their tars, by place; none where there are none that can be read."""
    try:
        with np.load(file) as saved:
            places, stamps, counts = (saved[name] for name in ('places', 'stamps', 'counts'))
            ends = np.cumsum(counts[:, 0])[:-1]
            parts = zip(*(np.split(saved[name], ends) for name in Members._fields[:4]), strict=True)
            members = [Members(*part, int(left)) for part, left in zip(parts, counts[:, 1], strict=True)]
    except Exception:  # missing, or what broken files raise, which is of nearly any type
        return {}
    stamps = [tuple(map(int, stamp)) for stamp in stamps]
    return {os.fsdecode(p): (s, m) for p, s, m in zip(map(bytes, places), stamps, members, strict=True)}
