"""Checkpoints are whole or not there."""

import signal

import pytest
import torch

from timm_extra.training import checkpoints


def state(step=3, size=10):
    return dict(step=step, settings=dict(a=1), weights=torch.arange(float(size)))


def test_round_trip(tmp_path):
    file = tmp_path / 'new' / checkpoints.NAME.format(3)
    checkpoints.write(state(), file)
    assert torch.equal(checkpoints.read(file)['weights'], torch.arange(10.0))
    assert checkpoints.steps(file.parent) == [3]
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    resource = pytest.importorskip('resource', reason='Windows limits no sizes of files')
    file = tmp_path / checkpoints.NAME.format(3)
    checkpoints.write(state(), file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a larger file cannot be written
    try:
        with pytest.raises(
            OSError, match=r'step-00000003\.pt could not be written .*earlier checkpoints are as they were'
        ):
            checkpoints.write(state(size=100_000), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    assert checkpoints.read(file)['weights'].shape == (10,)


def test_the_last_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        checkpoints.write(state(step), tmp_path / checkpoints.NAME.format(step))
    checkpoints.prune(tmp_path, 2, best=2)
    assert checkpoints.steps(tmp_path) == [2, 4, 5]


class Evil:
    def __reduce__(self):
        return print, ('executed',)


@pytest.mark.parametrize('content', [b'', b'junk', 'evil', 'weights'])
def test_other_files_are_refused_and_not_executed(tmp_path, content, capsys):
    file = tmp_path / 'step-00000001.pt'
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(dict(step=1, settings=Evil()) if content == 'evil' else torch.zeros(1), file)
    with pytest.raises(ValueError, match='is no checkpoint of a training'):
        checkpoints.read(file)
    assert capsys.readouterr().out == ''


def test_what_a_kill_left_is_cleaned(tmp_path):
    (tmp_path / '.123.step-00000003.pt').write_bytes(b'half')
    checkpoints.write(state(), tmp_path / checkpoints.NAME.format(3))
    checkpoints.clean(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ['step-00000003.pt']
