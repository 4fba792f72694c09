"""Dense probes on models whose maps are known."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

import timm_extra  # noqa: F401
from timm_extra.pretrain.dense_probe import LinearSegmenter, correspondence, linear_segmentation, scores
from timm_extra.pretrain.located import LocatedView
from timm_extra.pretrain.views import RandomView, Recipe

PLAIN = Recipe(scale=(0.3, 1.0), jitter=0.0, grey=0.0, blur=0.0)


class Patches(nn.Module):
    """Means of patches of 4 × 4 as features, or the same everywhere."""

    def __init__(self, fixed=False):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.fixed = fixed

    def forward_features(self, x):
        maps = nn.functional.avg_pool2d(x, 4) * self.scale
        return torch.ones_like(maps) if self.fixed else maps

    def forward_head(self, x, pre_logits=False):
        return x.mean((2, 3))

    def forward_intermediates(self, x, indices, norm, output_fmt, intermediates_only, stop_early):
        assert not self.training
        return [self.forward_features(x)]


def striped(n, seed=0):
    """Images whose classes are what a channel's brightness says, in blocks; the top row has no class."""
    labels = torch.randint(0, 3, (n, 4, 4), generator=torch.Generator().manual_seed(seed))
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = torch.stack([labels == k for k in range(3)], 1).float()
    labels[:, 0] = 255
    return TensorDataset(images, labels)


def test_a_linear_map_of_the_classes_is_found():
    found = linear_segmentation(Patches(), striped(24), striped(12, 1), 3, batch_size=5)
    assert found.pixel_accuracy > 85 and found.mean_iou > 75  # bilinear resizing blurs the borders of blocks
    again = linear_segmentation(Patches(), striped(24), striped(12, 1), 3, batch_size=5)
    assert again == found
    parts = linear_segmentation(Patches(), striped(24), striped(12, 1), 3, batch_size=24)
    assert parts.pixel_accuracy == pytest.approx(found.pixel_accuracy, abs=0.5)
    constant = linear_segmentation(Patches(fixed=True), striped(24), striped(12, 1), 3)
    assert constant.pixel_accuracy < 45


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32])
def test_classes_are_of_any_integer_dtype(dtype):
    data = [(image, labels.to(dtype)) for image, labels in striped(6)]
    assert linear_segmentation(Patches(), data, data, 3) == linear_segmentation(Patches(), striped(6), striped(6), 3)


def test_images_of_uint8_are_scaled():
    """The maps saturate: standardising them does not undo a scale."""

    class Saturating(Patches):
        def forward_features(self, x):
            return super().forward_features(x).tanh()

    images, labels = (torch.stack(part) for part in zip(*striped(6), strict=True))
    noisy = (255 * (0.5 * images + 0.5 * torch.rand(images.shape))).to(torch.uint8)
    found, scaled, not_scaled = (
        linear_segmentation(Saturating(), *2 * [TensorDataset(x, labels)], 3)
        for x in (noisy, noisy.float() / 255, noisy.float())
    )
    assert found == scaled != not_scaled


def test_data_that_cannot_be_are_refused_before_the_model_runs():
    class Unused(Patches):
        def forward_features(self, x):
            raise AssertionError('it ran')

    image, labels = striped(1)[0]
    good = [(image, labels)]
    for item, message in (
        ((image, labels.float()), r'classes must be integers of shape \(H, W\), got torch.float32 of shape \(16, 16\)'),
        ((image, labels[None]), r'classes must be integers of shape \(H, W\), got torch.int64 of shape \(1, 16, 16\)'),
        ((image.long(), labels), r'images must be floating-point or uint8, .* got torch.int64 of shape \(3, 16, 16\)'),
        ((image, None), 'must be tensors or arrays, got Tensor and NoneType'),
        ((image, 'cat'), r'classes must be integers of shape \(H, W\), got'),
        (image, 'must be an image and its classes, got Tensor'),
    ):
        for sets in (([item], good), (good, [item])):
            with pytest.raises(ValueError, match=message):
                linear_segmentation(Unused(), *sets, 3)
    for sets, name in (([], good), 'training'), ((good, []), 'test'):
        with pytest.raises(ValueError, match=f'^there are no {name} images$'):
            linear_segmentation(Unused(), *sets, 3)


def test_features_that_are_not_finite_are_refused():
    bad = striped(5)
    bad.tensors[0][3, 0, 5, 5] = math.nan
    for sets, name in ((bad, striped(5)), 'training'), ((striped(5), bad), 'test'):
        with pytest.raises(ValueError, match=f'1 of . {name} images have features not finite, first image 3'):
            linear_segmentation(Patches(), *sets, 3, batch_size=2)
    net = Patches()
    nn.init.constant_(net.scale, math.nan)
    view = RandomView(PLAIN, (3, 32, 32))
    with pytest.raises(ValueError, match='6 of 6 cropped images have features not finite, first image 0'):
        correspondence(net, positions(), (view, view))


def test_one_pixel_has_a_spread_of_0():
    data = TensorDataset(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    assert linear_segmentation(Patches(), data, data, 2).pixel_accuracy == 100


def test_a_model_stays_in_its_mode_and_gets_no_gradient():
    net = timm.create_model('test_resnet', num_classes=0).train()
    net.bn1.eval()
    modes = [m.training for m in net.modules()]
    data = TensorDataset(torch.rand(4, 3, 64, 64), torch.randint(0, 2, (4, 64, 64)))
    linear_segmentation(net, data, data, 2, steps=3, feature_index=2)
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match=r'classes must be 0 to 0, or 255 for none, got 0 to 1'):
        linear_segmentation(net, data, data, 1)
    assert [m.training for m in net.modules()] == modes


def test_scores_are_those_of_their_definition():
    counts = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])  # no pixel is of the third class
    found = scores(counts)
    assert found.pixel_accuracy == 100 * 9 / 12
    assert found.iou[:2] == pytest.approx((100 * 6 / 9, 100 * 3 / 6)) and math.isnan(found.iou[2])
    assert found.mean_iou == pytest.approx((100 * 6 / 9 + 50) / 2)
    with pytest.raises(ValueError, match='no pixel of the test images has a class'):
        scores(0 * counts)


def test_resizing_logits_is_resizing_features():
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    segmenter = LinearSegmenter(maps.mean((0, 2, 3)), maps.std((0, 2, 3)), 3)
    assert not segmenter.classifier.weight.any()
    nn.init.normal_(segmenter.classifier.weight)
    nn.init.normal_(segmenter.classifier.bias)
    large = nn.functional.interpolate(maps, (12, 16), mode='bilinear')
    expected = segmenter.classifier((large - segmenter.mean) / segmenter.std)
    assert float((segmenter(maps, (12, 16)) - expected).detach().abs().max()) < 1e-12


def positions(n=6, size=64):
    """Images whose channels are their own coordinates."""
    y, x = torch.meshgrid(*2 * [torch.linspace(0, 1, size)], indexing='ij')
    return torch.stack([y, x, torch.full_like(x, 0.3)]).expand(n, -1, -1, -1)


def test_places_are_found_where_features_are_places():
    view = LocatedView(RandomView(PLAIN, (3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3))
    found = correspondence(Patches(), positions(), (view, view), batch_size=4)
    whole = correspondence(Patches(), positions(), (view, view), batch_size=6)
    assert (found.cells, found.accuracy) == (whole.cells, whole.accuracy)
    assert found.cells > 50 and found.chance < 20
    assert correspondence(Patches(), positions(), (view.view, view.view)) == whole
    with pytest.raises(ValueError, match='views must be `RandomView` or `LocatedView`, got Identity'):
        correspondence(Patches(), positions(), (view, nn.Identity()))
    constant = correspondence(Patches(fixed=True), positions(), (view, view))
    assert constant.cells == found.cells and constant.accuracy < 30 < found.accuracy
    mixed = [image[:, : 64 - i] for i, image in enumerate(positions())]
    assert correspondence(Patches(), mixed, (view, view)).cells > 50


@pytest.mark.parametrize('hflip', [0.0, 1.0])
def test_equal_crops_are_found_exactly(hflip):
    """Noise has no two places alike; the second crop is the first, or its mirror image."""
    same = Recipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, jitter=0.0, grey=0.0, blur=0.0)
    size = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    first = LocatedView(RandomView(same, (3, 32, 32), **size))
    second = LocatedView(RandomView(type(same)(**{**vars(same), 'hflip': hflip}), (3, 32, 32), **size))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = correspondence(Patches(), images, (first, second))
    assert (found.accuracy, found.cells) == (100.0, 3 * 64)
    near = sum(min(i + 1, 7) - max(i - 1, 0) + 1 for i in range(8)) ** 2  # neighbours of all cells, themselves included
    assert found.chance == pytest.approx(100 * near / 64**2)


def test_crops_that_never_meet_are_named():
    class Corner(LocatedView):
        def __init__(self, top):
            super().__init__(RandomView(PLAIN, (3, 8, 8)))
            self.top = top

        def forward(self, images, keys):
            made = super().forward(images, keys)
            made.box[:] = torch.tensor([self.top, 0, 8, 8])
            return made

    with pytest.raises(ValueError, match='the crops of none of the 6 images meet'):
        correspondence(Patches(), positions(), (Corner(0), Corner(40)))
