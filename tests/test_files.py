"""Files are written whole and flushed, on file systems that flush no folders, too."""

import errno
import os
import stat
from types import SimpleNamespace

import pytest

from timm_extra import _files
from timm_extra._files import atomic_file, atomic_folder


@pytest.fixture
def system(monkeypatch):
    """The `os` that files are written by, not that of the standard library's own calls."""
    system = SimpleNamespace(**vars(os))
    monkeypatch.setattr(_files, 'os', system)
    return system


@pytest.fixture
def flushed(system):
    """Names of the files that are flushed."""
    seen, names = [], {}

    def open_and_note(path, flags, *args, **kwargs):
        descriptor = os.open(path, flags, *args, **kwargs)
        names[descriptor] = os.path.basename(path), flags
        return descriptor

    def note(descriptor):
        name, flags = names[descriptor]
        seen.append(name)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            assert flags & os.O_RDWR  # or Windows refuses
        os.fsync(descriptor)

    system.open, system.fsync = open_and_note, note
    return seen


def refuse(system, function, number, folders_only=True):
    """Let a function of `os` fail as an operating system does."""
    real = getattr(system, function)

    def refusing(what, *args, **kwargs):
        mode = (os.fstat if isinstance(what, int) else os.stat)(what).st_mode
        if stat.S_ISDIR(mode) or not folders_only:
            raise OSError(number, os.strerror(number), what)
        return real(what, *args, **kwargs)

    setattr(system, function, refusing)


def write_both(folder):
    with atomic_file(folder / 'one.txt') as aside:
        aside.write_text('1')
    with atomic_folder(folder / 'model', last=('config.json',)) as aside:
        (aside / 'weights').write_text('2')
        (aside / 'config.json').write_text('3')
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


WRITTEN = ['model', os.path.join('model', 'config.json'), os.path.join('model', 'weights'), 'one.txt']


def test_files_and_their_folders_are_flushed(flushed, tmp_path):
    assert write_both(tmp_path) == WRITTEN
    assert [name for name in flushed if not name.startswith('.')][-1] == 'model'
    assert {'config.json', 'weights', tmp_path.name} <= set(flushed)


@pytest.mark.parametrize('function, number', [('open', errno.EACCES), ('open', errno.EPERM), ('fsync', errno.EINVAL)])
def test_folders_that_cannot_be_flushed_are_passed_over(function, number, system, flushed, tmp_path):
    refuse(system, function, number)
    assert write_both(tmp_path) == WRITTEN
    assert {'config.json', 'weights'} <= set(flushed)


@pytest.mark.parametrize('number', [errno.EIO, errno.ENOSPC])
def test_a_folder_on_a_broken_disk_is_an_error(number, system, tmp_path):
    refuse(system, 'fsync', number)
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / 'one.txt') as aside:
        aside.write_text('1')
    assert caught.value.errno == number


def test_a_file_that_cannot_be_flushed_is_an_error_and_not_written(system, tmp_path):
    refuse(system, 'fsync', errno.EINVAL, folders_only=False)
    with pytest.raises(OSError), atomic_file(tmp_path / 'one.txt') as aside:
        aside.write_text('1')
    assert list(tmp_path.iterdir()) == []
