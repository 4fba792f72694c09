"""The pixels of files."""

import os
import struct

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image
from timm.data import ImageDataset, create_transform, resolve_data_config

from timm_extra.images import FolderReader, as_array, as_tensor, decode, preprocessing
from timm_extra.pretrain.data import Samples

H, W = 4, 6
GREY = (np.arange(H * W) * 10).reshape(H, W).astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)  # no two corners alike
ALPHA = np.where(np.arange(W) < 3, 255, 51).astype(np.uint8)[None].repeat(H, 0)  # the right half is a fifth opaque
ON_WHITE = np.where(ALPHA[..., None] == 255, COLOURS, np.round(COLOURS * 0.2 + 255 * 0.8)).astype(np.uint8)
# as seen, by the EXIF tag of the picture that is stored
TURNED = {
    1: COLOURS,
    2: COLOURS[:, ::-1],
    3: COLOURS[::-1, ::-1],
    4: COLOURS[::-1],
    5: COLOURS.transpose(1, 0, 2),
    6: COLOURS.transpose(1, 0, 2)[:, ::-1],
    7: COLOURS.transpose(1, 0, 2)[::-1, ::-1],
    8: COLOURS.transpose(1, 0, 2)[::-1],
}
DEEP = np.linspace(0, 65535, H * W).round().reshape(H, W).astype(np.uint16)
SMOOTH = np.full((H, W, 3), (200, 90, 30), np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def three(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, 2)


def palette(transparency=None):
    image = Image.fromarray(GREY // 10 % 4, 'P')
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    if transparency is not None:
        image.info['transparency'] = transparency
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)[GREY // 10 % 4]
SEEN_THROUGH = np.where((GREY // 10 % 4 == 2)[..., None], 255, PALETTE).astype(np.uint8)
KEYED = np.where((COLOURS[0, 0] == COLOURS).all(-1)[..., None], 255, COLOURS).astype(np.uint8)
RGB, RGBA = Image.fromarray(COLOURS), Image.fromarray(np.dstack([COLOURS, ALPHA]))
FRAMES = dict(save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
GREY_FRAMES = dict(save_all=True, append_images=[Image.fromarray(255 - GREY)])
UNIT = np.float32(65535)

# name: picture, options of saving, pixels as seen, largest difference in 255ths
FILES = {
    **{f'orientation-{i}.png': (RGB, dict(exif=exif(i)), seen, 0) for i, seen in TURNED.items()},
    'turned.webp': (RGB, dict(exif=exif(6), lossless=True), TURNED[6], 0),
    'turned.tiff': (RGB, dict(exif=exif(8)), TURNED[8], 0),
    'turned.jpg': (Image.fromarray(COLOURS[:, ::-1]), dict(exif=exif(2), quality=100, subsampling=0), COLOURS, 3),
    'turned-grey.tif': (Image.fromarray(GREY), dict(exif=exif(6)), three(TURNED[6][..., 0]), 0),
    'turned-deep.tif': (Image.fromarray(DEEP), dict(exif=exif(5)), three(DEEP.T / UNIT), 0),
    'turned-cmyk.tif': (RGB.convert('CMYK'), dict(exif=exif(8)), TURNED[8], 0),
    'deep-key.png': (Image.fromarray(DEEP), dict(transparency=0), three(np.where(DEEP, DEEP / UNIT, 1)), 0),
    'broken-exif.png': (RGB, dict(exif=b'Exif\x00\x00nonsense'), COLOURS, 0),
    'deep.png': (Image.fromarray(DEEP), {}, three(DEEP / UNIT), 0),
    'deep.tif': (Image.fromarray(DEEP), {}, three(DEEP / UNIT), 0),
    'deep.pgm': (Image.fromarray(DEEP.astype(np.int32)), {}, three(DEEP / UNIT), 0),
    'int32.tif': (Image.fromarray(DEEP.astype(np.int32)), {}, three(DEEP / UNIT), 0),
    'dark.png': (Image.fromarray(DEEP // 100), {}, three(DEEP // 100 / UNIT), 0),  # not stretched
    'float.tif': (Image.fromarray(DEEP / UNIT), {}, three(DEEP / UNIT), 0),
    'alpha.png': (RGBA, {}, ON_WHITE, 1),
    'alpha.webp': (RGBA, dict(lossless=True, exact=True), ON_WHITE, 1),
    'alpha.tif': (RGBA, {}, ON_WHITE, 1),
    'grey-alpha.png': (
        Image.merge('LA', (Image.fromarray(GREY), Image.fromarray(ALPHA))),
        {},
        three(np.where(ALPHA == 255, GREY, np.round(GREY * 0.2 + 204))).astype(np.uint8),
        1,
    ),
    'palette.png': (palette(), {}, PALETTE, 0),
    'palette-alpha.png': (palette(), dict(transparency=2), SEEN_THROUGH, 0),
    'palette-alpha.gif': (palette(), dict(transparency=2), SEEN_THROUGH, 0),
    'key.png': (RGB, dict(transparency=tuple(COLOURS[0, 0].tolist())), KEYED, 0),
    'one-bit.png': (Image.fromarray(GREY > 90), {}, three((GREY > 90) * np.uint8(255)), 0),
    'one-bit.tif': (Image.fromarray(GREY > 90), {}, three((GREY > 90) * np.uint8(255)), 0),
    'cmyk.tif': (RGB.convert('CMYK'), {}, COLOURS, 0),
    'grey.bmp': (Image.fromarray(GREY), {}, three(GREY), 0),
    'animation.gif': (Image.fromarray(GREY), GREY_FRAMES, three(GREY), 0),
    'animation.webp': (RGB, dict(FRAMES, lossless=True), COLOURS, 0),
    'animation.png': (RGB, FRAMES, COLOURS, 0),
    'pages.tif': (RGB, FRAMES, COLOURS, 0),
    'plain.ppm': (RGB, {}, COLOURS, 0),
    'plain.jp2': (RGB, dict(irreversible=False), COLOURS, 0),
    'smooth.avif': (Image.fromarray(SMOOTH), dict(quality=100), SMOOTH, 3),
    'CAPITALS.PNG': (RGB, {}, COLOURS, 0),
}  # fmt: skip


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    for name, (image, options, *_) in FILES.items():
        image.save(folder / name, **options)
    return folder


def in_unit_range(pixels):
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


@pytest.mark.parametrize('name', FILES)
def test_pixels_of_files(files, name):
    *_, seen, difference = FILES[name]
    found, expected = as_tensor(decode(files / name), 3), in_unit_range(seen)
    assert found.dtype == (torch.uint8 if seen.dtype == np.uint8 else torch.float32)
    found = found.float() / 255 if found.dtype == torch.uint8 else found
    torch.testing.assert_close(found, expected, rtol=0, atol=difference / 255 + 1e-6)
    if (seen == seen[..., :1]).all():
        grey = as_tensor(decode(files / name), 1)
        grey = grey.float() / 255 if grey.dtype == torch.uint8 else grey
        torch.testing.assert_close(grey, expected[:1], rtol=0, atol=difference / 255 + 1e-6)


@pytest.mark.parametrize('name', FILES)
def test_every_reader_has_these_pixels(files, name):
    """Prediction and plots round to eight bits before they resize, pretraining does not."""
    seen = in_unit_range(FILES[name][2])
    size = tuple(seen.shape)
    config = dict(input_size=size, mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0, interpolation='bilinear')
    model = timm.create_model('test_resnet', pretrained_cfg_overlay=config)
    expected = as_tensor(decode(files / name), 3)
    expected = expected.float() / 255 if expected.dtype == torch.uint8 else expected
    torch.testing.assert_close(preprocessing(model, size).read(files / name), expected, rtol=0, atol=0.5 / 255 + 1e-6)
    dataset = ImageDataset(files, reader=FolderReader(files))
    index = dataset.filenames(basename=True).index(name)
    image = Samples(dataset, 3)[(0, index)].image
    torch.testing.assert_close(image.float() / 255 if image.dtype == torch.uint8 else image, expected)


@pytest.mark.parametrize(
    'pixels, words',
    [
        (DEEP.astype(np.int32) * 2, 'mode I must be in 0 to 65,535, they are in 0 to 131,070'),
        (DEEP.astype(np.int32) - 1, 'they are in -1 to 65,534'),
        (DEEP.astype(np.float32), 'mode F must be in 0 to 1, they are in 0.0 to 65,535.0'),
        (np.full((H, W), np.nan, np.float32), 'they are in nan to nan'),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, pixels, words):
    Image.fromarray(pixels).save(tmp_path / 'odd.tif')
    model = timm.create_model('test_resnet')
    with pytest.raises(ValueError, match=f'odd.tif cannot be read: pixels of .*{words}'):
        preprocessing(model).read(tmp_path / 'odd.tif')
    dataset = ImageDataset(tmp_path, reader=FolderReader(tmp_path))
    with pytest.raises(ValueError, match=f'image 0 .*odd.tif.* cannot be read: .*{words}'):
        Samples(dataset, 3)[(0, 0)]
    assert Samples(dataset, 3, unreadable='skip')[(0, 0)].image is None


@pytest.mark.parametrize('name', ['orientation-6.png', 'deep.png', 'palette-alpha.png', 'plain.ppm'])
def test_as_timm_reads_them(files, name):
    size = (3, 4, 6)
    model = timm.create_model('test_resnet')
    config = dict(input_size=size, crop_pct=1.0, interpolation='bilinear')
    model.pretrained_cfg.update(config)
    reader = ImageDataset(files)
    reader.transform = create_transform(**resolve_data_config(config, model=model))
    paths = [os.path.basename(path) for path in reader.filenames(absolute=True)]
    expected = (
        reader[paths.index(name)][0] if name in paths else reader.transform(Image.open(files / name).convert('RGB'))
    )
    assert torch.equal(preprocessing(model, as_timm=True).read(files / name), expected)


def test_four_channels_keep_their_transparency():
    assert np.array_equal(as_array(RGBA, 4), np.asarray(RGBA))
    with pytest.raises(ValueError, match='mode RGB has no 2 channels'):
        as_array(RGB, 2)


def test_exif_that_cannot_be_written_back_turns_all_the_same(tmp_path):
    """A number that is stored as a word, as some cameras do: Pillow reads it, and fails when it writes it."""
    tags = exif(6)
    tags[ExifTags.Base.Model] = 'wide'
    stored = tags.tobytes().replace(struct.pack('>HH', ExifTags.Base.Model, 2), struct.pack('>HH', 256, 2))
    assert stored != tags.tobytes()
    RGB.save(tmp_path / 'odd.png', exif=stored)
    image = decode(tmp_path / 'odd.png')
    assert image.size == (H, W) and np.array_equal(as_array(image, 3), TURNED[6])
    assert np.array_equal(as_array(decode(image), 3), TURNED[6]), 'once'


@pytest.mark.parametrize('value', [-0.1, 1.1, float('nan')])
def test_arrays_and_tensors_out_of_range_are_refused(value):
    pixels = np.full((H, W, 3), 0.5, np.float32)
    pixels[0, 0] = value
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        with pytest.raises(ValueError, match='must be in 0 to 1, it is in'):
            as_tensor(image, 3)
        with pytest.raises(ValueError, match=r'image 0 cannot be read: .* must be in 0 to 1'):
            Samples([image], 3)[(0, 0)]


@pytest.mark.parametrize('name', ['smooth.avif', 'plain.ppm', 'deep.pgm', 'plain.jp2', 'turned.tiff', 'alpha.png'])
def test_damaged_files_are_unreadable_and_nothing_else(files, name, tmp_path):
    """Fifty of each, cut or with other bytes: decoders raise errors of many types."""
    whole, random = (files / name).read_bytes(), np.random.default_rng(0)
    model = timm.create_model('test_resnet')
    refused = 0
    for i in range(50):
        damaged = bytearray(whole[: random.integers(len(whole))] if i % 2 else whole)
        for at in random.integers(len(damaged) or 1, size=4):
            damaged[at : at + 1] = bytes([random.integers(256)])
        path = tmp_path / f'{i}{os.path.splitext(name)[1]}'
        path.write_bytes(damaged)
        try:
            preprocessing(model).read(path)
        except ValueError as e:
            refused += 1
            assert str(e).startswith(f'{path} cannot be read: ')
    assert refused > 10


def test_a_mode_that_pil_does_not_convert_is_named_with_its_file(tmp_path):
    Image.new('LAB', (4, 4)).save(tmp_path / 'lab.tif')
    for as_timm in (False, True):
        with pytest.raises(ValueError, match=r'lab\.tif cannot be read: conversion from LAB'):
            preprocessing(timm.create_model('test_resnet', in_chans=1), as_timm=as_timm).read(tmp_path / 'lab.tif')
