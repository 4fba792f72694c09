"""Frames of video files and of folders."""

import struct
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.samples import clip, clip_file
from timm_extra.flow import check_frames, open_frames, open_video, video


def write_video(path, frames, codec='mpeg4'):
    """Write frames (H, W, 3) of bytes."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = 'yuv420p', 10_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format='rgb24')))
        container.mux(stream.encode())
    return path


def corner(brightness=255):
    """A black frame of 32 × 16 pixels with a bright corner at the top right."""
    frame = np.zeros((16, 32, 3), dtype=np.uint8)
    frame[:8, 24:] = brightness
    return frame


def test_a_real_clip_is_read_frame_by_frame():
    video = open_video(clip_file())
    frames = iter(video)
    first, second = next(frames), next(frames)
    assert video.total == 250 and first.pixels.shape == (3, 272, 640)
    assert (first.name, second.name) == ('bikes-00000', 'bikes-00001')
    assert second.source == f'frame 1 of {clip_file()}'
    small = torch.nn.functional.interpolate(first.pixels[None], (64, 64), mode='area')[0]
    assert (small - clip(1, 64)[:, 0]).abs().mean() < 0.02
    again = next(iter(video))
    assert torch.equal(again.pixels, first.pixels)


def test_pixels_are_those_that_were_written(tmp_path):
    path = write_video(tmp_path / 'a.mp4', [corner(255), corner(100), corner(0)])
    frames = list(open_video(path))
    assert len(frames) == 3
    for frame, brightness in zip(frames, (255, 100, 0), strict=True):
        assert (frame.pixels - torch.from_numpy(corner(brightness)).permute(2, 0, 1) / 255).abs().max() < 0.12


def test_videos_of_phones_are_turned_upright(tmp_path):
    """As MP4 states it: a matrix in the header of the track."""
    one, zero = struct.pack('>i', 1 << 16), bytes(4)
    matrix = one + zero * 3 + one + zero * 3 + struct.pack('>i', 1 << 30)
    clockwise = zero + one + zero + struct.pack('>i', -1 << 16) + zero * 4 + struct.pack('>i', 1 << 30)
    content = write_video(tmp_path / 'a.mp4', [corner()] * 2).read_bytes()
    track = content.index(b'tkhd')
    place = content.index(matrix, track)
    (tmp_path / 'b.mp4').write_bytes(content[:place] + clockwise + content[place + len(matrix) :])
    turned = next(iter(open_video(tmp_path / 'b.mp4'))).pixels
    assert turned.shape == (3, 32, 16)
    expected = torch.from_numpy(corner()).rot90(-1).permute(2, 0, 1) / 255  # bright at the bottom right
    assert expected[0, -1, -1] == 1 and (turned - expected).abs().max() < 0.12


def test_animations_are_videos(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), 80 * i, dtype=np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    assert [round(float(frame.pixels.mean()), 1) for frame in open_video(tmp_path / 'a.gif')] == [0.0, 0.3, 0.6]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    names = ['frame10.png', 'frame9.PNG', 'frame2.jpg', 'frame1.png']
    for name in names:
        Image.fromarray(np.full((4, 4), int(name[5:].split('.')[0]), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / 'notes.txt').touch()
    (tmp_path / 'more').mkdir()
    Image.new('L', (4, 4)).save(tmp_path / 'more' / 'frame3.png')
    video = open_video(tmp_path)
    assert video.total == 4
    assert [frame.name for frame in video] == ['frame1', 'frame2', 'frame9', 'frame10']
    assert [round(float(frame.pixels.mean() * 255)) for frame in video] == [1, 2, 9, 10]


def test_two_images_are_frames(tmp_path):
    for name in ('b.png', 'a.png'):
        Image.new('L', (4, 4)).save(tmp_path / name)
    paths = [tmp_path / 'b.png', tmp_path / 'a.png']
    assert [frame.source for frame in open_frames(paths)] == list(map(str, paths))
    assert open_frames([tmp_path]).total == 2


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / 'text.mp4').write_text('no video at all')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'below' / 'more').mkdir(parents=True)
    (tmp_path / 'two').mkdir()
    Image.new('L', (4, 4)).save(tmp_path / 'below' / 'more' / 'a.png')
    for name in ('a.png', 'a.jpg'):
        Image.new('L', (4, 4)).save(tmp_path / 'two' / name)
    two = tmp_path / 'two'
    for paths, said in (
        (['none.mp4'], f"no video or folder at '{tmp_path}/none.mp4'"),
        (['text.mp4'], f'{tmp_path}/text.mp4 cannot be read: Invalid data found when processing input'),
        (['empty'], f'no images in {tmp_path}/empty'),
        (['below'], f'no images in {tmp_path}/below itself, only in its folders'),
        (['two'], f'{two}/a.jpg and {two}/a.png would be one frame, as they have the same name'),
        (['two/a.png', 'none.png'], f"no image at '{tmp_path}/none.png'"),
        (['two/a.png'] * 3, 'give two images, or one video or folder of frames, got 3 files'),
    ):
        with pytest.raises((ValueError, OSError)) as caught:
            open_frames([tmp_path / path for path in paths])
        assert str(caught.value) == said


def test_a_video_that_is_cut_off_is_named(tmp_path):
    path = write_video(tmp_path / 'a.mp4', [corner()] * 9)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=f'{path} cannot be read: '):
        list(open_video(path))


def test_missing_pyav_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / 'a.mp4').touch()
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_video(tmp_path / 'a.mp4')
    assert str(caught.value) == 'videos need PyAV: pip install "timm-extra[video]"'


def test_frames_are_checked_without_reading_them_all(tmp_path, monkeypatch):
    """By their headers; where these differ the images have the last word, as one may be turned."""
    pixels = np.zeros((4, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # by a quarter
    Image.fromarray(pixels).save(tmp_path / '1.png')
    Image.fromarray(pixels).save(tmp_path / '2.png')
    Image.fromarray(np.rot90(pixels)).save(tmp_path / '3.png', exif=exif)
    check_frames(open_video(tmp_path))
    Image.fromarray(pixels).save(tmp_path / '4.png', exif=exif)
    with pytest.raises(
        ValueError, match=r'3\.png is 6 × 4 and .*4\.png is 4 × 6 pixels: flow needs images of one size'
    ):
        check_frames(open_video(tmp_path))
    (tmp_path / '4.png').write_text('none')
    with pytest.raises(ValueError, match=r'4\.png cannot be read: cannot identify image file'):
        check_frames(open_video(tmp_path))
    for name in ('3.png', '4.png'):
        (tmp_path / name).unlink()
    monkeypatch.setattr(video, 'read_pixels', None)
    check_frames(open_video(tmp_path))


def test_a_video_file_of_one_frame_is_named(tmp_path):
    path = write_video(tmp_path / 'one frame.mp4', [corner()])
    with pytest.raises(ValueError, match=f'{path} has one frame, flow needs two'):
        check_frames(open_video(path))
    check_frames(open_frames(str(write_video(tmp_path / 'two.mp4', [corner()] * 2))))
