"""`.flo` files: what other readers read, and what damaged ones say."""

import struct

import numpy as np
import pytest
import torch
from torchvision.datasets._optical_flow import _read_flo

from timm_extra.flow import known_flow, read_flo, write_flo
from timm_extra.plot import flow_colours


@pytest.mark.parametrize('size', [(1, 1), (5, 7), (1, 13)])
def test_flow_comes_back_as_it_was_and_other_readers_read_it(size, tmp_path):
    flow = 100 * torch.randn(2, *size)
    path = write_flo(flow, tmp_path / 'a.flo')
    assert torch.equal(read_flo(path), flow)
    assert torch.equal(torch.from_numpy(_read_flo(str(path)).copy()), flow)
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_flow_is_written_as_the_format_says(tmp_path):
    flow = torch.zeros(2, 2, 3)
    flow[0, 0, 0], flow[1, 0, 1], flow[0, 0, 2], flow[1, 1, 0] = float('nan'), 1.1e9, -float('inf'), 1e9
    known = torch.tensor([[False, False, False], [True, True, True]])
    assert torch.equal(known_flow(flow), known)
    back = read_flo(write_flo(flow, tmp_path / 'a.flo'))
    assert torch.equal(known_flow(back), known)
    assert (back[:, ~known] == 1e10).all() and torch.equal(back[:, known], flow[:, known])


def header(magic=b'PIEH', width=4, height=2):
    return struct.pack('<4sii', magic, width, height)


@pytest.mark.parametrize(
    'content, said',
    [
        (b'', 'is no .flo file: it has 0 bytes, fewer than the 12 of a header'),
        (header(b'HEIP'), "is no .flo file: it begins with b'HEIP', not b'PIEH'"),
        (header(width=0), 'is no .flo file: its width must be in 1 to 99,999, it is 0'),
        (header(height=-3), 'is no .flo file: its height must be in 1 to 99,999, it is -3'),
        (header(width=2**31 - 1), 'is no .flo file: its width must be in 1 to 99,999, it is 2,147,483,647'),
        (header(width=99_999, height=99_999), 'has 12 bytes, but flow of 99999 × 99999 pixels takes 79,998,400,020'),
        (header() + bytes(63), 'has 75 bytes, but flow of 4 × 2 pixels takes 76'),
        (header() + bytes(65), 'has 77 bytes, but flow of 4 × 2 pixels takes 76'),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(content, said, tmp_path):
    path = tmp_path / 'a.flo'
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_flo(path)
    assert str(caught.value) == f'{path} {said}'


@pytest.mark.parametrize('shape', [(2, 3), (3, 2, 3), (1, 2, 2, 3), (2, 0, 3), (2, 1, 100_000)])
def test_other_shapes_are_refused_before_anything_is_written(shape, tmp_path):
    with pytest.raises(ValueError, match='flow must be'):
        write_flo(torch.zeros(shape), tmp_path / 'a.flo')
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_flo(tmp_path / 'a.flo')
    with pytest.raises(FileNotFoundError, match='no folder at'):
        write_flo(torch.zeros(2, 1, 1), tmp_path / 'none' / 'a.flo')


def test_arrays_are_written_too(tmp_path):
    flow = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    for i, given in enumerate((flow, flow.astype('>f4'), np.asfortranarray(flow), flow[:, ::-1][:, ::-1])):
        assert np.array_equal(read_flo(write_flo(given, tmp_path / f'{i}.flo')), flow)


def test_what_is_no_flow_of_a_pair_is_named(tmp_path):
    for flow, said in (
        ('a.flo', 'flow must be a tensor or a NumPy array, got str'),
        (
            np.zeros((3, 5, 2)),
            'flow must be (2, H, W), got (3, 5, 2): move x and y, which OpenCV has last, to the front',
        ),
        (np.zeros((2, 0, 5)), 'flow must be (2, H, W) of at least one pixel, got (2, 0, 5)'),
    ):
        for function in (lambda flow: write_flo(flow, tmp_path / 'a.flo'), flow_colours):
            with pytest.raises(ValueError) as caught:
                function(flow)
            assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []
