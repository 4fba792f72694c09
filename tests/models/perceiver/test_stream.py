"""Images that are never in memory: the result is that of the whole image."""

import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from torch.testing import assert_close

from timm_extra.images import ArrayTiles, open_tiles
from timm_extra.models.perceiver import stream_state

SMALL = dict(num_latents=8, latent_dim=32, num_blocks=3, block_depth=1, num_heads=2, num_bands=4, num_classes=5)
MODELS = {
    'io': ('perceiver_io_small', {}),
    'v1': ('perceiver_small', {}),
    'patches': ('perceiver_small', dict(stem='patches', patch_size=(4, 2))),
    'patch_embed': ('naflex_perceiver_io_small', dict(patch_size=4, stem_chs=16)),
    'heads': ('perceiver_small', dict(cross_num_heads=3, cross_head_dim=5)),
    'grey as three': ('perceiver_io_small', dict(in_chans=1, grey_chans=3)),
}
SIZES = [(51, 34), (1, 7), (63, 2), (5, 400)]


def make(name='perceiver_small', dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **options}).to(dtype).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def pixels(model, size, dtype=np.uint8):
    rng = np.random.default_rng(1)
    if model.stem.kind == 'patches':
        size = [-(-s // p) * p for s, p in zip(size, model.get_patch_size(), strict=True)]
    shape = (*size, model.in_chans)
    return rng.random(shape) if dtype == np.float64 else rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def normalised(model, image):
    """(1, C, height, width) as the model takes it."""
    x = torch.from_numpy(image.astype(np.float64)) / {np.dtype('u1'): 255, np.dtype('u2'): 65535}.get(image.dtype, 1)
    mean, std = (torch.tensor(model.pretrained_cfg[k], dtype=torch.float64) for k in ('mean', 'std'))
    if model.in_chans == 1:
        mean, std = mean.mean(), std.mean()
    return ((x - mean) / std).permute(2, 0, 1)[None].to(model.latents.dtype)


class Versioned(ArrayTiles):
    """An array whose version is what it holds."""

    @property
    def version(self):
        return zlib.crc32(self.array.tobytes())


def tiles(image, tile=(16, 8), kind=Versioned):
    source = kind(image)
    source.tile = tile
    return source


@pytest.mark.parametrize('dtype, atol', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name, options', MODELS.values(), ids=MODELS)
def test_tiles_give_what_the_image_gives(name, options, size, dtype, atol):
    model = make(name, dtype, **options)
    image = pixels(model, size)
    with torch.no_grad():
        assert_close(model.forward_stream(tiles(image)), model(normalised(model, image)), atol=atol, rtol=atol)


@pytest.mark.parametrize('name, options', MODELS.values(), ids=MODELS)
def test_gradients_are_those_of_the_image(name, options):
    model = make(name, torch.float64, **options)
    image, parameters = pixels(model, (29, 23)), list(model.parameters())
    model.set_grad_checkpointing()
    expected = torch.autograd.grad(model(normalised(model, image)).square().sum(), parameters)
    found = torch.autograd.grad(model.forward_stream(tiles(image)).square().sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('dtype', [np.uint16, np.float64])
def test_other_ranges_of_pixels(dtype):
    model = make(dtype=torch.float64)
    image = pixels(model, (20, 30), dtype)
    with torch.no_grad():
        assert_close(model.forward_stream(tiles(image)), model(normalised(model, image)), atol=1e-10, rtol=1e-10)
        given = model.forward_stream(tiles(image), mean=(0.5,), std=(0.25, 0.5, 0.5))
    assert not torch.allclose(given, model.forward_stream(tiles(image)))


@pytest.mark.parametrize('cell', [4, 12, 20, 100])
@pytest.mark.parametrize('name, options', MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_attention_of_cells_is_that_of_their_pixels(name, options, cell):
    model = make(name, torch.float64, **options)
    image = pixels(model, (29, 23))
    found = model.stream_attention(tiles(image), cell)
    attended, weights = [], []
    for attend in model.cross_attends:
        attend.attn.register_forward_hook(lambda module, args, out: attended.append((module, args)))
    model(normalised(model, image))
    for module, args in attended:
        weights.append(module.attention_weights(*args)[0])  # (H, M, N)
    expected = torch.stack(weights).unflatten(-1, model.stem(normalised(model, image))[1])
    steps = [cell // patch for patch in model.get_patch_size()]
    rows = [part.sum(3) for part in expected.split(steps[0], 3)]
    cells = torch.stack([torch.stack([p.sum(3) for p in row.split(steps[1], 3)], -1) for row in rows], -2)
    assert_close(found, cells, atol=1e-12, rtol=1e-10)
    assert_close(found.sum((-2, -1)), torch.ones_like(found[..., 0, 0]))


def test_cells_are_whole_patches():
    model = make('naflex_perceiver_io_small', patch_size=4)
    with pytest.raises(ValueError, match=r'`cell` must be a positive multiple of patches of \(4, 4\), got 6'):
        model.stream_attention(tiles(pixels(model, (29, 23))), 6)


class Counted(Versioned):
    """Counts what is read, and may fail or be interrupted."""

    def __init__(self, array):
        super().__init__(array)
        self.reads, self.fails = [], {}

    def read(self, rows, columns):
        self.reads.append((rows.start, columns.start))
        if error := self.fails.get(len(self.reads)):
            raise error
        return super().read(rows, columns)


@pytest.mark.parametrize('at', [1, 2, 9, 17, 22])
@torch.no_grad()
def test_an_interrupted_run_goes_on_where_it_was(at, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_state, 'SAVE_SECONDS', -1.0)
    model = make(num_blocks=2)
    image, state = pixels(model, (60, 40)), tmp_path / 'state'
    whole = tiles(image, kind=Counted)
    expected = model.forward_stream(whole)
    first, second = (tiles(image, kind=Counted) for _ in range(2))
    first.fails[at] = OSError('the disk is gone')
    with pytest.raises(ValueError, match='the disk is gone'):
        model.forward_stream(first, state=state)
    assert torch.equal(model.forward_stream(second, state=state), expected)
    assert len(second.reads) == len(whole.reads) - max(0, at - 1) and not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_state_of_something_else_is_refused_and_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_state, 'SAVE_SECONDS', -1.0)
    model = make()
    image, state = pixels(model, (60, 40)), tmp_path / 'state'
    broken = tiles(image, kind=Counted)
    broken.fails[5] = OSError('gone')
    with pytest.raises(ValueError, match='gone'):
        model.forward_stream(broken, state=state)
    held = state.read_bytes()
    changed = image.copy()
    changed[59, 39] += 1
    others = (
        (model, tiles(changed), {}),
        (make(num_blocks=2), tiles(image), {}),
        (model, tiles(image[:-1]), {}),
        (model, tiles(image), dict(mean=(0.1,))),
    )
    for other, source, options in others:
        with pytest.raises(ValueError, match='is the state of another model, image or preprocessing'):
            other.forward_stream(source, state=state, **options)
    with pytest.raises(ValueError, match='another model, image'), torch.autocast('cpu', torch.bfloat16):
        model.forward_stream(tiles(image), state=state)
    with pytest.raises(ValueError, match='the array has no version, by which a state knows its image'):
        model.forward_stream(tiles(image, kind=ArrayTiles), state=state)
    state.write_bytes(held[:100])
    with pytest.raises(ValueError, match='is no state of a stream'):
        model.forward_stream(tiles(image), state=state)
    assert state.read_bytes() == held[:100]
    with pytest.raises(ValueError, match='a state is saved in inference alone'), torch.enable_grad():
        model.forward_stream(tiles(image), state=tmp_path / 'other')


KILLED = """
import sys, time
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from tests.models.perceiver.test_stream import Counted, make, tiles, stream_state
stream_state.SAVE_SECONDS = 0.05
class Slow(Counted):
    def read(self, rows, columns):
        time.sleep(0.05)
        return super().read(rows, columns)
with torch.no_grad():
    source = tiles(np.load('image.npy'), kind=Slow)
    out = make().forward_stream(source, state='state')
torch.save((out, len(source.reads)), 'out.pt')
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    model = make()
    image = pixels(model, (100, 80))
    np.save(tmp_path / 'image.npy', image)
    command = [sys.executable, '-c', KILLED, str(Path(__file__).parents[3])]
    running = subprocess.Popen(command, cwd=tmp_path)
    while not (tmp_path / 'state').exists():
        assert running.poll() is None, 'ended before it saved anything'
        time.sleep(0.01)
    running.kill()
    running.wait()
    subprocess.run(command, cwd=tmp_path, check=True)
    with torch.no_grad():
        found, reads = torch.load(tmp_path / 'out.pt')
        source = tiles(image, kind=Counted)
        assert torch.equal(found, model.forward_stream(source)) and reads < len(source.reads)
    assert not (tmp_path / 'state').exists()


@torch.no_grad()
def test_what_cannot_be_streamed_is_named():
    model = make()
    image = pixels(model, (60, 40))
    with pytest.raises(ValueError, match='the array has 4 channels, the model takes 3'):
        model.forward_stream(ArrayTiles(np.zeros((9, 9, 4), np.uint8)))
    with pytest.raises(ValueError, match=r"stem='conv' .* takes no"):
        make('perceiver_io_base_conv').forward_stream(tiles(image))
    with pytest.raises(ValueError, match="not to query_type='inputs'"):
        make('perceiver_io_small', query_type='inputs').forward_stream(tiles(image))
    with pytest.raises(ValueError, match='no multiple of patches'):
        make(stem='patches', patch_size=7).forward_stream(tiles(image))
    broken = tiles(image, kind=Counted)
    broken.fails[6] = OSError('input/output error')
    with pytest.raises(
        ValueError, match='the tile of rows 16 to 32, columns 0 to 8 cannot be read: input/output error'
    ):
        model.forward_stream(broken)
    with pytest.raises(ValueError, match=r'pixels are torch\.int64, not uint8'):
        model.forward_stream(tiles(image.astype(np.int64)))
    changed = tiles(image, kind=Counted)
    changed.read = lambda rows, columns: (setattr(changed, 'shape', (61, 40, 3)), image[rows, columns])[1]
    with pytest.raises(ValueError, match=r'was \(60, 40, 3\) and is now \(61, 40, 3\)'):
        model.forward_stream(changed)
    with pytest.raises(ValueError, match='floating-point numbers that are not from 0 to 1'):
        model.forward_stream(tiles(255.0 * image))
    with pytest.raises(ValueError, match='`std` must be positive'):
        model.forward_stream(tiles(image), std=(0.0,))
    with pytest.raises(FileNotFoundError, match='no folder at'):
        model.forward_stream(tiles(image), state='nowhere/state')
    model.cross_attends[0].attn.k.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match='plain linear layers without hooks'):
        model.forward_stream(tiles(image))


@torch.no_grad()
def test_files_that_change_between_passes_are_named(tmp_path):
    model = make()
    image = pixels(model, (60, 40))
    for name, write in (('a.npy', np.save), ('a.tif', tifffile.imwrite)):
        path = tmp_path / name
        write(path, image)
        source = open_tiles(path)

        def read(rows, columns, source=source, path=path, write=write):
            found = type(source).read(source, rows, columns)
            write(path, image[:-1])
            return found

        source.read = read
        with pytest.raises(ValueError, match=f'{name} has changed while it was read'):
            model.forward_stream(source)


@torch.no_grad()
def test_memory_maps_are_read_in_tiles(tmp_path):
    model = make()
    image = pixels(model, (60, 40))
    np.save(tmp_path / 'image.npy', image)
    assert_close(model.forward_stream(open_tiles(tmp_path / 'image.npy')), model(normalised(model, image)))
