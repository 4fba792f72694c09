"""Images that are read in parts: every file gives the pixels that it holds."""

import sys

import numpy as np
import pytest
import tifffile
import zarr

from timm_extra.images import ArrayTiles, open_tiles

SHAPE = (301, 517, 3)
TIFFS = {
    'tiles': dict(tile=(64, 48), photometric='rgb', compression='zlib', predictor=True),
    'strips': dict(rowsperstrip=7, photometric='rgb'),
    'one strip': dict(photometric='rgb'),
    'planes': dict(tile=(64, 128), photometric='rgb', planarconfig='separate'),
    'big': dict(tile=(64, 64), photometric='rgb', bigtiff=True, byteorder='>'),
    'pyramid': dict(tile=(64, 64), photometric='rgb', subifds=1),
}


def image(dtype=np.uint8, shape=SHAPE):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def read_all(source, tile):
    """The whole image, tile by tile, as a model reads it."""
    out = np.zeros(source.shape, source.read(slice(0, 1), slice(0, 1)).dtype)
    for y in range(0, out.shape[0], tile[0]):
        for x in range(0, out.shape[1], tile[1]):
            rows, columns = slice(y, min(y + tile[0], out.shape[0])), slice(x, min(x + tile[1], out.shape[1]))
            out[rows, columns] = source.read(rows, columns)
    return out


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('options', TIFFS.values(), ids=TIFFS)
def test_tiff(options, dtype, tmp_path):
    pixels, path = image(dtype), tmp_path / 'a.tif'
    options = dict(options)
    given = pixels.transpose(2, 0, 1) if 'planarconfig' in options else pixels
    with tifffile.TiffWriter(
        path, bigtiff=options.pop('bigtiff', False), byteorder=options.pop('byteorder', None)
    ) as f:
        f.write(given, **options)
        if 'subifds' in options:
            f.write(given[::2, ::2], tile=(64, 64), photometric='rgb', subfiletype=1)
    source = open_tiles(path)
    assert source.shape == SHAPE
    for tile in (source.tile, (100, 90), (1, 600)):
        assert np.array_equal(read_all(source, tile), pixels)


def test_ome_tiff_and_grey(tmp_path):
    pixels = image(np.uint16)
    tifffile.imwrite(tmp_path / 'a.ome.tif', pixels.transpose(2, 0, 1), tile=(64, 64), metadata={'axes': 'CYX'})
    assert np.array_equal(read_all(open_tiles(tmp_path / 'a.ome.tif'), (128, 128)), pixels)
    tifffile.imwrite(tmp_path / 'grey.tif', pixels[..., 0], tile=(64, 64))
    grey = open_tiles(tmp_path / 'grey.tif')
    assert grey.shape == (*SHAPE[:2], 1) and np.array_equal(read_all(grey, grey.tile), pixels[..., :1])


def test_tiles_are_whole_tiles_of_the_file(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', image(), tile=(64, 48), photometric='rgb')
    assert open_tiles(tmp_path / 'a.tif').tile == (1024, 1008)
    tifffile.imwrite(tmp_path / 'wide.tif', np.zeros((40, 5000), np.uint8), rowsperstrip=3)
    assert open_tiles(tmp_path / 'wide.tif').tile == (209, 5000)


@pytest.mark.parametrize('compression', ['jpeg', 'lzw', 'webp'])
def test_compressed_tiles(compression, tmp_path):
    rows = np.linspace(0, 255, SHAPE[0])[:, None, None] + np.linspace(0, 60, SHAPE[1])[None, :, None]
    pixels = np.clip(rows + np.array([0, 20, 40]), 0, 255).astype(np.uint8)  # which JPEG keeps nearly as they are
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, pixels, tile=(64, 48), photometric='rgb', compression=compression)
    source = open_tiles(path)
    found = read_all(source, (100, 90))
    assert np.array_equal(found, tifffile.imread(path))
    assert np.abs(found.astype(int) - pixels).max() <= (0 if compression == 'lzw' else 12)


@pytest.mark.parametrize('version', [2, 3])
def test_zarr_and_ome_zarr(version, tmp_path):
    pixels = image()
    array = zarr.create_array(tmp_path / 'a.zarr', shape=SHAPE, chunks=(100, 90, 3), dtype='u1', zarr_format=version)
    array[:] = pixels
    source = open_tiles(tmp_path / 'a.zarr')
    assert source.tile == (1000, 990) and np.array_equal(read_all(source, (100, 90)), pixels)

    group = zarr.open_group(tmp_path / 'ome.zarr', mode='w', zarr_format=version)
    with pytest.raises(ValueError, match='is a group of Zarr arrays: name one of'):
        open_tiles(tmp_path / 'ome.zarr')
    array = group.create_array('full', shape=(1, 3, 1, *SHAPE[:2]), chunks=(1, 1, 1, 64, 64), dtype='u1')
    array[0, :, 0] = pixels.transpose(2, 0, 1)
    about = [dict(axes=[dict(name=axis) for axis in 'tczyx'], datasets=[dict(path='full')])]
    group.attrs.update(dict(multiscales=about) if version == 2 else dict(ome=dict(multiscales=about)))
    source = open_tiles(tmp_path / 'ome.zarr')
    assert source.tile == (1024, 1024) and np.array_equal(read_all(source, (100, 90)), pixels)
    group['full'].resize((2, 3, 1, *SHAPE[:2]))
    with pytest.raises(ValueError, match='has several images'):
        open_tiles(tmp_path / 'ome.zarr')


def test_channels_in_files_of_their_own(tmp_path):
    pixels = image(np.uint16)
    names = [f'c{i}.ome.tif' for i in range(3)]
    data = ''.join(
        f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{i}</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    about = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="517" SizeY="301" SizeC="3" SizeZ="1" '
        f'SizeT="1">{data}</Pixels></Image></OME>'
    )
    for i, name in enumerate(names):
        path = tmp_path / name
        tifffile.imwrite(path, pixels[..., i], tile=(64, 64), description=about.format(i), metadata=None)
    assert np.array_equal(read_all(open_tiles(tmp_path / names[0]), (100, 90)), pixels)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match=r'c0\.ome\.tif is no TIFF file that can be read'):
        open_tiles(tmp_path / names[0])


REFUSED = {
    'inverted': (dict(photometric='miniswhite'), 1, 'has MINISWHITE pixels, not grey or RGB'),
    'palette': (dict(photometric='palette', colormap=np.zeros((3, 256), np.uint16)), 1, 'has PALETTE pixels'),
    'turned': (
        dict(photometric='rgb', extratags=[(274, 3, 1, 6, True)]),
        3,
        'has orientation 6: turn it upright first',
    ),
    'volume': (dict(photometric='rgb', volumetric=True, tile=(16, 32, 32)), 'zyxs', 'has several images'),
    'stack': (dict(photometric='rgb'), 'qyxs', 'has several images'),
}


@pytest.mark.parametrize('options, kind, message', REFUSED.values(), ids=REFUSED)
def test_tiffs_whose_numbers_are_no_pixels_as_they_are(options, kind, message, tmp_path):
    shape = {1: (40, 50), 3: (40, 50, 3), 'zyxs': (8, 64, 64, 3), 'qyxs': (2, 40, 50, 3)}[kind]
    tifffile.imwrite(tmp_path / 'a.tif', np.zeros(shape, np.uint8), metadata=None, **options)
    with pytest.raises(ValueError, match=message):
        open_tiles(tmp_path / 'a.tif')


def test_what_is_stored_in_one_piece(tmp_path, monkeypatch):
    pixels = image()
    tifffile.imwrite(tmp_path / 'raw.tif', pixels, photometric='rgb', rowsperstrip=SHAPE[0], byteorder='>')
    monkeypatch.setattr('timm_extra.images.tiles.AREA', 3000)
    monkeypatch.setattr('timm_extra.images.tiles.SIDE', 100)
    monkeypatch.setattr('timm_extra.images.tiles.LARGEST', SHAPE[0] * SHAPE[1] - 1)
    source = open_tiles(tmp_path / 'raw.tif')
    assert source.tile == (5, 517) and np.array_equal(read_all(source, source.tile), pixels)
    tifffile.imwrite(tmp_path / 'a.tif', pixels, photometric='rgb', rowsperstrip=SHAPE[0], compression='zlib')
    with pytest.raises(ValueError, match='stores 301 × 517 pixels in one compressed piece: write it in tiles'):
        open_tiles(tmp_path / 'a.tif')


def test_arrays_of_other_byte_orders_and_strides():
    pixels = image(np.uint16)
    for array in (pixels.astype('>u2'), np.ascontiguousarray(pixels[::-1])[::-1], np.asfortranarray(pixels)):
        found = ArrayTiles(array).read(slice(7, 8), slice(3, 200))
        assert found.dtype.isnative and found.flags.c_contiguous and found.flags.writeable
        assert np.array_equal(found, pixels[7:8, 3:200]) and all(stride > 0 for stride in found.strides)


class Chunked:
    """An array as HDF5 has them."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.chunks = array, array.shape, chunks

    def __getitem__(self, key):
        return self.array[key]


def test_arrays():
    pixels = image()
    source = ArrayTiles(Chunked(pixels, (300, 2000, 3)))
    assert source.tile == (300, 2000) and np.array_equal(read_all(source, source.tile), pixels)
    assert ArrayTiles(pixels[..., 0]).shape == (*SHAPE[:2], 1)
    with pytest.raises(ValueError, match=r'the array must be .* got \(4,\)'):
        ArrayTiles(np.zeros(4))


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, image(), tile=(64, 64), photometric='rgb')
    held = path.read_bytes()
    path.write_bytes(held[:-1000])
    with pytest.raises(ValueError, match=f'is truncated: it has {len(held) - 1000} bytes'):
        open_tiles(path)
    path.write_bytes(b'no image at all')
    with pytest.raises(ValueError, match='is no TIFF file that can be read'):
        open_tiles(path)
    tifffile.imwrite(path, np.zeros((5, 40, 40), np.uint8), photometric='minisblack', metadata={'axes': 'ZYX'})
    with pytest.raises(ValueError, match=r"has several images: \{'Z': 5\}"):
        open_tiles(path)
    (tmp_path / 'a.npy').write_bytes(b'none')
    with pytest.raises(ValueError, match='is no array that can be read'):
        open_tiles(tmp_path / 'a.npy')
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match='is not read in tiles: TIFF'):
        open_tiles(tmp_path / 'a.jpg')
    with pytest.raises(FileNotFoundError, match='no file'):
        open_tiles(tmp_path / 'b.tif')
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    with pytest.raises(ValueError, match=r'TIFF files need the package tifffile: pip install "timm-extra\[tiles\]"'):
        open_tiles(path)
