"""Estimated flow: images of all kinds as the model sees them, and videos."""

from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_extra  # noqa: F401
from tests.flow.standin import create_standin
from timm_extra.flow import Frame, check_estimates_flow, estimate_flow, estimate_video_flow, open_video


def save(pixels, path, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize('size', [(1, 1), (5, 8), (37, 13)])
def test_frames_of_any_size_are_normalised_as_the_model_says(size):
    first, second = torch.rand(2, 3, *size)
    model = create_standin(10.0).train()
    flow = estimate_flow(model, first, second, device='cpu')
    assert torch.allclose(flow, 10 * torch.stack([2 * first[0] - 1, 2 * second[1] - 1]), atol=1e-5)
    assert flow.dtype == torch.float32 and not model.training


def test_files_arrays_and_tensors_are_the_same_images(photo, tmp_path):
    file = save(photo, tmp_path / 'a.png')
    model = create_standin()
    kinds = (file, str(file), Image.fromarray(photo), photo, torch.from_numpy(photo).permute(2, 0, 1))
    flows = [estimate_flow(model, kind, kinds[-1]) for kind in kinds]
    assert all(torch.equal(flow, flows[0]) for flow in flows)


def test_pixels_are_read_as_everywhere_in_the_package(photo, tmp_path):
    """Orientation, transparency, grey and 16 bits."""
    model, plain = create_standin(), save(photo, tmp_path / 'plain.png')
    upright = estimate_flow(model, plain, plain)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    turned = save(np.ascontiguousarray(np.rot90(photo)), tmp_path / 'turned.png', exif=exif)
    assert torch.equal(estimate_flow(model, turned, plain), upright)
    clear = save(np.concatenate([photo, np.zeros_like(photo[..., :1])], 2), tmp_path / 'clear.png')
    assert (estimate_flow(model, clear, clear) == 1).all()  # on white
    grey = save(photo[..., 0], tmp_path / 'grey.png')
    assert torch.equal(estimate_flow(model, grey, plain), upright)
    deep = save(photo[..., 0].astype(np.uint16) * 257, tmp_path / 'deep.png')
    assert torch.allclose(estimate_flow(model, deep, plain), upright, atol=1e-6)
    fine = save(photo[..., 0].astype(np.uint16) * 257 + 100, tmp_path / 'fine.png')  # more than 8 bits hold
    shift = (estimate_flow(model, fine, plain) - upright)[0]
    assert (shift[photo[..., 0] < 255] > 0.002).all()


def test_what_is_no_pair_of_images_is_named(photo, tmp_path):
    model = create_standin()
    a, b = save(photo, tmp_path / 'a.png'), save(photo[:, :7], tmp_path / 'b.png')
    with pytest.raises(ValueError, match=f'{a} is 8 × 5 and {b} is 7 × 5 pixels: flow needs images of one size'):
        estimate_flow(model, a, b)
    with pytest.raises(ValueError, match='the first image is 8 × 5 and the second image is 7 × 5 pixels'):
        estimate_flow(model, photo, photo[:, :7])
    (tmp_path / 'text.png').write_text('none')
    with pytest.raises(ValueError, match=r'text\.png cannot be read: cannot identify image file'):
        estimate_flow(model, a, tmp_path / 'text.png')
    with pytest.raises(ValueError, match=r'an image must have shape \(3, H, W\), got \(1, 4, 4\)'):
        estimate_flow(model, torch.zeros(1, 4, 4), a)


def test_models_that_estimate_no_flow_are_refused(photo):
    classifier = timm.create_model('test_ceit')
    with pytest.raises(ValueError, match='this CeiT estimates no flow: its inputs are 3×160×160, not 3×2×H×W'):
        estimate_flow(classifier, photo, photo)
    model = create_standin()
    model.forward = lambda x: torch.zeros(1, 10)
    with pytest.raises(ValueError, match=r'the model gives \(1, 10\), not flow of \(1, 2, 5, 8\)'):
        estimate_flow(model, photo, photo)
    with pytest.raises(ValueError, match="no device 'gpu' here"):
        estimate_flow(create_standin(), photo, photo, device='gpu')


def test_videos_give_the_flow_of_each_pair_as_it_is_asked_for(tmp_path):
    model, seen = create_standin(), []
    frames = torch.rand(4, 3, 5, 6)

    def read():
        for number, pixels in enumerate(frames):
            seen.append(number)
            yield Frame(str(number), f'frame {number}', pixels)

    pairs = estimate_video_flow(model, read())
    first = next(pairs)
    assert seen == [0, 1] and (first.first.name, first.second.name) == ('0', '1')
    rest = list(pairs)
    assert [pair.first.name for pair in rest] == ['1', '2']
    for number, pair in enumerate([first, *rest]):
        assert torch.equal(pair.flow, estimate_flow(model, frames[number], frames[number + 1]))


def test_a_video_is_a_file_a_folder_or_images_of_any_kind(photo, tmp_path):
    model = create_standin()
    images = [photo, 255 - photo, photo // 2]
    files = [save(image, tmp_path / f'{i}.png') for i, image in enumerate(images)]
    array = np.stack(images)
    expected = [estimate_flow(model, a, b) for a, b in pairwise(images)]
    kinds = (tmp_path, str(tmp_path), files, images, array, torch.from_numpy(array).permute(0, 3, 1, 2), iter(images))
    frames = [Frame(str(i), str(i), torch.from_numpy(image).permute(2, 0, 1)) for i, image in enumerate(images)]
    for video in (*kinds, frames):
        pairs = list(estimate_video_flow(model, video))
        assert all(torch.equal(pair.flow, flow) for pair, flow in zip(pairs, expected, strict=True))
    with pytest.raises(ValueError, match='frame 0 is 8 × 5 and frame 1 is 7 × 5 pixels'):
        list(estimate_video_flow(model, [photo, photo[:, :7]]))
    for video, said in ((5, 'got int'), (None, 'got NoneType'), (Image.fromarray(photo), 'got Image')):
        with pytest.raises(ValueError, match=f'the video must be a file, a folder or frames, {said}'):
            estimate_video_flow(model, video)
    with pytest.raises(ValueError, match='an image must be a PIL image, an array or a tensor, got NoneType'):
        list(estimate_video_flow(model, [photo, None]))
    with pytest.raises(FileNotFoundError, match=r"no video or folder at 'none\.mp4'"):
        estimate_video_flow(model, 'none.mp4')


@pytest.mark.parametrize(
    'options, said',
    [
        (dict(num_classes=10), 'its num_classes is 10, not 2, x and y of every pixel'),
        (dict(num_classes=0), 'its num_classes is 0, not 2, x and y of every pixel'),
        (dict(query_type='learned'), "it classifies, as its query_type is 'learned'"),
    ],
)
def test_models_of_two_frames_that_give_something_else_are_refused(options, said):
    small = dict(num_latents=4, latent_dim=16, num_heads=2, block_depth=1)
    model = timm.create_model('perceiver_io_flow', **small, **options)
    with pytest.raises(ValueError) as caught:
        check_estimates_flow(model)
    assert str(caught.value) == f'this PerceiverIO estimates no flow: {said}'
    check_estimates_flow(timm.create_model('perceiver_io_flow', **small))
    with pytest.raises(ValueError, match='the model must be a timm model, got str'):
        check_estimates_flow('perceiver_io_flow')


@pytest.mark.parametrize('count, said', [(1, 'has one frame, flow needs two'), (0, 'the video has no frame, flow')])
def test_fewer_than_two_frames_are_an_error(count, said, tmp_path):
    frames = [Frame('a', 'a', torch.zeros(3, 2, 2))] * count
    with pytest.raises(ValueError, match=said):
        list(estimate_video_flow(create_standin(), frames))


def test_a_folder_with_one_image_is_named(photo, tmp_path):
    save(photo, tmp_path / 'a.png')
    with pytest.raises(ValueError, match=f'{tmp_path} has one frame, flow needs two'):
        list(estimate_video_flow(create_standin(), open_video(tmp_path)))


def test_half_precision_models_get_frames_of_their_precision(photo):
    model = create_standin(2.0)
    exact = estimate_flow(model, photo, photo)
    half = estimate_flow(model.bfloat16(), photo, photo)
    assert half.dtype == torch.float32 and torch.allclose(half, exact, atol=0.02)


def test_a_size_that_learned_positions_have_not_is_refused_in_one_line():
    small = dict(num_latents=4, latent_dim=16, num_heads=2, block_depth=1, pos_embed='learned', pos_dim=8, img_size=8)
    model = timm.create_model('perceiver_io_flow', **small)
    assert estimate_flow(model, *torch.rand(2, 3, 8, 8)).shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r'Input gives a grid of \[8, 9\], learned positions are for \[8, 8\]'):
        estimate_flow(model, *torch.rand(2, 3, 8, 9))


def test_a_compiled_model_is_taken():
    model = create_standin()
    first, second = torch.rand(2, 3, 4, 5)
    compiled = torch.compile(model, backend='eager')
    assert torch.equal(estimate_flow(compiled, first, second), estimate_flow(model, first, second))
