"""Trainings on shards: killed, shared among workers and processes, on what is damaged."""

import multiprocessing.forkserver
import os
import random
import signal
import socket
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from torch.utils.data import Subset

from tests.shards import WRITERS, encoded, write_folder, write_parquet, write_tar, write_tars
from timm_extra.cli import main
from timm_extra.pretrain.data import Collate, Samples, loader
from timm_extra.training import checkpoints
from timm_extra.training.log import read_log
from timm_extra.training.order import Batches, order_of

sys.path.insert(0, str(Path(__file__).parent))
import shard_training
from train import STEPS, equal, losses

FILES = encoded(70)  # no multiple of a batch


@pytest.fixture(scope='module')
def forks():
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['shard_training', 'accelerate', 'accelerate.tracking'])
    with pytest.MonkeyPatch.context() as patch:  # the one way to find modules that every version of Python has
        patch.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        patch.setenv('OMP_NUM_THREADS', '1')
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(scope='module', params=WRITERS)
def shards(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param) / 'shards', FILES)


def start(forks, *arguments):
    child = forks.Process(target=shard_training.train, args=arguments)
    child.start()
    return child


def finish(*children):
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def same(ours, theirs):
    """Check that two trainings ended with the same, bit for bit."""
    assert losses(ours) == losses(theirs) and len(losses(ours)) == STEPS
    found = (load_file(folder / 'model' / 'model.safetensors') for folder in (ours, theirs))
    equal(*found)
    equal(*(checkpoints.read(folder / 'checkpoints' / checkpoints.NAME.format(STEPS)) for folder in (ours, theirs)))


def test_killed_ten_times_it_resumes_bit_for_bit(shards, forks, tmp_path):
    """At random moments, with another number of workers each time."""
    finish(start(forks, shards, tmp_path / 'whole', {}))
    generator = random.Random(0)
    kills = 0
    for attempt in range(60):
        before = stamp(tmp_path / 'killed')
        child = start(forks, shards, tmp_path / 'killed', dict(workers=attempt % 3))
        if kills < 10:
            while child.is_alive() and stamp(tmp_path / 'killed') == before:
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.2))
            child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0 and kills == 10:
            break
        if child.exitcode == 0:  # done before the kill: take its end away, and go on from the checkpoint before
            (tmp_path / 'killed' / 'checkpoints' / checkpoints.NAME.format(STEPS)).unlink()
    assert kills == 10
    same(tmp_path / 'killed', tmp_path / 'whole')


def stamp(output):
    """When the log was last written to."""
    log = output / 'log.csv'
    return log.stat().st_mtime_ns if log.exists() else 0


def test_workers_and_processes_change_nothing(shards, forks, tmp_path):
    with socket.create_server(('localhost', 0)) as server:
        port = server.getsockname()[1]
    options = dict(exact=True, batch_size=8, workers=1, view1=shard_training.plain, view2=shard_training.flipped)
    one = start(forks, shards, tmp_path / 'one', options)
    half = dict(options, batch_size=4)
    two = [start(forks, shards, tmp_path / 'two', half, (rank, 2, port)) for rank in range(2)]
    for workers in (0, 3):
        finish(start(forks, shards, tmp_path / str(workers), dict(options, workers=workers)))
    finish(one, *two)
    same(tmp_path / '0', tmp_path / 'one')
    same(tmp_path / '3', tmp_path / 'one')
    for a, b in zip(*(read_log(tmp_path / name / 'log.csv') for name in ('one', 'two')), strict=True):
        assert float(a['loss']) == pytest.approx(float(b['loss']), abs=1e-9), a['step']


@pytest.mark.parametrize('processes', [1, 3])
@pytest.mark.parametrize('workers', [0, 2])
def test_every_image_is_seen_once_an_epoch_but_for_less_than_a_step(processes, workers, shards):
    """Counted by what the workers of all processes have read."""
    dataset = shard_training.dataset(shards)
    size = 4
    each = 70 // (size * processes)
    for epoch in range(2):
        seen = []
        for rank in range(processes):
            steps = (epoch * each, (epoch + 1) * each)
            order = order_of(dataset)
            batches = Batches(70, size, steps=steps, seed=5, rank=rank, processes=processes, order=order)
            for batch in loader(Samples(dataset, 1), batches, Collate(None), workers):
                assert {e for e, _ in batch['at']} == {epoch}
                seen += [image.numpy().tobytes() for image in batch['images']]
        assert len(set(seen)) == len(seen) == each * size * processes > 70 - size * processes


def test_tars_train_as_a_folder_of_the_same_images(forks, tmp_path):
    tar, folder = write_tars(tmp_path / 'shards', FILES), write_folder(tmp_path / 'folder', FILES)
    finish(start(forks, tar, tmp_path / 'a', {}), start(forks, folder, tmp_path / 'b', {}))
    assert losses(tmp_path / 'a') == losses(tmp_path / 'b')


def test_parquet_has_an_order_of_its_own():
    class Ordered:
        def epoch_order(self, rng):
            return [*rng.permutation(4).tolist(), 4, 5]

    batches = list(Batches(6, 2, steps=(0, 6), seed=0, order=order_of(Ordered())))
    assert [i for _, i in batches[2]] == [i for _, i in batches[5]] == [4, 5]
    assert sorted(i for _, i in chain(*batches[:3])) == list(range(6))
    assert order_of([]) is None


COMMAND = (
    'pretrain simsiam --model test_vit --model-kwargs img_size=16 --input-size 1 16 16 --num-train-steps 4 -b 4 '
    '--workers 0 --cpu --log-interval 1 --task-args projection_size=16'
)


def command(folder, output, *more):
    return main([*COMMAND.split(), '--data-dir', str(folder), '--output', str(output), *more])


@pytest.mark.parametrize('kind', WRITERS)
def test_the_command_takes_a_folder_of_shards(kind, tmp_path, capsys):
    WRITERS[kind](tmp_path / 'data', FILES[:24])
    WRITERS[kind](tmp_path / 'data', FILES[24:40], split='validation')
    assert command(tmp_path / 'data', tmp_path / 'out', '--probes', 'knn') == 0
    said = capsys.readouterr()
    assert 'images  24, views of 1×16×16' in said.err and '24 and 16 images' in said.err
    assert 'knn accuracy' in said.out
    WRITERS[kind](tmp_path / 'data', FILES[:25])
    assert command(tmp_path / 'data', tmp_path / 'out', '--resume') == 1
    assert '`images` was 24 and is 25' in capsys.readouterr().err.replace('images was', '`images` was')


@pytest.mark.parametrize('kind', WRITERS)
def test_damage_stops_the_command_in_one_line_or_is_counted(kind, tmp_path, capsys):
    """A shard cut in two, and an image."""
    folder = WRITERS[kind](tmp_path / 'data', [*FILES[:20], b'no image', *FILES[20:39]])
    broken = sorted(folder.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    assert command(folder, tmp_path / 'out') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'timm-extra: {broken} is damaged: ') and '--unreadable skip' in line
    assert not (tmp_path / 'out').exists()
    assert command(folder, tmp_path / 'out', '--unreadable', 'skip', '--num-train-steps', '40') == 0
    said = capsys.readouterr()
    assert '1 damaged shard, of which only what can be read is taken' in said.err and str(broken) in said.err
    assert 'unreadable images left out' in said.out
    broken.unlink()
    assert command(folder, tmp_path / 'other', '--num-train-steps', '6') == 1
    line = capsys.readouterr().err.splitlines()[-1]
    member = 'train-00001.tar: 000020.png' if kind == 'tar' else 'train-00001-of-00003.parquet: row 4'
    assert f'({member}) cannot be read: cannot identify image file; --unreadable skip leaves' in line


def test_other_shards_are_not_resumed_with(tmp_path, capsys):
    folder = write_parquet(tmp_path / 'data', FILES[:24])
    assert command(folder, tmp_path / 'out') == 0
    write_parquet(tmp_path / 'data', FILES[40:64])
    assert command(folder, tmp_path / 'out', '--resume') == 1
    assert 'is of another training: files was' in capsys.readouterr().err


def test_what_shards_need_is_refused_for_folders(tmp_path, capsys):
    write_folder(tmp_path / 'data', FILES[:8])
    assert command(tmp_path / 'data', tmp_path / 'out', '--input-key', 'png') == 1
    assert f'{tmp_path}/data has no shards, which --input-key is for' in capsys.readouterr().err
    write_tars(tmp_path / 'tars', FILES[:8])
    assert command(tmp_path / 'tars', tmp_path / 'out', '--probes', 'knn') == 1
    assert 'has no shards of validation, but of train' in capsys.readouterr().err


@pytest.mark.parametrize(
    'label', [[[0, 1], [1]] * 8, [dict(a=1)] * 16, [15778368000, -2] * 8, ['15778368000', 'x'] * 8]
)
def test_classes_of_any_kind_are_not_looked_at(label, tmp_path):
    (tmp_path / 'data').mkdir()
    pq.write_table(pa.table(dict(image=FILES[:16], label=label)), tmp_path / 'data' / 'a.parquet')
    assert command(tmp_path / 'data', tmp_path / 'out', '--num-train-steps', '2') == 0


def test_large_numbers_in_tars_are_not_looked_at(tmp_path):
    members = [(f'{i}.{end}', part) for i in range(8) for end, part in (('png', FILES[i]), ('cls', b'15778368000'))]
    write_tar(tmp_path / 'data' / 'a.tar', members)
    assert command(tmp_path / 'data', tmp_path / 'out', '--num-train-steps', '2') == 0


@pytest.mark.parametrize('key', ['input', 'target'])
def test_other_columns_are_not_resumed_with(key, tmp_path, capsys):
    (tmp_path / 'data').mkdir()
    rows = pa.table(dict(image=FILES[:8], mask=FILES[8:16], label=[0, 1] * 4, cls=[1, 0] * 4))
    pq.write_table(rows, tmp_path / 'data' / 'a.parquet')
    first, second = dict(input=('image', 'mask'), target=('label', 'cls'))[key]
    keys = [] if key == 'input' else ['--input-key', 'image']
    assert command(tmp_path / 'data', tmp_path / 'out', *keys, f'--{key}-key', first) == 0
    assert command(tmp_path / 'data', tmp_path / 'out', *keys, f'--{key}-key', first, '--resume') == 0
    capsys.readouterr()
    assert command(tmp_path / 'data', tmp_path / 'out', *keys, f'--{key}-key', second, '--resume') == 1
    line = capsys.readouterr().err
    assert (
        'is of another training: files was' in line and f'{key}_key {first}' in line and f'{key}_key {second}' in line
    )


@pytest.mark.parametrize('kind', [*WRITERS, 'folder'])
def test_messages_are_the_same_with_and_without_workers(kind, tmp_path, capsys):
    writer = WRITERS.get(kind, write_folder)
    folder = writer(tmp_path / 'data', [*FILES[:5], b'no image', *FILES[6:16]])
    lines = []
    for workers in ('0', '2'):
        assert command(folder, tmp_path / workers, '--workers', workers) == 1
        lines.append(capsys.readouterr().err.splitlines()[-1])
    assert lines[0] == lines[1]
    assert lines[0].startswith('timm-extra: image 5 (') and lines[0].endswith(
        '--unreadable skip leaves such images out'
    )


def test_a_batch_of_nothing_to_read_is_a_line_with_workers(tmp_path, capsys):
    folder = write_tars(tmp_path / 'data', [b'no image'] * 8)
    for workers in ('0', '2'):
        assert command(folder, tmp_path / workers, '--unreadable', 'skip', '--workers', workers) == 1
        assert capsys.readouterr().err.splitlines()[-1] == 'timm-extra: none of the 4 images of a batch can be read'


def test_too_little_memory_is_no_unreadable_image(tmp_path, monkeypatch, capsys):
    folder = write_parquet(tmp_path / 'data', FILES[:16])

    def fail(*_, **__):
        raise pa.ArrowMemoryError('realloc of size 7 failed')

    monkeypatch.setattr(pq.ParquetFile, 'read_row_group', fail)
    for workers in ('0', '2'):
        more = ['--unreadable', 'skip', '--workers', workers]
        assert command(folder, tmp_path / workers, *more) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert (
            line.startswith(f'timm-extra: {folder}/') and 'does not fit into memory: fewer --workers need less' in line
        )


def test_the_order_of_row_groups_holds_in_a_subset(tmp_path):
    whole = shard_training.dataset(write_parquet(tmp_path / 'shards', FILES, per_shard=70))
    indices = [*range(60, 3, -1), 5]  # in another order, one of them twice
    part = Subset(Subset(whole, indices), range(50))
    order = order_of(part)(np.random.default_rng(0))
    assert sorted(order) == list(range(50))
    seen = [indices[place] for place in order]
    kept = set(seen)
    assert seen == [i for i in order_of(whole)(np.random.default_rng(0)) if i in kept]
    twice = order_of(Subset(whole, indices))(np.random.default_rng(0))
    assert sorted(twice) == list(range(len(indices)))
    assert order_of(Subset([1, 2], [0])) is None


def test_a_subset_is_read_by_row_groups(tmp_path, monkeypatch):
    whole = shard_training.dataset(write_parquet(tmp_path / 'shards', FILES[:64], per_shard=64))
    shards = whole.reader.shards
    monkeypatch.setattr(shards, 'window', 1)  # one row group at a time
    read, plain = [], shards._read_group
    monkeypatch.setattr(shards, '_read_group', lambda group, columns: read.append(group) or plain(group, columns))
    part = Subset(whole, range(0, 64, 2))
    batches = Batches(32, 4, steps=(0, 8), seed=0, order=order_of(part))
    for _ in loader(Samples(part, 1), batches, Collate(None), 0):
        pass
    assert sorted(read) == list(range(16))
