"""An index of WebDataset tars: where the images are, so that each can be read by itself."""

import hashlib
import json
import os
import re
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from timm_extra._files import atomic_file

from ..folders import image_files
from ..pixels import PixelError

# WebDataset's: the key ends at the first dot of the file's name; hidden files have none
KEY = re.compile(r'((?:.*/)?[^./]+)\.([^/]*)')
HIDDEN = re.compile(r'(?:^|/)\.(?!\.?/)[^/]+/')  # a folder, other than `./` and `../`
CLASS = 'cls'
SEAM = tarfile.TarInfo()  # stands for the end of a tar that another follows, as in `cat a.tar b.tar`
CHUNK = 1 << 20  # bytes that are read at once after the end of a tar, whole blocks
VERSION = 2  # of the saved index
LONGEST = 4096  # bytes of a class
MAGIC = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
BARE, DOTTED, FURTHER, LINK, SPARSE, NO_CLASS = range(6)
REASONS = (  # why something is left out, of one and of several
    ('key of members without an image', 'keys of members without an image'),
    (
        'key whose images have a second dot in their names (`input_key` takes 1.jpg of a.1.jpg)',
        'keys whose images have a second dot in their names (`input_key` takes 1.jpg of a.1.jpg)',
    ),
    ('further image of a key that has one', 'further images of keys that have one'),
    ('link that leads to no image in its tar', 'links that lead to no image in their tars'),
    ('image that is stored as a sparse file', 'images that are stored as sparse files'),
    (
        f'image whose class is no text or over {LONGEST:,} bytes',
        f'images whose class is no text or over {LONGEST:,} bytes',
    ),
)
WORTH_SAVING = 2.0  # seconds that a pass over the headers takes


@dataclass(frozen=True)
class Texts:
    """Texts of any length, one after the other: the longest takes no space of the others.

    Attributes:
        content: Bytes of all of them (B,).
        ends: Where each ends (N,).
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, words: Sequence[bytes]) -> 'Texts':
        """Texts one after the other."""
        ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        return cls(np.frombuffer(b''.join(words), np.uint8), ends)

    @classmethod
    def joined(cls, parts: Sequence['Texts']) -> 'Texts':
        """All texts of several."""
        sizes = [len(part.content) for part in parts]
        ends = [part.ends + start for part, start in zip(parts, np.cumsum(sizes) - sizes, strict=True)]
        return cls(np.concatenate([part.content for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.content[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self.ends.tolist():
            yield self.content[start:end].tobytes()
            start = end


class Members(NamedTuple):
    """Images of one tar.

    Attributes:
        names: Names of the members, N.
        offsets: First byte of each (N,).
        sizes: Bytes of each (N,).
        labels: Class of each as it is written, N; empty where there is none.
        left_out: How much is left out for each of `REASONS`.
        damage: What is wrong after the last of these images; empty if nothing.
    """

    names: Texts
    offsets: np.ndarray
    sizes: np.ndarray
    labels: Texts
    left_out: Tuple[int, ...] = (0,) * len(REASONS)
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
        self.names = Texts.joined([part.names for part in parts])
        self.offsets, self.sizes = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        counts = np.sum([part.left_out for part in parts], axis=0)
        self.left_out = ', '.join(f'{n:,} {REASONS[i][n > 1]}' for i, n in enumerate(counts.tolist()) if n)
        self.damaged = {path: part.damage for path, part in zip(self.files, parts, strict=True) if part.damage}
        self.in_folders = not target_key and not any(len(part.labels.content) for part in parts)
        words = map(_folder, self.names) if self.in_folders else (word for part in parts for word in part.labels)
        numbers: Dict[bytes, int] = {}
        self._codes = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(self.names))
        # of two that are no UTF-8, none stands for both
        self._distinct = [word.decode(errors='backslashreplace') or None for word in numbers]
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
        return np.array([*self._distinct, None], dtype=object)[:-1][self._codes]

    @property
    def distinct(self) -> Set[Optional[str]]:
        """Classes as they are written."""
        return set(self._distinct)

    def read(self, index: int, labelled: bool = True) -> Tuple[bytes, Optional[str]]:
        """An image as it is stored, and its class as it is written (None unless `labelled`).

        Raises:
            PixelError: The tar is shorter than it was.
        """
        size = int(self.sizes[index])
        with open(self.file_of(index), 'rb', buffering=0) as file:  # nothing that processes would share
            file.seek(int(self.offsets[index]))
            found = file.read(size)
        if found is None or len(found) < size:
            raise PixelError(f'{len(found or b"")} of {size} bytes are there')
        return found, self._distinct[self._codes[index]] if labelled else None

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
    keys, damage = _Keys(endings, target_key), ''
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
        for magic, kind in MAGIC.items():
            if head.startswith(magic):
                raise tarfile.ReadError(f'it is compressed with {kind}: unpack it')
        with tarfile.open(path, 'r:') as tar:
            while (member := _next(tar)) is not None:
                if member is SEAM:
                    keys.end()
                else:
                    keys.add(member, tar)
    except (tarfile.TarError, OSError) as e:
        damage = getattr(e, 'strerror', None) or str(e)
        keys.end_at_damage(os.path.getsize(path))
    keys.end()
    keys.follow_links()
    names, offsets, sizes, labels = zip(*keys.rows, strict=True) if keys.rows else ((), (), (), ())
    numbers = (np.array(values, dtype=np.int64) for values in (offsets, sizes))
    return Members(Texts.of(names), *numbers, Texts.of(labels), tuple(keys.left_out), damage)


class _Keys:
    """Images of a tar, one of each key, as its members come.

    Args:
        endings: As in `index_tar`.
        target_key: As in `Tars`.
    """

    def __init__(self, endings: FrozenSet[str], target_key: Optional[str]):
        self.endings, self.target_key = endings, target_key
        self.rows: List[Tuple[bytes, int, int, bytes]] = []
        self.links: Dict[int, bytes] = {}  # names of what rows are links to
        self.left_out = [0] * len(REASONS)
        self._begin(None)

    def _begin(self, key: Optional[str]) -> None:
        self.key, self.reason = key, BARE
        self.image: Optional[Tuple[bytes, int, int]] = None
        self.link: Optional[bytes] = None
        self.label: Optional[bytes] = b''

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        """Take a member.

        Raises:
            tarfile.ReadError: The tar ends in its class.
        """
        linked = member.islnk() or member.issym()
        named = KEY.fullmatch(member.name) if member.isreg() or linked else None
        if named is None or HIDDEN.search(named[1]):
            return
        if named[1] != self.key:
            self.end()
            self._begin(named[1])
        ending = named[2].lower()
        if f'.{ending}' in self.endings:
            self._add_image(member)
        elif ending == ('json' if self.target_key else CLASS) and not linked:
            self._add_label(member, tar)
        elif f'.{ending.rpartition(".")[2]}' in self.endings and self.reason == BARE:
            self.reason = DOTTED

    def _add_image(self, member: tarfile.TarInfo) -> None:
        if self.image is not None:
            self.left_out[FURTHER] += 1
        elif member.issym() or member.issparse():
            self.reason = LINK if member.issym() else SPARSE
        else:
            self.image = member.name.encode(errors='surrogateescape'), member.offset_data, member.size
            self.link = member.linkname.encode(errors='surrogateescape') if member.islnk() else None

    def _add_label(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if member.issparse() or (not self.target_key and member.size > LONGEST):
            self.label = None
            return
        tar.fileobj.seek(member.offset_data)
        content = tar.fileobj.read(member.size)
        if len(content) < member.size:
            self._begin(None)
            raise tarfile.ReadError('unexpected end of data')
        self.label = _label(content, self.target_key)

    def end(self) -> None:
        """End the key."""
        if self.key is not None and self.image is None:
            self.left_out[self.reason] += 1
        elif self.key is not None and self.label is None:
            self.left_out[NO_CLASS] += 1
        elif self.key is not None:
            if self.link is not None:
                self.links[len(self.rows)] = self.link
            self.rows.append((*self.image, self.label))
        self._begin(None)

    def end_at_damage(self, size: int) -> None:
        """End the key in which a tar of a size is damaged, without its image where that or its class may be damaged."""
        cut = self.image is not None and self.image[1] + self.image[2] > size
        if cut or (not self.label and any(row[3] for row in self.rows)):
            self._begin(None)
        self.end()

    def follow_links(self) -> None:
        """Put in the place of hard links what they lead to."""
        if not self.links:
            return
        places = {row[0]: row[1:3] for i, row in enumerate(self.rows) if i not in self.links}
        for i, name in self.links.items():
            self.rows[i] = (self.rows[i][0], *places.get(name, (-1, 0)), self.rows[i][3])
        whole = [row for row in self.rows if row[1] >= 0]
        self.left_out[LINK] += len(self.rows) - len(whole)
        self.rows = whole


def _folder(name: bytes) -> bytes:
    """Name of the folder that a member lies in, empty if there is none."""
    found = name.rpartition(b'/')[0].rpartition(b'/')[2]
    return b'' if found == b'.' else found


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


def _label(content: bytes, target_key: Optional[str]) -> Optional[bytes]:
    """The class in a member, as it is written; None if it is none."""
    if not target_key:
        return content.strip()
    try:
        found: Any = json.loads(content)
    except ValueError:
        return b''
    found = found.get(target_key) if isinstance(found, dict) else None
    try:
        word = b'' if found is None else str(found).encode()
    except UnicodeEncodeError:  # half a character, which JSON can hold
        return None
    return word if len(word) <= LONGEST else None


def _saved_in(what: List[Any]) -> Path:
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(cache, 'timm-extra', 'shards', f'{hashlib.sha1(json.dumps(what).encode()).hexdigest()}.npz')


def _save(file: Path, places: List[str], stamps: List[Tuple[int, int]], found: List[Members]) -> None:
    """Save indices; where the folder cannot be written to, the headers are read the next time, too."""
    if not found:
        return
    arrays = {name: np.concatenate([getattr(part, name) for part in found]) for name in ('offsets', 'sizes')}
    for name in ('names', 'labels'):
        texts = [getattr(part, name) for part in found]
        arrays[name] = np.concatenate([part.content for part in texts])
        arrays[f'{name}_sizes'] = np.concatenate([np.diff(part.ends, prepend=0) for part in texts])
    counts = np.array([(len(part.names), *part.left_out) for part in found])
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
            numbers = [np.split(saved[name], ends) for name in ('offsets', 'sizes')]
            texts = [_split(saved[name], np.split(saved[f'{name}_sizes'], ends)) for name in ('names', 'labels')]
            parts = zip(texts[0], *numbers, texts[1], counts[:, 1:].tolist(), strict=True)
            members = [Members(*part, tuple(left)) for *part, left in parts]
    except Exception:  # missing, or what broken files raise, which is of nearly any type
        return {}
    stamps = [tuple(map(int, stamp)) for stamp in stamps]
    return {os.fsdecode(p): (s, m) for p, s, m in zip(map(bytes, places), stamps, members, strict=True)}


def _split(content: np.ndarray, sizes: Sequence[np.ndarray]) -> List[Texts]:
    """Texts of several tars, of sizes (N,) each."""
    parts = np.split(content, np.cumsum([size.sum() for size in sizes])[:-1].astype(np.int64))
    return [Texts(part, np.cumsum(size)) for part, size in zip(parts, sizes, strict=True)]
