"""Colours of optical flow, and the files of a pair."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import flow_to_image

from tests.flow.standin import create_standin
from timm_extra.flow import open_frames, read_flo
from timm_extra.plot import check_flow_files, flow_colours, plot_flow, write_flow_image


def around(count=720, length=1.0):
    """Flow (2, 1, count) in all directions."""
    angles = torch.linspace(0, 2 * torch.pi, count + 1)[:-1]
    return length * torch.stack([angles.cos(), angles.sin()])[:, None]


def differ(a, b):
    return int((a.int() - b.int()).abs().max())


def test_colours_are_those_of_torchvision():
    torch.manual_seed(0)
    for flow in (around(), 30 * torch.randn(2, 37, 53), torch.zeros(2, 3, 3), 1e-3 * torch.randn(2, 9, 9)):
        assert differ(flow_colours(flow), flow_to_image(flow)) <= 1
    shorter = torch.cat([around(length=r) for r in torch.linspace(0, 1, 50).tolist()], 1)
    assert differ(flow_colours(shorter), flow_to_image(shorter)) <= 1


@pytest.mark.parametrize(
    'motion, colour', [((1, 0), (255, 0, 0)), ((-1, 0), (0, 209, 255)), ((0, 1), (255, 229, 0)), ((0, 0), (255,) * 3)]
)
def test_directions_have_the_colours_of_the_field(motion, colour):
    flow = torch.tensor(motion, dtype=torch.float32).view(2, 1, 1)
    assert differ(flow_colours(flow, 1.0), torch.tensor(colour).view(3, 1, 1)) <= 1


def test_a_fixed_maximum_makes_pictures_comparable():
    flow = around(length=2.0)
    half = flow_colours(flow, max_flow=4.0)
    white = torch.full_like(half, 255)
    full = flow_colours(flow, max_flow=2.0)
    assert differ(2 * (white.int() - half.int()), white.int() - full.int()) <= 2
    assert differ(full, flow_colours(flow)) <= 1
    beyond = flow_colours(flow, max_flow=1.0)
    assert differ(beyond, (0.75 * full.double()).floor()) <= 1  # as the reference has it, darker by a quarter


def test_unknown_flow_is_black_and_sets_no_maximum():
    flow = around(8)
    known = flow_colours(flow)
    for value in (float('nan'), float('inf'), -2e9):
        damaged = flow.clone()
        damaged[1, 0, 3] = value
        colours = flow_colours(damaged)
        assert (colours[:, 0, 3] == 0).all()
        rest = torch.arange(8) != 3
        assert torch.equal(colours[:, :, rest], known[:, :, rest])
    assert (flow_colours(torch.full((2, 2, 2), float('nan'))) == 0).all()


@pytest.mark.parametrize('max_flow', [0, -1.0, float('nan'), float('inf')])
def test_maxima_that_are_none_are_refused(max_flow):
    with pytest.raises(ValueError, match=f'`max_flow` must be positive and finite, got {max_flow}'):
        flow_colours(around(), max_flow)
    with pytest.raises(ValueError, match=r'flow must be \(2, H, W\), got \(1, 2, 3, 3\)'):
        flow_colours(torch.zeros(1, 2, 3, 3))


def test_the_png_has_these_pixels_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    path = write_flow_image(around(), tmp_path / 'a.png', 3.0)
    written = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    assert torch.equal(written, flow_colours(around(), 3.0)) and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def frames(tmp_path):
    """Files of three frames."""
    files = [tmp_path / f'{name}.png' for name in 'abc']
    for number, file in enumerate(files):
        Image.fromarray(np.full((4, 6, 3), 100 * number, dtype=np.uint8)).save(file)
    return files


def test_every_pair_is_written_as_it_is_estimated(frames, tmp_path):
    out = tmp_path / 'new' / 'out'
    pairs = plot_flow(create_standin(3.0), open_frames([tmp_path]), out)
    first = next(pairs)
    assert sorted(file.name for file in out.iterdir()) == ['a.flo', 'a.png']
    (second,) = pairs
    assert sorted(file.name for file in out.iterdir()) == ['a.flo', 'a.png', 'b.flo', 'b.png']
    for pair, (x, y) in ((first, (-3, 3 * (200 / 255 - 1))), (second, (3 * (200 / 255 - 1), 3 * (400 / 255 - 1)))):
        flow = read_flo(pair.flo)
        assert flow.shape == (2, 4, 6) and flow[:, 0, 0].tolist() == pytest.approx([x, y], abs=1e-5)
        assert pair.mean == pytest.approx(np.hypot(x, y), rel=1e-5) and pair.longest == pytest.approx(pair.mean)
        assert differ(torch.from_numpy(np.array(Image.open(pair.png))).permute(2, 0, 1), flow_colours(flow)) == 0
    assert (second.first, second.second) == tuple(map(str, frames[1:]))


def test_files_that_are_there_are_refused_before_anything_is_computed(frames, tmp_path):
    model = create_standin()
    model.forward = None
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'b.png').write_text('mine')
    with pytest.raises(FileExistsError, match=r'b\.png exists: name another file, or replace it with --force'):
        plot_flow(model, open_frames([tmp_path]), out)
    with pytest.raises(NotADirectoryError, match=r'a\.png is a file, not a folder to write to'):
        plot_flow(model, open_frames(frames[:2]), frames[0])
    assert len(list(plot_flow(create_standin(), open_frames([tmp_path]), out, force=True))) == 2
    assert Image.open(out / 'b.png').size == (6, 4)


def test_a_pair_whose_last_frame_has_a_file_is_written_beside_it(frames, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'b.png').write_text('mine')
    list(plot_flow(create_standin(), open_frames(frames[:2]), tmp_path / 'out'))
    assert (tmp_path / 'out' / 'b.png').read_text() == 'mine' and (tmp_path / 'out' / 'a.flo').exists()


def test_of_a_video_file_no_frame_of_it_may_be_there(tmp_path):
    Image.new('L', (4, 4)).save(tmp_path / 'clip.gif', save_all=True, append_images=[Image.new('L', (4, 4), 99)])
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'clip-notes.txt').touch()
    video = open_frames([tmp_path / 'clip.gif'])
    assert [pair.flo for pair in plot_flow(create_standin(), video, out)] == [str(out / 'clip-00000.flo')]
    with pytest.raises(FileExistsError, match=r'clip-00000\.flo exists'):
        plot_flow(create_standin(), video, out)


@pytest.mark.parametrize('name, said', [('a', 'no extension'), ('a.xyz', "the extension '.xyz'"), ('a.flo', "'.flo'")])
def test_names_of_no_kind_of_image_are_refused(name, said, tmp_path):
    with pytest.raises(ValueError, match=rf'{name} has .*{said}, which says no kind of image: name it \.png'):
        write_flow_image(around(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert Image.open(write_flow_image(around().numpy(), tmp_path / 'a.JPG')).size == (720, 1)


def test_a_folder_of_frames_is_named_by_its_path(frames, tmp_path):
    found = plot_flow(create_standin(), str(tmp_path), tmp_path / 'out')
    assert [pair.first for pair in found] == list(map(str, frames[:2]))
    with pytest.raises(ValueError, match='the video must be what open_video gives, got list'):
        plot_flow(create_standin(), frames, tmp_path / 'out')


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_computed(frames, tmp_path, monkeypatch):
    (tmp_path / 'fixed').mkdir(mode=0o500)
    monkeypatch.setattr(os, 'access', lambda path, mode: path.stat().st_mode & 0o200 != 0)  # who runs tests may be root
    for folder in (tmp_path / 'fixed', tmp_path / 'fixed' / 'out'):
        with pytest.raises(PermissionError, match='fixed cannot be written to'):
            check_flow_files(open_frames(frames[:2]), folder)
