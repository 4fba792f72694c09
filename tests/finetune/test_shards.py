"""Fine-tuning on shards."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch

from tests.shards import WRITERS, encoded, write_parquet, write_tar, write_tars
from timm_extra.cli import main
from timm_extra.finetune import FinetuneConfig, finetune, folder_data

FILES = encoded(40)


def model():
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=4, img_size=16, in_chans=1)


def config(**options):
    return FinetuneConfig(**{**dict(epochs=2, batch_size=8, workers=0, device='cpu', lr=1e-3), **options})


def folder_of_classes(folder, files, split):
    for i, content in enumerate(files):
        place = folder / split / str(i % 4) / f'{i:06}.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


@pytest.mark.parametrize('kind', WRITERS)
def test_images_and_classes_are_those_of_a_folder(kind, tmp_path):
    for split, files in (('train', FILES[:28]), ('validation', FILES[28:])):
        folder_of_classes(tmp_path / 'folder', files, split)
        WRITERS[kind](tmp_path / 'shards', files, split=split, **({} if kind == 'tar' else dict(names=list('0123'))))
    ours, theirs = (folder_data(tmp_path / name, model(), config()) for name in ('shards', 'folder'))
    assert ours.label_names == theirs.label_names == list('0123')
    assert (len(ours.train), len(ours.validation)) == (28, 12)
    # a folder has them in order of classes
    pairs = [[(x.numpy().tobytes(), y) for x, y in data.validation] for data in (ours, theirs)]
    assert sorted(pairs[0]) == sorted(pairs[1]) and len(set(pairs[0])) == 12
    found = finetune(model(), ours, tmp_path / 'out', config())
    assert len(found.history) == 2 and found.skipped == 0
    with pytest.raises(ValueError, match=r'lies in .*shards, where the images are: choose another'):
        finetune(model(), ours, tmp_path / 'shards' / 'out', config())


@pytest.mark.parametrize('kind', WRITERS)
def test_a_part_of_every_class_is_held_out(kind, tmp_path):
    data = folder_data(WRITERS[kind](tmp_path, FILES), model(), config(holdout=0.25))
    assert (len(data.train), len(data.validation)) == (32, 8)
    labels = [y for _, y in data.validation]
    assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3]
    again = folder_data(tmp_path, model(), config(holdout=0.25))
    assert (again.validation.indices == data.validation.indices).all() and again.files == data.files
    assert not set(data.train.indices) & set(data.validation.indices)
    for epoch in range(2):
        order = data.train.epoch_order(np.random.default_rng([0, epoch]))
        assert sorted(order) == list(range(32))


@pytest.mark.parametrize('kind', WRITERS)
def test_the_command_takes_shards_and_names_what_it_cannot_read(kind, tmp_path, capsys):
    folder = WRITERS[kind](tmp_path / 'data', [*FILES[:20], b'no image', *FILES[20:39]])
    words = (
        f'finetune {folder} --model test_vit --model-kwargs img_size=16 in_chans=1 --epochs 1 -b 8 --workers 0 '
        '--device cpu --holdout 0.1'
    ).split()
    assert main([*words, '--output', str(tmp_path / 'out')]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'cannot be read: cannot identify image file' in line and '--unreadable skip' in line
    assert ('train-00001.tar: 000020.png' if kind == 'tar' else 'parquet: row 4') in line
    assert main([*words, '--output', str(tmp_path / 'skip'), '--unreadable', 'skip']) == 0
    assert '1 unreadable files left out' in capsys.readouterr().out


def test_shards_that_teach_nothing_are_refused(tmp_path):
    one = write_tar(tmp_path / 'one.tar', [('a/1.png', FILES[0]), ('a/2.png', FILES[1])])
    with pytest.raises(ValueError, match="have one class only, 'a'"):
        folder_data(one, model(), config())
    members = [('1.png', FILES[0]), ('1.cls', b'1'), ('2.png', FILES[1]), ('2.cls', b'0'), ('3.png', FILES[2])]
    some = write_tar(tmp_path / 'some.tar', members)
    with pytest.raises(ValueError, match=r'1 image in .*some.tar has no class, such as some.tar: 3.png'):
        folder_data(some, model(), config())
    folder = write_tars(tmp_path / 'data', FILES[:8])
    write_tar(folder / 'validation-0.tar', [('1.png', FILES[0]), ('1.cls', b'7')])
    with pytest.raises(ValueError, match="have the class '7', which is not in the class map"):
        folder_data(folder, model(), config())
    folder_of_classes(tmp_path / 'plain', FILES[:8], 'train')
    with pytest.raises(ValueError, match=r'plain has no shards, which `target_key` is for'):
        folder_data(tmp_path / 'plain', model(), config(), target_key='label')


def test_lists_are_no_classes_to_learn(tmp_path, capsys):
    (tmp_path / 'data').mkdir()
    pq.write_table(pa.table(dict(image=FILES[:8], label=[[0, 1], [1]] * 4)), tmp_path / 'data' / 'a.parquet')
    words = f'finetune {tmp_path}/data --model test_vit --model-kwargs img_size=16 in_chans=1 --device cpu'.split()
    assert main([*words, '--output', str(tmp_path / 'out')]) == 1
    line = f"timm-extra: the column 'label' of {tmp_path}/data/a.parquet holds lists or structs, no class of an image\n"
    assert capsys.readouterr().err == line


def test_other_columns_are_not_resumed_with(tmp_path):
    (tmp_path / 'data').mkdir()
    rows = pa.table(dict(image=FILES[:8], mask=FILES[8:16], label=[0, 1, 2, 3] * 2, cls=[1, 2, 3, 0] * 2))
    pq.write_table(rows, tmp_path / 'data' / 'a.parquet')
    keys = dict(input_key='image', target_key='label')
    finetune(model(), folder_data(tmp_path / 'data', model(), config(), **keys), tmp_path / 'out', config())
    for other in (dict(keys, input_key='mask'), dict(keys, target_key='cls')):
        data = folder_data(tmp_path / 'data', model(), config(), **other)
        with pytest.raises(ValueError, match=r'is of another training: `files` was'):
            finetune(model(), data, tmp_path / 'out', config(resume=True))


@pytest.mark.parametrize('spared', [0, 1])
def test_too_little_memory_is_no_unreadable_file(spared, tmp_path, monkeypatch):
    """From the first file, which is tried before all, or in the training."""
    data = folder_data(write_parquet(tmp_path, FILES[:16]), model(), config())
    plain, calls = pq.ParquetFile.read_row_group, []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) <= spared:
            return plain(*args, **options)
        raise pa.ArrowMemoryError('realloc of size 7 failed')

    monkeypatch.setattr(pq.ParquetFile, 'read_row_group', fail)
    with pytest.raises(ValueError, match=r'row group \d, 0.0 GiB of images, does not fit into memory'):
        finetune(model(), data, None, config(unreadable='skip'))
    assert len(calls) > spared


def damaged_labels(path, group):
    """Overwrite the classes of a row group."""
    data, place = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(group).column(2)
    assert place.path_in_schema == 'label'
    first = place.dictionary_page_offset or place.data_page_offset
    data[first : first + 12] = b'\xff' * 12
    path.write_bytes(data)


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_images_whose_class_is_damaged_are_left_out(split, tmp_path, capsys):
    folder = write_parquet(tmp_path / 'data', FILES[:20], per_shard=20)
    write_parquet(folder, FILES[20:40], per_shard=20, split='validation')
    path = folder / f'{split}-00000-of-00001.parquet'
    damaged_labels(path, 1)
    with pytest.raises(
        ValueError, match=rf'a class cannot be read, that of {path.name}: row 4: row group 1: .*; `unread'
    ):
        folder_data(folder, model(), config())
    data = folder_data(folder, model(), config(unreadable='skip'))
    kept = [0, 1, 2, 3, *range(8, 20)]
    found = dict(train=data.train, validation=data.validation)
    assert found.pop(split).indices.tolist() == kept
    assert found.popitem()[1].indices.tolist() == list(range(20))
    assert f'left out: 4 images whose class cannot be read, such as that of {path.name}: row 4' in data.source
    done = finetune(model(), data, tmp_path / 'out', config(unreadable='skip'))
    assert done.skipped == 0 and 'left out: 4 images' in capsys.readouterr().err


def test_none_is_held_out_of_those_without_a_class(tmp_path):
    write_parquet(tmp_path, FILES[:20], per_shard=20)
    damaged_labels(tmp_path / 'train-00000-of-00001.parquet', 1)
    data = folder_data(tmp_path, model(), config(unreadable='skip', holdout=0.25))
    assert sorted(y for _, y in data.validation) == [0, 1, 2, 3] and len(data.train) == 12
    for group in range(5):
        damaged_labels(tmp_path / 'train-00000-of-00001.parquet', group)
    with pytest.raises(ValueError, match=r'have no classes that can be read: row group 0: '):
        folder_data(tmp_path, model(), config(unreadable='skip'))


def test_a_tar_cut_before_a_class_loses_that_image(tmp_path):
    folder = write_tars(tmp_path, FILES[:33], per_shard=20)
    path = folder / 'train-00001.tar'
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b'000030.cls')])
    data = folder_data(folder, model(), config(unreadable='skip'))
    assert len(data.train) + len(data.validation) == 30 and '1 damaged shard' in data.source
