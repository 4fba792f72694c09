"""Parquet files as shards: columns, classes, row groups, damages."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.shards import contents, encoded, labels, table, write_parquet, write_tar
from timm_extra.images import ShardReader, find_shards
from timm_extra.images.pixels import PixelError
from timm_extra.images.shards import parquet

FILES = encoded(40)


def test_columns_of_parquet(tmp_path):
    """By type and usual names, or as they are named."""
    plain = table(tmp_path / 'plain.parquet', jpg=FILES[:3], cls=[2, -1, None], text=['a', 'b', 'c'])
    assert contents(ShardReader(plain)) == FILES[:3] and labels(ShardReader(plain)) == [2, None, None]
    words = ShardReader(plain, target_key='text')
    assert words.class_to_idx == dict(a=0, b=1, c=2) and labels(words) == [0, 1, 2]
    two = table(tmp_path / 'two.parquet', left=FILES[:2], right=FILES[2:4])
    with pytest.raises(ValueError, match=r'two.parquet has several columns of images, left, right: give `input_key`'):
        ShardReader(two)
    assert contents(ShardReader(two, input_key='right')) == FILES[2:4]
    with pytest.raises(ValueError, match=r"two.parquet has no column 'middle', but left, right"):
        ShardReader(two, input_key='middle')
    with pytest.raises(ValueError, match=r'none.parquet has no column of images'):
        ShardReader(table(tmp_path / 'none.parquet', url=['a']))
    paths = table(tmp_path / 'paths.parquet', image=[dict(bytes=None, path='1.png')])
    with pytest.raises(PixelError, match='holds none, or the path of another file'):
        ShardReader(paths)[0]


def test_classes_of_several_columns_are_chosen_by_name(tmp_path):
    features = {name: {'_type': 'ClassLabel', 'names': ['x', 'y']} for name in ('fine_label', 'coarse_label')}
    found = pa.table(dict(img=FILES[:2], fine_label=[0, 1], coarse_label=[1, 0]))
    metadata = {'huggingface': str(dict(info=dict(features=features))).replace("'", '"')}
    pq.write_table(found.replace_schema_metadata(metadata), tmp_path / 'a.parquet')
    with pytest.raises(ValueError, match='no classes: give `target_key`, one of fine_label, coarse_label'):
        ShardReader(tmp_path).class_to_idx  # noqa: B018
    assert labels(ShardReader(tmp_path, target_key='coarse_label')) == [1, 0]


def test_files_with_other_columns_are_named(tmp_path):
    table(tmp_path / 'a.parquet', image=FILES[:1], label=[0])
    table(tmp_path / 'b.parquet', jpg=FILES[:1])
    with pytest.raises(
        ValueError, match=r"b.parquet has the columns \('jpg', None\), .*a.parquet has \('image', 'label'"
    ):
        ShardReader(tmp_path)


@pytest.mark.parametrize('window', [1, 9000, 1 << 30])
def test_row_groups_are_read_once_an_epoch(window, tmp_path, monkeypatch):
    write_parquet(tmp_path, FILES)
    found = parquet.Parquets(find_shards(tmp_path, 'train'), window=window)
    read, most = [], 0
    plain = found._read_group
    monkeypatch.setattr(found, '_read_group', lambda group, columns: read.append(group) or plain(group, columns))
    order = found.epoch_order(np.random.default_rng(0))
    for index in order:
        assert found.read(index)[0] == FILES[index]
        most = max(most, len(found._kept))
    assert sorted(read) == list(range(10))  # of four images each
    each = found._groups[:, 4].max()
    assert most == 1 if window == 1 else most <= max(1, window // found._groups[:, 4].min())
    assert window != 9000 or 1 < window // each < 10  # a window of some of them
    mixed = [len(set(order[i : i + 4] // 4)) for i in range(0, 40, 4)]
    assert max(mixed) == 1 if window == 1 else max(mixed) > 1


def test_a_damaged_parquet_file(tmp_path):
    """Its footer: the file is left out. A row group: its images alone cannot be read."""
    first, second, _ = sorted(write_parquet(tmp_path, FILES).iterdir())
    place = pq.ParquetFile(second).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(second.read_bytes())
    data[place : place + 40] = b'\xff' * 40
    second.write_bytes(data)
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-00000-of-00003.parquet is damaged: .+; `unreadable='skip'`"):
        ShardReader(tmp_path)
    reader = ShardReader(tmp_path, unreadable='skip')
    assert len(reader) == 24 and '1 damaged shard' in reader.found and 'train-00000' in reader.found
    broken = []
    for i in range(24):
        try:
            assert reader[i][0].read() == FILES[16 + i]
        except PixelError as e:
            assert 'row group 1: ' in str(e) and '\n' not in str(e)
            broken.append(reader.filename(i))
    assert broken == [f'train-00001-of-00003.parquet: row {row}' for row in range(4, 8)]


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    write_parquet(tmp_path, FILES[:4])
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(ModuleNotFoundError, match=r'^Parquet files need pyarrow: pip install "timm-extra\[shards\]"$'):
        ShardReader(tmp_path)


def named(path, names, images=FILES[:2], labels=(0, 1)):
    """A Parquet file whose classes have names."""
    features = dict(image={'_type': 'Image'}, label={'_type': 'ClassLabel', 'names': names})
    rows = pa.table(dict(image=[dict(bytes=image, path=None) for image in images], label=list(labels)))
    metadata = {'huggingface': json.dumps(dict(info=dict(features=features)))}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.replace_schema_metadata(metadata), path)
    return path


def refused(reader, message):
    """Check that classes are refused wherever they are asked for, and images are not."""
    for ask in (lambda: reader.class_to_idx, lambda: reader.targets, lambda: reader[0]):
        with pytest.raises(ValueError, match=message) as caught:
            ask()
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'write, message',
    [
        (lambda b: named(b, ['dog', 'cat']), "class 0 is 'dog' in .*b.parquet, 'cat' in .*a.parquet"),
        (lambda b: named(b, ['cat', 'dog', 'fox']), "class 2 is 'fox' in .*b.parquet, None in .*a.parquet"),
        (lambda b: table(b, image=FILES[:2], label=[0, 1]), "class 0 is None in .*b.parquet, 'cat' in .*a.parquet"),
        (
            lambda b: table(b, image=FILES[:2], label=['cat', 'dog']),
            "b.parquet has 'label' of words, .*a.parquet has 'label' of numbers",
        ),
        (lambda b: table(b, image=FILES[:2]), "b.parquet has none, .*a.parquet has 'label' of numbers"),
    ],
)
def test_files_with_other_classes_are_refused(write, message, tmp_path):
    named(tmp_path / 'a.parquet', ['cat', 'dog'])
    write(tmp_path / 'b.parquet')
    refused(ShardReader(tmp_path), message)


def test_a_file_of_nothing_but_null_has_no_other_classes(tmp_path):
    table(tmp_path / 'a.parquet', image=FILES[:2], label=[None, None])
    table(tmp_path / 'b.parquet', image=FILES[:2], label=[1, 0])
    assert ShardReader(tmp_path).targets.tolist() == [-1, -1, 1, 0]


@pytest.mark.parametrize(
    'label, message',
    [
        ([[0, 1], [1]], r"the column 'label' of .*a.parquet holds lists or structs, no class of an image"),
        ([dict(a=1), dict(a=2)], r"the column 'label' of .*a.parquet holds lists or structs, no class of an image"),
        (['15778368000', '3'], "have the class 15778368000 in the column 'label': numbers of classes begin at 0"),
    ],
)
def test_columns_that_are_no_classes_are_refused(label, message, tmp_path):
    reader = ShardReader(table(tmp_path / 'a.parquet', image=FILES[:2], label=label))
    refused(reader, message)
    assert [reader.image(i).read() for i in range(2)] == FILES[:2]


def test_other_columns_have_another_fingerprint(tmp_path):
    table(tmp_path / 'a.parquet', image=FILES[:2], mask=FILES[2:4], label=[0, 1], cls=[1, 0])
    first = ShardReader(tmp_path, input_key='image').fingerprint
    assert ShardReader(tmp_path, input_key='image', target_key='label').fingerprint == first  # which was found
    others = [dict(input_key='mask'), dict(input_key='image', target_key='cls')]
    assert len({first, *(ShardReader(tmp_path, **keys).fingerprint for keys in others)}) == 3
    tar = write_tar(tmp_path / 'a.tar', [('1.png', FILES[0]), ('1.json', b'{"a": 1, "b": 0}')])
    keys = [dict(), dict(input_key='png'), dict(target_key='a'), dict(target_key='b')]
    assert len({ShardReader(tar, **key).fingerprint for key in keys}) == 4


def test_classes_beyond_their_names_are_refused(tmp_path):
    reader = ShardReader(named(tmp_path / 'a.parquet', ['cat', 'dog'], labels=(5, 0)))
    refused(reader, r'the shards in .*a.parquet have the class 5, but names of 2 classes$')
    assert reader.image(0).read() == FILES[0]
    words = ShardReader(named(tmp_path / 'b.parquet', ['cat', 'dog'], labels=('fox', 'cat')))
    refused(words, r"have the class 'fox', which is not among their names of classes$")


def test_columns_without_images_are_refused(tmp_path):
    path = table(tmp_path / 'a.parquet', image=FILES[:2], caption=['a', 'b'], label=[0, 1])
    for key, kind in (('caption', 'string'), ('label', 'int64')):
        with pytest.raises(ValueError, match=f"^the column '{key}' of .*a.parquet holds no images, but {kind}$"):
            ShardReader(path, input_key=key)
    with pytest.raises(ValueError, match=r"the column 'text' of .*b.parquet holds no images, but string"):
        ShardReader(table(tmp_path / 'b.parquet', text=['a']), input_key='text')


@pytest.mark.parametrize('refusing', [False, True])
def test_row_groups_that_pyarrow_cannot_read_at_once_are_read_in_parts(refusing, tmp_path, monkeypatch):
    """Structures of more than 2 GiB, which is known before or found out."""
    rows = [dict(bytes=file, path=None) for file in FILES]
    path = table(tmp_path / 'a.parquet', image=rows, label=[i % 4 for i in range(40)])
    reader, sizes = ShardReader(path), []
    plain = pq.ParquetFile.iter_batches

    def batches(self, *args, **options):
        for batch in plain(self, *args, **options):
            sizes.append(batch.num_rows)
            yield batch

    def refuse(self, *_, **__):
        raise pa.ArrowNotImplementedError('Nested data conversions not implemented for chunked array outputs')

    monkeypatch.setattr(pq.ParquetFile, 'iter_batches', batches)
    if refusing:
        monkeypatch.setattr(pq.ParquetFile, 'read_row_group', refuse)
        assert contents(reader) == FILES and len(sizes) == 40
        return
    monkeypatch.setattr(parquet, 'AT_ONCE', 100)
    monkeypatch.setattr(parquet, 'PART', 4 * len(FILES[0]))
    assert contents(reader) == FILES and labels(reader) == [i % 4 for i in range(40)]
    assert len(sizes) >= 32 and sum(sizes) == 40  # read once


def test_a_row_group_that_does_not_fit_into_memory_is_no_damage(tmp_path, monkeypatch):
    reader = ShardReader(write_parquet(tmp_path, FILES[:8]))

    def fail(*_, **__):
        raise pa.ArrowMemoryError('realloc of size 7 failed')

    monkeypatch.setattr(pq.ParquetFile, 'read_row_group', fail)
    with pytest.raises(MemoryError, match=r'^.*\.parquet: row group 1, 0.0 GiB of images, does not fit into memory: '):
        reader[5]
    with pytest.raises(MemoryError):
        reader.targets  # noqa: B018


def test_a_class_that_is_not_a_number_is_none(tmp_path):
    """Pandas writes what is missing among numbers as NaN."""
    reader = ShardReader(table(tmp_path / 'a.parquet', image=FILES[:4], label=[0.0, float('nan'), 1.0, float('nan')]))
    assert reader.class_to_idx == {'0.0': 0, '1.0': 1}
    assert reader.targets.tolist() == [0, -1, 1, -1] and labels(reader) == [0, None, 1, None]


def test_a_column_whose_name_has_a_dot_has_a_window(tmp_path):
    rows = pa.table({'my.image': FILES, 'my': list(range(40))})
    pq.write_table(rows, tmp_path / 'a.parquet', row_group_size=1)
    images = parquet.Parquets([tmp_path / 'a.parquet'], input_key='my.image', window=1)
    for index in range(40):
        assert images.read(index)[0] == FILES[index] and len(images._kept) == 1


@pytest.mark.parametrize('names', [['a', 'a'], [0, 1], [None, 'b'], 'ab', {'1': 'a', '0': 'b'}])
def test_names_of_classes_that_are_no_distinct_words_are_refused(names, tmp_path):
    reader = ShardReader(named(tmp_path / 'a.parquet', names))
    refused(reader, 'the names of classes of .*a.parquet are no list of distinct words: ')
    assert reader.image(1).read() == FILES[1]


def test_names_of_classes_by_number_are_taken(tmp_path):
    reader = ShardReader(named(tmp_path / 'a.parquet', {'0': 'cat', '1': 'dog'}))
    assert reader.class_to_idx == dict(cat=0, dog=1) and labels(reader) == [0, 1]


def test_columns_of_one_name_are_refused(tmp_path):
    classes, images = pa.array([0, 1]), pa.array(FILES[:2])
    pq.write_table(pa.table([images, classes, classes], names=['image', 'label', 'label']), tmp_path / 'a.parquet')
    reader = ShardReader(tmp_path / 'a.parquet')
    refused(reader, "a.parquet has several columns 'label'")
    assert reader.image(1).read() == FILES[1]
    pq.write_table(pa.table([images, images], names=['image', 'image']), tmp_path / 'b.parquet')
    with pytest.raises(ValueError, match=r"b\.parquet has several columns 'image'"):
        ShardReader(tmp_path / 'b.parquet', input_key='image')
