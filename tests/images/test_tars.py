"""Tars as shards: members, classes, damages, the saved index."""

import gzip
import io
import tarfile
import tracemalloc

import numpy as np
import pytest

from tests.shards import contents, encoded, labels, write_folder, write_tar, write_tars
from timm_extra.images import FolderReader, ShardReader
from timm_extra.images.pixels import PixelError
from timm_extra.images.shards import tars

FILES = encoded(40)


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


def test_tars_have_the_order_of_a_folder_of_the_same_images(tmp_path):
    reader = ShardReader(write_tars(tmp_path / 'shards', FILES))
    folder = FolderReader(write_folder(tmp_path / 'folder', FILES))
    assert contents(reader) == contents(folder)
    order = reader.epoch_order(np.random.default_rng([3, 1]))
    assert (order == np.random.default_rng([3, 1]).permutation(40)).all()


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
