"""Pairs of known motion: the flow is what happened, and has the sign that estimators give it."""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from benchmarks.learning import flow as learning
from benchmarks.learning.flow_pairs import PHOTOS, FlowPairs, Layer, Motion, load_photos, render, warp
from tests.flow.standin import create_standin
from timm_extra.flow import estimate_flow
from timm_extra.flow.video import read_pixels

STILL = dict(shift=0.0, patch_shift=0.0, angle=0.0, scale=0.0, shear=0.0)


@pytest.fixture(scope='module')
def photos():
    """Two photos that scikit-learn ships."""
    (folder,) = importlib.util.find_spec('sklearn').submodule_search_locations
    return [read_pixels(Path(folder) / 'datasets' / 'images' / f'{name}.jpg') for name in ('china', 'flower')]


@pytest.fixture(scope='module')
def smooth():
    """Two smooth images, with mirrors of them too, in which interpolation costs nearly nothing."""
    y, x = torch.meshgrid(torch.pi * torch.arange(200) / 199, torch.pi * torch.arange(300) / 299, indexing='ij')
    waves = [[0.5 + 0.4 * torch.cos(a * x) * torch.cos(b * y) for a in (4, 5, 6)] for b in (3, 4)]
    return [torch.stack(wave) for wave in waves]


def test_the_second_image_warped_by_the_flow_is_the_first_where_it_stays_visible(photos, smooth):
    pairs = FlowPairs(smooth, 12, (48, 64))
    for frames, flow, valid in pairs:
        back = (warp(frames[:, 1], flow) - frames[:, 0]).abs()
        assert back[:, valid].max() < 1 / 255  # what bilinear interpolation of a bicubic one leaves
        assert valid.float().mean() > 0.4
    real = [
        ((warp(f[:, 1], flow) - f[:, 0]).abs()[:, v].mean(), (f[:, 1] - f[:, 0]).abs()[:, v].mean())
        for f, flow, v in FlowPairs(photos, 12, (48, 64), motion=Motion(shift=6.0, patch_shift=9.0))
    ]
    with_flow, without = np.mean(real, axis=0)
    assert with_flow < without / 10


def test_pixels_that_vanish_are_not_valid(smooth):
    """Behind a patch that moves, and out of the image."""
    random = np.random.default_rng(0)
    still = FlowPairs(smooth, 1, (40, 60), motion=Motion(**STILL))
    background, patch = still._layer(random, patch=False), still._layer(random, patch=True)
    background = background._replace(shift=np.array([10.0, 0.0]))
    patch = patch._replace(centre=np.array([30.0, 20.0]), radii=np.array([8.0, 8.0]), shift=np.array([0.0, -6.0]))
    frames, flow, valid = render([background, patch], (40, 60))
    assert flow[:, 20, 30].tolist() == [0, -6] and flow[:, 2, 2].tolist() == [10, 0]
    assert not valid[:, 50:].any()  # these leave the image
    assert not valid[14, 20]  # moves behind where the patch is then
    assert valid[20, 30] and valid[35, 30] and valid[5, 10]
    assert (warp(frames[:, 1], flow) - frames[:, 0]).abs()[:, valid].max() < 1 / 255


def test_whole_pixels_are_moved_exactly(photos):
    random = np.random.default_rng(0)
    layer = FlowPairs(photos, 1, (20, 30), motion=Motion(**STILL))._layer(random, patch=False)
    frames, flow, valid = render([layer._replace(shift=np.array([3.0, -2.0]))], (20, 30))
    assert (flow[0] == 3).all() and (flow[1] == -2).all()
    assert torch.allclose(frames[:, 0, 2:, :-3], frames[:, 1, :-2, 3:], atol=1e-4)  # to the right, and up
    assert valid[2:, :-3].all() and valid.sum() == 18 * 27


def test_pairs_are_the_same_each_time_and_others_with_another_seed(photos):
    first, again, other = (FlowPairs(photos, 5, (16, 16), seed) for seed in (0, 0, 1))
    for index in (3, 0, 4):
        for a, b in zip(first[index], again[index], strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(first[index].flow, other[index].flow)
    assert len(list(first)) == 5
    frames, flow, valid = first[0]
    assert (frames.shape, flow.shape, valid.shape) == ((3, 2, 16, 16), (2, 16, 16), (16, 16))
    assert frames.min() >= 0 and frames.max() <= 1


def test_a_photo_is_learned_from_or_measured_on_not_both(monkeypatch):
    assert not set(PHOTOS['train']) & set(PHOTOS['test'])
    monkeypatch.setitem(PHOTOS, 'test', (('no-such-package', 'no_such_package', 'a.png'),))
    with pytest.raises(ModuleNotFoundError) as caught:
        load_photos('test')
    assert str(caught.value) == 'photos of no-such-package are needed: pip install no-such-package'


def test_missing_estimators_are_one_line_before_the_training(monkeypatch):
    monkeypatch.setattr(learning, 'ESTIMATORS', {'no-such-package': 'no_such_package', 'torch': 'torch'})
    with pytest.raises(ModuleNotFoundError) as caught:
        learning.check_estimators()
    assert str(caught.value) == 'the estimators beside the model need packages: pip install no-such-package'


@pytest.mark.parametrize('name, module', [('TV-L1', 'skimage'), ('ILK', 'skimage'), ('DIS', 'cv2')])
@pytest.mark.parametrize('shift', [(2.0, 0.0), (0.0, -1.5)])
def test_estimators_agree_on_which_way_is_positive(name, module, shift, photos):
    pytest.importorskip(module)
    random = np.random.default_rng(1)
    layer = FlowPairs(photos, 1, (64, 80), motion=Motion(**STILL))._layer(random, patch=False)
    layer = layer._replace(photo=photos[0], origin=np.array([300.0, 200.0]), zoom=1.0, shift=np.array(shift))
    frames, flow, _ = render([layer], (64, 80))
    found = learning.OTHERS[name](frames[:, 0], frames[:, 1])
    assert found.shape == flow.shape
    assert np.abs(np.median(found[:, 12:-12, 12:-12], axis=(1, 2)) - shift).max() < 0.3


def test_a_layer_is_where_its_map_says():
    layer = Layer(
        torch.zeros(3, 4, 4),
        np.zeros(2),
        1.0,
        np.array([5.0, 5.0]),
        np.array([[0.0, -1.0], [1.0, 0.0]]),
        np.array([1.0, 0.0]),
        np.array([2.0, 3.0]),
    )
    points = np.array([[6.0, 5.0], [5.0, 7.5]])
    moved = layer.forward(points)
    assert np.allclose(moved, [[6, 6], [3.5, 5]])  # a quarter to the right about (5, 5), y down, and a pixel further
    assert np.allclose(layer.backward(moved), points)
    assert layer.covers(points).all() and not layer.covers(np.array([7.5, 5.0]))


def test_filters_begin_with_uncorrelated_responses_of_variance_one():
    torch.manual_seed(0)
    inputs = torch.nn.functional.avg_pool2d(3 + torch.randn(4, 6, 40, 40), 3, 1)  # neighbours are alike
    conv = torch.nn.Conv2d(6, 64, 3)
    rest = conv.weight[54:].clone()
    learning.whiten(conv, inputs, floor=0)
    responses = conv(inputs)[:, :54].transpose(0, 1).flatten(1)
    assert responses.mean(1).abs().max() < 1e-3
    assert (responses.cov() - torch.eye(54)).abs().max() < 1e-2
    assert torch.equal(conv.weight[54:], rest)


def test_the_training_goes_through_its_stages_and_the_table_has_what_was_measured(photos, monkeypatch):
    monkeypatch.setattr(learning, 'STAGES', (learning.Stage(0.5, 8, 4, 0.5, 0), learning.Stage(1.0, 16, 2, 1.0, 2)))
    seen = []
    model = learning.Normalised(create_standin())
    model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    done = learning.train(model, photos, 0.01, 0)
    assert done['steps'] == len(seen) and 0.5 < done['cpu_seconds'] / torch.get_num_threads() < 5
    assert set(seen) == {(4, 3, 2, 8, 8), (2, 3, 2, 16, 16)} and seen == sorted(seen, key=lambda shape: shape[-1])
    assert all(part['loss'] > 0 and part['zero'] > 0 for part in done['curve']) and model.model.scale != 1
    pairs = learning.batch([*FlowPairs(photos, 3, (8, 8))])
    right, zero = learning.errors(pairs.flow, pairs), learning.errors(torch.zeros_like(pairs.flow), pairs)
    assert right == dict(visible=0, all=0) and zero['all'] == pytest.approx(
        float(pairs.flow.norm(dim=1).mean()), abs=1e-3
    )
    assert learning.table(dict(end_point_error={'zero flow': dict(visible=1.234, all=2.0)})).splitlines()[-1] == (
        '| zero flow | 1.23 | 2.00 |'
    )


def test_a_run_saves_the_model_and_what_it_measured(photos, monkeypatch, tmp_path):
    small = dict(num_latents=4, latent_dim=8, num_heads=2, block_depth=1, num_bands=2)
    for name, value in dict(MODEL=small, SIZE=(16, 16), NUM_TEST=3, NUM_WHITEN=4, OTHERS={}).items():
        monkeypatch.setattr(learning, name, value)
    monkeypatch.setattr(learning, 'STAGES', (learning.Stage(1.0, 16, 2, 1.0, 1),))
    monkeypatch.setattr(learning, 'load_photos', lambda split: photos)
    result = json.loads(json.dumps(learning.run(argparse.Namespace(minutes=0.01, seed=0, out=tmp_path))))
    assert result['end_point_error'].keys() == {'zero flow', 'perceiver_io_flow, small'}
    assert result['minutes'] == 0.01 and result['stages'][0]['size'] == 16 and result['steps'] > 0
    model = timm.create_model(f'local-dir:{tmp_path}/flow', pretrained=True)
    assert estimate_flow(model, photos[0][:, :9, :7], photos[0][:, 1:10, :7]).shape == (2, 9, 7)
