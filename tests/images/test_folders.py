"""Which files of a folder are images."""

import os
import subprocess
import sys

import numpy as np
import pytest
import timm
from PIL import ExifTags, Image
from timm.data import create_dataset

from timm_extra import cli, hub
from timm_extra.images import FolderReader, find_images, read_image


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path, format='PNG')
    return path


@pytest.fixture
def photos(tmp_path):
    """Images of many names, links, hidden files and others."""
    root = tmp_path / 'photos'
    for name in ('a.png', 'B.JPG', 'c.jpeg', 'd.webp', 'e.avif', 'f.TIF', 'g.tiff', 'h.bmp', 'i.gif', 'j.ppm', 'k.pgm'):
        picture(root / name)
    picture(root / 'deep' / 'deeper' / 'l.jp2')
    for name in ('.hidden.png', '._a.png', '.thumbnails/a.png'):
        picture(root / name)
    picture(tmp_path / 'elsewhere' / 'm.png')
    (root / 'linked.png').symlink_to(tmp_path / 'elsewhere' / 'm.png')
    (root / 'linked folder').symlink_to(tmp_path / 'elsewhere')
    (root / 'deep' / 'above').symlink_to(root)
    return root


def test_heic_files_are_read_with_their_plugin_the_right_way_up(tmp_path):
    pillow_heif = pytest.importorskip('pillow_heif')
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:8], upright[:, :8] = (255, 0, 0), (0, 0, 255)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6  # a quarter turn to the right shows it upright
    stored = np.ascontiguousarray(np.rot90(upright))
    file = pillow_heif.from_bytes('RGB', (32, 48), stored.tobytes())
    file.save(tmp_path / 'photo.HEIC', quality=-1, chroma=444, exif=tags.tobytes())
    assert [path.name for path in find_images([tmp_path]).files] == ['photo.HEIC']
    read = np.asarray(read_image(tmp_path / 'photo.HEIC')).astype(int)
    assert read.shape == upright.shape and abs(read - upright).max() <= 4


def test_heic_files_need_no_search_to_be_read(tmp_path):
    pytest.importorskip('pillow_heif')
    code = (
        'import sys; from PIL import Image; from pillow_heif import from_pillow; '
        'from timm_extra.images import read_image; '
        "from_pillow(Image.new('RGB', (64, 32), 'red')).save(sys.argv[1]); print(read_image(sys.argv[1]).size)"
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'a.heic')], capture_output=True, text=True)
    assert done.stdout == '(64, 32)\n', done.stderr


SEEN = [
    'B.JPG', 'a.png', 'c.jpeg', 'd.webp', 'deep/deeper/l.jp2', 'e.avif', 'f.TIF', 'g.tiff', 'h.bmp', 'i.gif', 'j.ppm',
    'k.pgm', 'linked folder/m.png', 'linked.png',
]  # fmt: skip


def test_images_of_a_folder(photos):
    found = find_images([photos])
    assert [str(path.relative_to(photos)) for path in found.files] == SEEN
    assert found.left_out == [] and str(found) == ''


def test_what_is_left_out_is_counted(photos):
    (photos / 'notes.txt').write_text('')
    assert str(find_images([photos])) == f'left out: 1, no image by its name, {photos}/notes.txt'
    (photos / 'clip.mov').write_text('')
    (photos / 'gone.png').symlink_to(photos / 'nothing')
    found = find_images([photos, photos / 'notes.txt'])
    assert len(found.files) == len(SEEN) + 1, 'a file that is named is taken as it is'
    assert str(found) == (
        f'left out: 2, no images by their names, the first of which is {photos}/clip.mov; '
        f'1, a broken link, {photos}/gone.png'
    )
    (photos / 'clip.mov').unlink()
    (photos / 'notes.txt').unlink()
    assert str(find_images([photos])) == f'left out: 1, a broken link, {photos}/gone.png'
    (photos / 'gone.png').unlink()
    os.mkfifo(photos / 'pipe.png')  # which would never end
    assert find_images([photos]).left_out == [photos / 'pipe.png']


def test_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no image or folder at'):
        find_images([tmp_path / 'nope'])
    with pytest.raises(ValueError, match=f'no images in {tmp_path}$'):
        find_images([tmp_path])
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(ValueError, match=r'no images in .* \(left out: 1, no image by its name, .*notes.txt\)'):
        find_images([tmp_path])


def test_classes_and_order_are_timms(tmp_path):
    for name in ('b/2.png', 'b/10.png', 'a/x/1.png', 'c/deep/3.png', '4.png'):
        picture(tmp_path / name)
    theirs, ours = create_dataset('', root=str(tmp_path), split='train').reader, FolderReader(tmp_path)
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.samples == theirs.samples
    assert ours.filenames(basename=True) == theirs.filenames(basename=True)
    assert ours.filenames(absolute=True) == theirs.filenames(absolute=True)
    assert ours.filenames() == theirs.filenames()
    numbers = dict(b=0, x=1)
    (tmp_path / 'map.txt').write_text('b\nx\n')
    for given in (numbers, str(tmp_path / 'map.txt')):
        assert [target for _, target in FolderReader(tmp_path, class_map=given).samples] == [1, 0, 0]
    picture(tmp_path / 'b' / '1.webp')
    assert len(FolderReader(tmp_path)) == len(theirs) + 1


def test_the_command_says_what_it_leaves_out(photos, tmp_path, capsys):
    (photos / 'notes.txt').write_text('')
    model = hub.save(timm.create_model('test_ceit', num_classes=3), tmp_path / 'model')
    arguments = ['--model', f'local-dir:{model}', '--topk', '1']
    assert cli.main(['predict', str(photos), *arguments]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 * len(SEEN)
    assert err == f'timm-extra: left out: 1, no image by its name, {photos}/notes.txt\n'
    (tmp_path / 'empty').mkdir()
    for place, words in ((tmp_path / 'empty', 'no images in'), (tmp_path / 'nope', 'no image or folder at')):
        assert cli.main(['predict', str(place), *arguments]) == 1
        out, err = capsys.readouterr()
        assert not out and err.startswith(f'timm-extra: {words}') and len(err.splitlines()) == 1
        pretrain = ['pretrain', 'byol', '--model', 'test_ceit', '--data-dir', str(place), '--epochs', '1']
        assert cli.main([*pretrain, '--output', str(tmp_path / 'out')]) == 1
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1 and str(place) in err
        assert not (tmp_path / 'out').exists()


def test_a_linked_class_has_its_own_name(tmp_path):
    picture(tmp_path / 'z' / '1.png')
    picture(tmp_path / 'b' / '2.png')
    (tmp_path / 'a').symlink_to(tmp_path / 'z')
    theirs, ours = create_dataset('', root=str(tmp_path), split='train').reader, FolderReader(tmp_path)
    assert ours.class_to_idx == theirs.class_to_idx == dict(a=0, b=1, z=2)
    assert ours.samples == theirs.samples
    with pytest.raises(ValueError, match='has the name of a class: q'):
        FolderReader(tmp_path, class_map=dict(q=0))
