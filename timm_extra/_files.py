"""The one way files are written: whole, or not at all."""

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence, Union

PathLike = Union[str, Path]
WRITING = '.writing-'  # how folders that are being written begin
NO_FLUSH_OF_FOLDERS = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EISDIR)


def check_output(path: PathLike, force: bool = False) -> None:
    """Refuse a file to write before anything is computed for it.

    Args:
        path: File.
        force: Whether it may be there, and is replaced.

    Raises:
        FileExistsError: It is there.
        FileNotFoundError: Its folder is not.
        IsADirectoryError: It is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder, not a file to write')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'no folder at {str(path.parent)!r}')
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists: name another file, or replace it with --force')


def check_folder(folder: PathLike) -> None:
    """Refuse a folder to write to, which need not be there, before anything is computed for it.

    Raises:
        NotADirectoryError: It, or one that it lies in, is a file.
        PermissionError: It, or the one that it would be made in, cannot be written to.
    """
    existing = next(p for p in (Path(folder), *Path(folder).parents) if p.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f'{existing} is a file, not a folder to write to')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f'{existing} cannot be written to')


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Write a file beside `path` that takes its place, flushed to disk, when the block ends.

    Args:
        path: File to write, replaced if it is there.

    Yields:
        Path to write to, hidden, with the same extension. An error in the block removes it and leaves `path` as it was.

    Raises:
        FileNotFoundError: Its folder does not exist.
        IsADirectoryError: It is a folder.
    """
    path = Path(path)
    check_output(path, force=True)
    aside = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        yield aside
        _flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def atomic_folder(folder: PathLike, last: Sequence[str] = ()) -> Iterator[Path]:
    """Write files into a hidden folder; when the block ends, each is flushed to disk and moved to `folder`.

    Args:
        folder: Folder to write to, made if absent. Files of other names in it stay.
        last: Names of the files to move last, in this order: those that name the others.

    Yields:
        Folder to write to. An error in the block removes it and leaves `folder` as it was.
    """
    folder = Path(folder)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=existing) as aside:
        yield Path(aside)
        files = sorted(Path(aside).iterdir(), key=lambda f: (f.name in last and 1 + last.index(f.name), f.name))
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            _flush(file)
            os.replace(file, folder / file.name)
    _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Folders that cannot be opened (on Windows) or flushed (on some network file systems) are passed over.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows flushes what it may write alone
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as e:
        if not folder or e.errno not in NO_FLUSH_OF_FOLDERS:
            raise
