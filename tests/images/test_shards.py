"""Shards of both kinds: which files, orders, fingerprints, damages."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.shards import WRITERS, contents, encoded, labels, table, write_tar, write_tars
from timm_extra.images import ShardReader, find_shards, holds_shards
from timm_extra.images.shards import has_split

FILES = encoded(40)


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


def test_nothing_that_can_be_read_is_one_line(tmp_path):
    (tmp_path / 'a.tar').write_bytes(b'')
    with pytest.raises(ValueError, match=r'^no images in the shards in .*: .*a.tar is damaged: empty file$'):
        ShardReader(tmp_path, unreadable='skip')
    write_tar(tmp_path / 'a.tar', [('a.txt', b'words')])
    with pytest.raises(ValueError, match=r'^no images in the shards in .*$'):
        ShardReader(tmp_path)


def test_other_shards_have_another_fingerprint(tmp_path):
    first = ShardReader(write_tars(tmp_path / 'a', FILES)).fingerprint
    assert ShardReader(write_tars(tmp_path / 'b', FILES)).fingerprint == first
    assert ShardReader(write_tars(tmp_path / 'c', FILES[::-1][:39])).fingerprint != first


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


def test_numbers_below_zero_are_no_classes(tmp_path):
    reader = ShardReader(table(tmp_path / 'a.parquet', image=FILES[:3], label=[-2, 1, 0]))
    assert reader.targets.tolist() == [-1, 1, 0] and labels(reader) == [None, 1, 0]
    pairs = zip(FILES, (b'-2', b'1', b'0'), strict=False)
    members = [
        (f'{i}.{end}', part) for i, pair in enumerate(pairs) for end, part in zip(('png', 'cls'), pair, strict=True)
    ]
    tar = ShardReader(write_tar(tmp_path / 'a.tar', members))
    assert tar.targets.tolist() == [-1, 1, 0] and labels(tar) == [None, 1, 0]


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


@pytest.mark.parametrize('kind', WRITERS)
def test_indices_below_zero_count_from_the_end(kind, tmp_path):
    reader = ShardReader(WRITERS[kind](tmp_path / 'shards', FILES))
    for index in (-1, -5, -40):
        assert reader[index][0].read() == reader.image(index).read() == FILES[index]
        assert reader[index][1] == (40 + index) % 4 and reader.filename(index) == reader.filename(40 + index)
    for index in (40, -41):
        with pytest.raises(IndexError, match=f'there are 40 images, got the index {index}'):
            reader[index]
