"""Shards: what is found in them, in which order, and what is damaged."""

import gzip
import io
import json
import pickle
import sys
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.shards import WRITERS, encoded, write_folder, write_parquet, write_tar, write_tars
from timm_extra.images import FolderReader, ShardReader, find_shards, holds_shards
from timm_extra.images.pixels import PixelError
from timm_extra.images.shards import has_split, parquet, tars

FILES = encoded(40)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def contents(reader):
    return [reader[i][0].read() for i in range(len(reader))]


def labels(reader):
    return [reader[i][1] for i in range(len(reader))]


@pytest.mark.parametrize('kind', WRITERS)
def test_every_image_is_found_as_it_is_stored(kind, tmp_path):
    reader = ShardReader(WRITERS[kind](tmp_path / 'shards', FILES))
    assert len(reader) == 40 and contents(reader) == FILES and reader.found == ''
    assert labels(reader) == reader.targets.tolist() == [i % 4 for i in range(40)]
    assert list(reader.class_to_idx) == (list('0123') if kind == 'tar' else list('abcd'))
    name = 'train-00001.tar: 000017.png' if kind == 'tar' else 'train-00001-of-00003.parquet: row 1'
    assert reader.filename(17) == name and reader.filename(17, absolute=True) == f'{tmp_path}/shards/{name}'
    assert str(reader[17][0]) == name
    copy = pickle.loads(pickle.dumps(reader))  # as for the processes of a data loader
    assert contents(copy) == FILES


def test_tars_are_read_as_webdataset_has_them(tmp_path):
    a, b, c, d, e = FILES[:5]
    members = [
        ('./x/1.JPG', a), ('./x/1.cls', b'7\n'), ('./x/1.txt', b'words'),
        ('./x/2.seg.png', b'mask'), ('./x/2.webp', b), ('./x/2.json', b'{"label": 3}'),
        ('./x/3.cls', b'1'),  # without an image
        ('./x/._4.png', b'hidden'), ('./x/.png', b'hidden'),
        ('./x/4.png', c), ('./x/4.jpg', d), ('./y/4.png', e),
    ]  # fmt: skip
    write_tar(tmp_path / 'a.tar', members)
    reader = ShardReader(tmp_path)
    assert contents(reader) == [a, b, c, e] and labels(reader) == [7, None, None, None]
    assert reader.found == ('left out: 1 key of members without an image, 1 further image of a key that has one')
    assert contents(ShardReader(tmp_path, input_key='png')) == [c, e]
    by_key = ShardReader(tmp_path, target_key='label')
    assert labels(by_key) == [None, 3, None, None] and list(by_key.class_to_idx) == ['0', '1', '2', '3']


def test_classes_by_name(tmp_path):
    """In `.cls` members, else by the folder that an image lies in, as in a tar of a folder of classes."""
    named = [('1.png', FILES[0]), ('1.cls', b'dog'), ('2.png', FILES[1]), ('2.cls', b'cat')]
    reader = ShardReader(write_tar(tmp_path / 'named.tar', named))
    assert reader.class_to_idx == dict(cat=0, dog=1) and labels(reader) == [1, 0]
    folders = [('data/10/a.png', FILES[0]), ('data/9/a.png', FILES[1])]
    reader = ShardReader(write_tar(tmp_path / 'folders.tar', folders))
    assert reader.class_to_idx == {'9': 0, '10': 1} and labels(reader) == [1, 0]
    mapped = ShardReader(tmp_path / 'folders.tar', class_map={'10': 4, '9': 5})
    assert labels(mapped) == [4, 5]
    with pytest.raises(ValueError, match="have the class '9', which is not in the class map"):
        ShardReader(tmp_path / 'folders.tar', class_map={'10': 0}).targets  # noqa: B018
    bare = ShardReader(write_tar(tmp_path / 'bare.tar', [('1.png', FILES[0])]))
    assert labels(bare) == [None]
    with pytest.raises(ValueError, match=r'the shards in .*bare.tar have no classes'):
        bare.class_to_idx  # noqa: B018


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


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


@pytest.mark.parametrize(
    'names, split, expected',
    [
        (['0.tar', '1.tar', '10.tar', '2.tar'], 'train', ['0.tar', '1.tar', '2.tar', '10.tar']),
        (['train/a.tar', 'validation/b.tar'], 'train', ['train/a.tar']),
        (['train/a.tar', 'val/b.tar'], 'validation', ['val/b.tar']),
        (['data/train-0-of-1.parquet', 'data/test-0-of-1.parquet'], 'train', ['data/train-0-of-1.parquet']),
        (['in-train-0.tar', 'in-val-0.tar', 'in-val-1.tar'], 'validation', ['in-val-0.tar', 'in-val-1.tar']),
        (['trainer.tar'], 'validation', ['trainer.tar']),  # a word of its own, no split
        (['0.tar', '0.parquet', '0_stats.json'], 'train', ['0.tar']),  # as img2dataset writes them
    ],
)
def test_which_files_are_the_shards_of_a_split(names, split, expected, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_shards(tmp_path, split)] == expected
    assert holds_shards(tmp_path, split)


def test_which_folders_hold_no_shards(tmp_path):
    for name in ('a.tar', 'b.parquet', 'c.tar.gz', '.d.tar'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r'c.tar.gz is compressed: no image in it can be read by itself; unpack it'):
        find_shards(tmp_path, 'train')
    (tmp_path / 'c.tar.gz').unlink()
    with pytest.raises(ValueError, match=r'a.tar and .*b.parquet are shards of two kinds'):
        find_shards(tmp_path, 'train')
    (tmp_path / 'cats').mkdir()
    (tmp_path / 'cats' / '1.jpg').touch()  # the images that the tar was made of
    assert not holds_shards(tmp_path, 'train')
    assert not holds_shards(tmp_path / 'cats', 'train') and holds_shards(tmp_path / 'a.tar', 'train')
    with pytest.raises(ValueError, match=r'has no shards, .tar or .parquet files'):
        find_shards(tmp_path / 'cats', 'train')
    with pytest.raises(FileNotFoundError, match='no shard or folder at'):
        find_shards(tmp_path / 'dogs', 'train')
    (tmp_path / 'named').mkdir()
    (tmp_path / 'named' / 'train-0.tar').touch()
    assert has_split(tmp_path / 'named', 'train') and not has_split(tmp_path / 'named', 'validation')
    with pytest.raises(ValueError, match='named has no shards of validation, but of train'):
        find_shards(tmp_path / 'named', 'validation')


@pytest.mark.parametrize('kind', WRITERS)
def test_orders_have_every_image_once(kind, tmp_path):
    reader = ShardReader(WRITERS[kind](tmp_path / 'shards', FILES))
    orders = [reader.epoch_order(np.random.default_rng([0, epoch])).tolist() for epoch in (0, 1)]
    assert all(sorted(order) == list(range(40)) for order in orders) and orders[0] != orders[1]
    assert orders[0] == reader.epoch_order(np.random.default_rng([0, 0])).tolist()


def test_tars_have_the_order_of_a_folder_of_the_same_images(tmp_path):
    reader = ShardReader(write_tars(tmp_path / 'shards', FILES))
    folder = FolderReader(write_folder(tmp_path / 'folder', FILES))
    assert contents(reader) == contents(folder)
    order = reader.epoch_order(np.random.default_rng([3, 1]))
    assert (order == np.random.default_rng([3, 1]).permutation(40)).all()


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


def test_a_cut_tar_keeps_the_images_before_the_cut(tmp_path):
    whole = write_tars(tmp_path / 'whole', FILES[:4]) / 'train-00000.tar'
    data, members = whole.read_bytes(), tars.index_tar(whole, frozenset(['.png']))
    end = int(members.offsets[-1])
    cut = tmp_path / 'cut' / 'train-00000.tar'
    cut.parent.mkdir()
    for size in [*range(0, end + 2048, 331), *range(512, end + 2048, 512)]:
        cut.write_bytes(data[:size])
        found = tars.index_tar(cut, frozenset(['.png']))
        expected = int((members.offsets + members.sizes <= size).sum())
        assert len(found.names) in (expected, expected - 1), size  # the last may stand before the cut, unread
        assert found.damage, size
        for i in range(len(found.names)):
            assert data[found.offsets[i] : found.offsets[i] + found.sizes[i]] == FILES[i]
    with pytest.raises(ValueError, match=r"train-00000.tar is damaged: .+; `unreadable='skip'` takes what can be read"):
        ShardReader(cut.parent)
    reader = ShardReader(cut.parent, unreadable='skip')
    assert contents(reader) == FILES[: len(reader)] and len(reader) >= 3
    assert reader.found.startswith('1 damaged shard, of which only what can be read is taken: ')


def test_a_broken_header_is_no_end_of_a_tar(tmp_path):
    """As tarfile takes it, which would lose all that comes after it."""
    path = write_tars(tmp_path, FILES[:4]) / 'train-00000.tar'
    data = bytearray(path.read_bytes())
    place = int(tars.index_tar(path, frozenset(['.png'])).offsets[2]) - 512
    data[place : place + 100] = b'x' * 100
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f'train-00000.tar is damaged: neither a member nor .* at byte {place:,}; '):
        ShardReader(tmp_path)
    assert contents(ShardReader(tmp_path, unreadable='skip')) == FILES[:2]


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


def test_nothing_that_can_be_read_is_one_line(tmp_path):
    (tmp_path / 'a.tar').write_bytes(b'')
    with pytest.raises(ValueError, match=r'^no images in the shards in .*: .*a.tar is damaged: empty file$'):
        ShardReader(tmp_path, unreadable='skip')
    write_tar(tmp_path / 'a.tar', [('a.txt', b'words')])
    with pytest.raises(ValueError, match=r'^no images in the shards in .*$'):
        ShardReader(tmp_path)


def test_a_tar_that_shrinks_is_noticed(tmp_path):
    path = write_tars(tmp_path, FILES[:4]) / 'train-00000.tar'
    reader = ShardReader(tmp_path)
    path.write_bytes(path.read_bytes()[: int(reader.shards.offsets[3]) + 10])
    with pytest.raises(PixelError, match=rf'10 of {len(FILES[3])} bytes are there'):
        reader[3]
    assert reader[2][0].read() == FILES[2]


def test_an_index_that_takes_long_is_saved(tmp_path, monkeypatch, cache):
    folder = write_tars(tmp_path / 'shards', FILES)
    write_tar(folder / 'train-none.tar', [('1.cls', b'1')])
    assert ShardReader(folder).found == 'left out: 1 key of members without an image'
    assert not cache.exists()  # it was fast
    monkeypatch.setattr(tars, 'WORTH_SAVING', 0.0)
    first = ShardReader(folder)
    (saved,) = (cache / 'timm-extra' / 'shards').iterdir()
    read = []
    plain = tars.index_tar
    monkeypatch.setattr(tars, 'index_tar', lambda path, *rest: read.append(path.name) or plain(path, *rest))
    again = ShardReader(folder)
    assert read == [] and contents(again) == FILES and labels(again) == labels(first)
    assert again.fingerprint == first.fingerprint and again.found == first.found != ''
    write_tar(folder / 'train-00001.tar', [('1.png', FILES[0])])
    assert len(ShardReader(folder)) == 25 and read == ['train-00001.tar']
    saved.write_bytes(b'broken')
    assert len(ShardReader(folder)) == 25 and read[1:] == [*(f'train-0000{i}.tar' for i in range(3)), 'train-none.tar']
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'train-00000.tar'))  # which nothing can be written to
    assert len(ShardReader(folder)) == 25


def test_other_shards_have_another_fingerprint(tmp_path):
    first = ShardReader(write_tars(tmp_path / 'a', FILES)).fingerprint
    assert ShardReader(write_tars(tmp_path / 'b', FILES)).fingerprint == first
    assert ShardReader(write_tars(tmp_path / 'c', FILES[::-1][:39])).fingerprint != first


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    write_parquet(tmp_path, FILES[:4])
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(ModuleNotFoundError, match=r'^Parquet files need pyarrow: pip install "timm-extra\[shards\]"$'):
        ShardReader(tmp_path)


def test_images_are_files_for_pil(tmp_path):
    reader = ShardReader(write_tars(tmp_path, FILES[:1]))
    assert np.array_equal(np.asarray(Image.open(reader[0][0])), np.asarray(Image.open(io.BytesIO(FILES[0]))))


def test_splits_with_numbers_right_after_them_do_not_mix(tmp_path):
    for name in ('train0000.tar', 'train0001.tar', 'val0000.tar'):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(tmp_path, 'train')] == ['train0000.tar', 'train0001.tar']
    assert [path.name for path in find_shards(tmp_path, 'validation')] == ['val0000.tar']
    assert has_split(tmp_path, 'validation')


def test_images_of_a_split_beside_shards_of_another_are_refused(tmp_path):
    write_tars(tmp_path / 'train', FILES[:4])
    (tmp_path / 'validation' / 'cats').mkdir(parents=True)
    assert not has_split(tmp_path, 'validation')
    (tmp_path / 'validation' / 'cats' / '1.png').write_bytes(FILES[4])
    with pytest.raises(ValueError, match=r'^.*validation has images, but no shards as the rest of .*$'):
        has_split(tmp_path, 'validation')


def test_tars_one_after_the_other_in_a_file_are_all_read(tmp_path):
    first, second, _ = (path.read_bytes() for path in sorted(write_tars(tmp_path / 'tars', FILES[:40]).iterdir()))
    count = len(ShardReader(tmp_path / 'tars' / 'train-00000.tar'))
    (tmp_path / 'both.tar').write_bytes(first + bytes(3 << 20) + second)
    reader = ShardReader(tmp_path / 'both.tar')
    assert contents(reader) == FILES[: len(reader)] and len(reader) > count and not reader.found
    assert labels(reader) == [i % 4 for i in range(len(reader))]
    broken = bytearray(second)
    broken[:100] = b'x' * 100
    (tmp_path / 'both.tar').write_bytes(first + broken)
    with pytest.raises(ValueError, match=f'both.tar is damaged: neither a member nor .* at byte {len(first):,}; '):
        ShardReader(tmp_path / 'both.tar')


def test_a_header_of_zeros_is_no_end_of_a_tar(tmp_path):
    path = write_tars(tmp_path, FILES[:4]) / 'train-00000.tar'
    data = bytearray(path.read_bytes())
    place = int(tars.index_tar(path, frozenset(['.png'])).offsets[2]) - 512
    data[place : place + 512] = bytes(512)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f'train-00000.tar is damaged: neither a member nor .* at byte {place:,}; '):
        ShardReader(tmp_path)
    assert contents(ShardReader(tmp_path, unreadable='skip')) == FILES[:2]


@pytest.mark.parametrize('ending, target_key', [('cls', None), ('json', 'label')])
def test_an_image_whose_class_is_cut_is_left_out(ending, target_key, tmp_path):
    """A part of a class would be another class."""
    path = tmp_path / 'a.tar'
    words = [b'10', b'12'] if ending == 'cls' else [b'{"label": 10}', b'{"label": 12}']
    write_tar(path, [(f'{i}.{end}', c) for i in (0, 1) for end, c in (('png', FILES[i]), (ending, words[i]))])
    data = path.read_bytes()
    place = data.rindex(f'1.{ending}'.encode())
    for end in (place, place + 100, place + 512, place + 513):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r'a.tar is damaged'):
            ShardReader(path, target_key=target_key)
        reader = ShardReader(path, target_key=target_key, unreadable='skip')
        assert contents(reader) == FILES[:1] and reader.class_to_idx.keys() >= {'10'}, end
        assert '12' not in reader.class_to_idx and 'left out' not in reader.found


def test_links_in_tars_are_followed_or_counted(tmp_path):
    path = write_tar(tmp_path / 'a.tar', [('1.png', FILES[0]), ('1.cls', b'0')])
    with tarfile.open(path, 'a') as tar:
        for name, kind, to in (
            ('2.png', tarfile.LNKTYPE, '1.png'),
            ('3.png', tarfile.LNKTYPE, 'none.png'),
            ('4.png', tarfile.SYMTYPE, '/1.png'),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, to
            tar.addfile(member)
    reader = ShardReader(path)
    assert contents(reader) == [FILES[0]] * 2 and [reader.filename(i) for i in (0, 1)] == [
        'a.tar: 1.png',
        'a.tar: 2.png',
    ]
    assert reader.found == 'left out: 2 links that lead to no image in their tars'


@pytest.mark.parametrize('format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sparse_images_are_counted(format, tmp_path):
    """Their bytes in the tar are not those of the file."""
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=format) as tar:
        for i in (0, 1):
            member = tarfile.TarInfo(f'{i}.png')
            member.size = len(FILES[i])
            if i and format == tarfile.GNU_FORMAT:
                member.type = tarfile.GNUTYPE_SPARSE
            elif i:
                sparse = {'GNU.sparse.map': f'0,{member.size}', 'GNU.sparse.size': f'{member.size}'}
                member.pax_headers = {**sparse, 'GNU.sparse.numblocks': '1'}
            tar.addfile(member, io.BytesIO(FILES[i]))
    reader = ShardReader(path)
    assert contents(reader) == FILES[:1] and reader.found == 'left out: 1 image that is stored as a sparse file'


def test_names_with_a_second_dot_and_hidden_folders(tmp_path):
    """The key ends at the first dot, as WebDataset has it; folders of git are no classes."""
    members = [
        ('a/photo.1.jpg', FILES[0]),
        ('.git/1.png', FILES[1]),
        ('b/./.x/1.png', FILES[2]),
        ('./b/1.png', FILES[3]),
    ]
    reader = ShardReader(write_tar(tmp_path / 'a.tar', members))
    assert contents(reader) == FILES[3:4] and reader.class_to_idx == dict(b=0)
    assert reader.found.startswith('left out: 1 key whose images have a second dot in their names (`input_key` takes 1')
    assert contents(ShardReader(tmp_path / 'a.tar', input_key='1.jpg;png')) == [FILES[0], FILES[3]]
    with pytest.raises(
        ValueError, match=r'^no images in the shards in .*b.tar: left out: 1 key whose images have a se'
    ):
        ShardReader(write_tar(tmp_path / 'b.tar', members[:1]))


def test_classes_that_are_no_utf8_stay_apart(tmp_path):
    words = [b'caf\xe9', b'caf\xe8']
    named = [(f'{i}.{end}', c) for i in (0, 1) for end, c in (('png', FILES[i]), ('cls', words[i]))]
    reader = ShardReader(write_tar(tmp_path / 'a.tar', named))
    assert reader.class_to_idx == {'caf\\xe8': 0, 'caf\\xe9': 1} and labels(reader) == [1, 0]
    folders = [('caf\udce9/1.png', FILES[0]), ('caf\udce8/1.png', FILES[1])]
    assert labels(ShardReader(write_tar(tmp_path / 'b.tar', folders))) == [1, 0]


def test_classes_that_are_no_text_are_counted(tmp_path):
    named = [('0.png', FILES[0]), ('0.json', b'{"label": "\\ud83d"}'), ('1.png', FILES[1]), ('1.json', b'{"label": 1}')]
    reader = ShardReader(write_tar(tmp_path / 'a.tar', named), target_key='label')
    assert contents(reader) == FILES[1:2]
    assert reader.found == 'left out: 1 image whose class is no text or over 4,096 bytes'


def test_a_long_class_or_name_takes_no_memory_of_the_others(tmp_path):
    members = [(f'{i}.{end}', c) for i in range(400) for end, c in (('png', FILES[0]), ('cls', b'1'))]
    members[3] = ('1.cls', b'x' * 1_000_000)
    members[4:6] = [('n' * 100_000 + '.png', FILES[1]), ('n' * 100_000 + '.cls', b'c' * 4096)]
    path = write_tar(tmp_path / 'a.tar', members)
    tracemalloc.start()
    reader = ShardReader(path)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    assert len(reader) == 399 and reader.class_to_idx == {'1': 0, 'c' * 4096: 1}
    assert reader.found == 'left out: 1 image whose class is no text or over 4,096 bytes'


def test_a_tar_that_is_compressed_is_named_so(tmp_path):
    (tmp_path / 'a.tar').write_bytes(gzip.compress(b'tar'))
    with pytest.raises(ValueError, match=r'a.tar is damaged: it is compressed with gzip: unpack it'):
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


def test_numbers_below_zero_are_no_classes(tmp_path):
    reader = ShardReader(table(tmp_path / 'a.parquet', image=FILES[:3], label=[-2, 1, 0]))
    assert reader.targets.tolist() == [-1, 1, 0] and labels(reader) == [None, 1, 0]
    pairs = zip(FILES, (b'-2', b'1', b'0'), strict=False)
    members = [
        (f'{i}.{end}', part) for i, pair in enumerate(pairs) for end, part in zip(('png', 'cls'), pair, strict=True)
    ]
    tar = ShardReader(write_tar(tmp_path / 'a.tar', members))
    assert tar.targets.tolist() == [-1, 1, 0] and labels(tar) == [None, 1, 0]


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


@pytest.mark.parametrize('kind', WRITERS)
def test_several_damaged_shards_are_all_named_up_to_three(kind, tmp_path):
    paths = sorted(WRITERS[kind](tmp_path, FILES, per_shard=4).iterdir())
    for number, path in enumerate(paths[:5], 1):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        rest = f' and {number - 3} more' if number > 3 else ''
        with pytest.raises(ValueError, match="; `unreadable='skip'` takes what can be read of") as caught:
            ShardReader(tmp_path)
        message = str(caught.value)
        assert [f'{path} is damaged: ' in message for path in paths] == [i < min(number, 3) for i in range(10)]
        assert f'{rest} are damaged; ' in message if rest else ' more' not in message
        assert message.endswith(' them' if number > 1 else ' it')
        found = ShardReader(tmp_path, unreadable='skip').found
        assert found.startswith(f'{number} damaged shard') and found.endswith(f'){rest}')
        assert [f'{path} (' in found for path in paths] == [i < min(number, 3) for i in range(10)]
