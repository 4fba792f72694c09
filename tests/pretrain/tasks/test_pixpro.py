"""PixPro against the paper's formulas, PyPI's pixel-level-contrastive-learning, and what it promises of any model."""

import copy
import math
import sys
from pathlib import Path

import pytest
import timm
import torch
from pixel_level_contrastive_learning import pixel_level_contrastive_learning as package
from torch import nn
from torch._subclasses import FakeTensorMode

import timm_extra  # noqa: F401
from timm_extra.pretrain.located import Located, LocatedView, joined, positive_pairs
from timm_extra.pretrain.tasks import MapEncoder, PixPro, without_batchnorm
from timm_extra.pretrain.tasks.pixpro import PixelPropagation, consistency
from timm_extra.pretrain.views import BYOL_VIEWS, RandomView

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from reference import pixpro as reference

SMALL = dict(projection_size=6, projection_hidden_size=12)
SIZE = (3, 32, 48)
BOXES = (
    [(0, 0, 40, 60), (3, 5, 20, 31), (0, 0, 12, 12)],
    [(0, 0, 40, 60), (10, 2, 22, 25), (28, 40, 10, 20)],  # the last two do not meet
)
FLIPS = ([False, True, True], [False, False, True])


def model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=0, **kwargs)


def make(net=None, **kwargs):
    return PixPro(model() if net is None else net, **{**SMALL, 'input_size': SIZE, **kwargs})


def located(dtype=torch.float64, size=SIZE, boxes=BOXES, flips=FLIPS):
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(len(box), *size, generator=generator, dtype=torch.float64).to(dtype) for box in boxes]
    parts = zip(images, map(torch.tensor, boxes), map(torch.tensor, flips), strict=True)
    return tuple(Located(*part) for part in parts)


def places(number):
    return list(zip(BOXES[number], FLIPS[number], strict=True))


def norm(x, layer):
    """Batch norm of rows, in its formula."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def head(x, layers):
    """Linear, batch norm, ReLU, linear of rows."""
    return linear(norm(linear(x, layers[0]), layers[1]).clamp(min=0), layers[3])


def on_maps(maps, layers):
    B, C, h, w = maps.shape
    return head(maps.permute(0, 2, 3, 1).reshape(-1, C), layers).view(B, h * w, -1)


def by_hand(task, net, target, views, gamma):
    """The loss of a task, by the formulas."""
    outputs, targets = [], []
    for view in views:
        maps = net.encoder.model.forward_intermediates(view.images, indices=[2], intermediates_only=True)[0]
        x = on_maps(maps, net.projector)
        g = lambda pixel: linear(pixel, net.propagation.transform[0])  # noqa: E731
        y = torch.stack([reference.propagate(image, gamma, g) for image in x])
        pooled = net.encoder.model(view.images)
        outputs.append((y, head(head(pooled, net.instance_projector), net.predictor)))
        with torch.no_grad():
            maps = target['encoder'].model.forward_intermediates(view.images, indices=[2], intermediates_only=True)[0]
            pooled = target['encoder'].model(view.images)
            targets.append((on_maps(maps, target['projector']), head(pooled, target['instance_projector'])))
    size = maps.shape[2:]
    loss = 0
    for a, b in ((0, 1), (1, 0)):
        loss = loss + reference.pixel_loss(outputs[a][0], targets[b][0], places(a), places(b), size, task.threshold)
        loss = loss + task.instance_weight * reference.instance_loss(outputs[a][1], targets[b][1])
    return loss


@pytest.mark.parametrize('gamma, weight', [(2.0, 1.0), (0.5, 0.3)])
def test_loss_and_gradients_are_the_papers(gamma, weight):
    """Loops over pixels and images in float64; maps of 4 × 6, crops of different sizes, flips, two that do not meet."""
    task = make(model().double(), feature_index=2, gamma=gamma, instance_weight=weight)
    with torch.no_grad():  # a target of its own
        for p in task.target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    net, target, views = copy.deepcopy(task.trainable_module), copy.deepcopy(task.target), located()
    assert task.encoder.map_shape[1:] == (4, 6)
    loss, expected = task(views)['loss'], by_hand(task, net, target, views, gamma)
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    ours = torch.autograd.grad(loss, list(task.trainable_module.parameters()))
    theirs = torch.autograd.grad(expected, list(net.parameters()))
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-10
    assert all(p.grad is None and not p.requires_grad for p in task.target.parameters())


@pytest.mark.parametrize('size', [(4, 6), (1, 1), (7, 7), (1, 5)])
@pytest.mark.parametrize('threshold', [0.0, 0.7, 2.5])
def test_pairs_are_those_near_in_the_image(size, threshold):
    views = located(size=(1, 2, 2))
    pairs = positive_pairs(*views, (size, size), threshold)
    assert pairs.shape == (3, math.prod(size), math.prod(size))
    for b in range(3):
        expected = reference.positive(places(0)[b], places(1)[b], size, threshold)
        assert sorted(map(tuple, pairs[b].nonzero().tolist())) == expected, b
    if threshold < 1:
        assert not pairs[2].any()


@pytest.mark.parametrize('width', [3, 7, 10, 49])
def test_a_view_and_its_mirror_image_have_the_same_centres(width):
    """Exactly: at threshold 0 each cell has its own as a pair, and no other."""
    plain, mirrored = located(
        boxes=2 * [[(0, 0, 61, 53), (5, 2, 31, 17), (1, 1, 9, 9)]], flips=([False] * 3, [True] * 3)
    )
    pairs = positive_pairs(plain, mirrored, 2 * [(3, width)], 0.0).view(3, 3, width, 3, width)
    cells = torch.eye(3 * width, dtype=torch.bool).view(3, width, 3, width).flip(3)
    assert torch.equal(pairs, cells.expand_as(pairs))


def test_places_follow_their_views_to_another_device():
    """A GPU's tensors without its numbers: crops are drawn on the CPU, views may be made elsewhere."""
    with FakeTensorMode():
        images = torch.empty(2, 3, 32, 48, device='cuda')
        box, flip = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, dtype=torch.bool)
        for view in (Located(images, box, flip), Located(images.cpu(), box, flip).to('cuda')):
            assert {view.images.device, view.box.device, view.flip.device} == {images.device}
            pairs = positive_pairs(view, view, 2 * [(4, 6)], 0.7)
            features = torch.empty(2, 24, 5, device='cuda')
            assert consistency(features, features, pairs).device == images.device
        again = joined([view.to(torch.float16), view])
        assert again.images.device == again.box.device == images.device and len(again) == 4


def test_pixels_without_a_pair_add_nothing_to_the_loss():
    far = located(boxes=([(0, 0, 8, 8)] * 3, [(40, 40, 8, 8)] * 3))
    task = make(model().double(), instance_weight=0)
    loss = task(far)['loss']
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in task.trainable_module.parameters())
    y, x = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    pairs = torch.zeros(2, 4, 4, dtype=torch.bool)
    pairs[0, 1, 2] = True
    expected = -torch.cosine_similarity(y[0, 1], x[0, 2], dim=0) / 2
    torch.testing.assert_close(consistency(y, x, pairs), expected)


@pytest.mark.parametrize('layers', [0, 1, 2, 3])
def test_propagation_has_as_many_layers_as_it_says(layers):
    propagation = PixelPropagation(6, 1.5, layers).double().eval()
    assert sum(isinstance(m, nn.Linear) for m in propagation.modules()) == layers
    assert sum(isinstance(m, nn.BatchNorm1d) for m in propagation.modules()) == max(layers - 1, 0)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = [reference.propagate(image, 1.5, lambda pixel: propagation.transform(pixel[None])[0]) for image in x]
    assert float((propagation(x) - torch.stack(expected)).detach().abs().max()) < 1e-12


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0, 4.0])
def test_propagation_has_gradients_where_pixels_are_opposite_or_zero(gamma):
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    PixelPropagation(2, gamma, 0)(x).sum().backward()
    assert x.grad.isfinite().all()


def package_loss(net, boxes, flips, task, images, threshold, monkeypatch):
    """PyPI's learner with our weights, crops and flips: the loss with four times the weight of pixels."""
    learner = package.PixelCL(
        net, images.shape[-1], hidden_layer_pixel='layer4', hidden_layer_instance='global_pool', projection_size=6,
        projection_hidden_size=12, augment_fn=nn.Identity(), distance_thres=threshold, alpha=4.0,
    ).double()  # fmt: skip
    online = learner.online_encoder
    for mine, theirs in (
        (task.trainable_module.projector, online.pixel_projector),
        (task.trainable_module.instance_projector, online.instance_projector),
        (task.trainable_module.predictor, learner.online_predictor),
        (task.trainable_module.propagation.transform, [learner.propagate_pixels.transform_net]),
    ):
        layers = list(getattr(theirs, 'net', theirs))
        for a, b in zip(mine, layers, strict=True):
            for name, value in a.state_dict().items():
                b.state_dict()[name].copy_(value.view_as(b.state_dict()[name]))
    learner.reset_moving_average()
    cuts = iter(((top, top + height), (left, left + width)) for top, left, height, width in boxes)
    flipped = iter(flips)
    monkeypatch.setattr(package, 'cutout_coordinates', lambda image, ratios: (next(cuts), 1.0))
    monkeypatch.setattr(package, 'rand_true', lambda p: next(flipped))
    views = [package.cutout_and_resize(images, ((y, y + h), (x, x + w))) for y, x, h, w in boxes]
    views = [view.flip(-1) if flip else view for view, flip in zip(views, flips, strict=True)]
    return learner(images), views


@pytest.mark.parametrize(
    'boxes, flips',
    [
        ([(0, 0, 64, 64)] * 2, (False, True)),
        ([(0, 0, 48, 48), (16, 9, 48, 48)], (False, False)),
        ([(5, 2, 32, 32), (16, 13, 32, 32)], (True, False)),
    ],
)
def test_loss_and_gradients_are_those_of_the_package(boxes, flips, monkeypatch):
    """Square images, crops of one size: its distances are in cells of the whole image, so its threshold is scaled.

    Its loss of pixels is the mean of both orders, that of instances 4 − 2 cos − 2 cos: ours, twice, plus 4.
    """
    net = model().double()
    task = make(net, input_size=(3, 64, 64))
    theirs = copy.deepcopy(net).float()  # it tries the network with an image in float32
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    scale = boxes[0][2] / 64
    loss, views = package_loss(theirs, boxes, flips, task, images, 0.7 * scale, monkeypatch)
    views = tuple(
        Located(view, torch.tensor([box] * 4), torch.tensor([flip] * 4))
        for view, box, flip in zip(views, boxes, flips, strict=True)
    )
    assert positive_pairs(*views, ((2, 2), (2, 2)), 0.7).any()
    ours = 2 * task(views)['loss'] + 4
    assert abs(float(ours.detach() - loss.detach())) < 1e-10
    ours, theirs = (torch.autograd.grad(v, list(n.parameters())) for v, n in ((ours, net), (loss, theirs)))
    parts = zip(ours, theirs, strict=True)
    assert max(float((a - b).abs().max()) for a, b in parts) < 1e-10


def test_views_have_their_places_by_the_same_draws():
    view = RandomView(BYOL_VIEWS[0], (1, 8, 12))
    x, keys = torch.rand(5, 1, 30, 40), [(3, 1, i, 0) for i in range(5)]
    found = LocatedView(view)(x, keys)
    assert torch.equal(found.images, view(x, keys))
    draws = view._draw(5, (30, 40), keys)
    assert torch.equal(found.box, torch.stack([draws.top, draws.left, draws.height, draws.width], 1))
    assert torch.equal(found.flip, draws.flip) and found.flip.any() and not found.flip.all()
    mixed = LocatedView(view)([x[0], x[1, :, :20]], keys[:2])
    assert torch.equal(mixed.images, view([x[0], x[1, :, :20]], keys[:2])) and mixed.box.shape == (2, 4)


def test_places_are_where_pixels_come_from():
    """An image of its own coordinates: the mean of a cell of the view is the centre of that cell."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing='ij')
    image = (torch.stack([y, x]) + 0.5)[None].double() / 80
    recipe = type(BYOL_VIEWS[0])(scale=(0.3, 0.8), jitter=0.0, grey=0.0, blur=0.0)
    view = LocatedView(RandomView(recipe, (2, 24, 24)))
    found = view(image.expand(8, -1, -1, -1), [(0, 0, i, 0) for i in range(8)])
    means = 80 * nn.functional.avg_pool2d(found.images, 6)[..., 1:-1, 1:-1]  # resizing bends coordinates at borders
    centres = found.centres((4, 4)).view(8, 4, 4, 2).permute(0, 3, 1, 2)[..., 1:-1, 1:-1]
    assert float((means - centres).abs().max()) < 0.05
    assert found.flip.any() and not found.flip.all()


FAMILIES = {
    'resnet18': ({}, 64, (512, 2, 2)),
    'convnext_atto': ({}, 64, (320, 2, 2)),
    'swin_tiny_patch4_window7_224': (dict(img_size=64, window_size=4), 64, (768, 2, 2)),  # NHWC
    'vit_tiny_patch16_224': (dict(img_size=64), 64, (192, 4, 4)),
    'deit_tiny_distilled_patch16_224': (dict(img_size=64), 64, (192, 4, 4)),
    'mobilenetv3_small_050': ({}, 32, (288, 1, 1)),
    'test_ceit': ({}, 160, (64, 10, 10)),
    'test_glom': ({}, 56, (32, 4, 4)),
}


@pytest.mark.parametrize('name', FAMILIES)
def test_any_family_with_maps_takes_a_step(name):
    kwargs, size, shape = FAMILIES[name]
    torch.manual_seed(0)
    net = timm.create_model(name, **kwargs)
    before = copy.deepcopy(net.state_dict())
    task = make(net, input_size=(3, size, size), num_steps=10).train()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items()) and task.model is net
    out = task(torch.rand(2, 3, 80, 70))
    assert out['output'].shape == (2, *shape) and task.encoder.map_shape == shape
    out['loss'].backward()
    torch.optim.SGD(task.trainable_module.parameters(), 0.01).step()
    task.update_ema(0)
    assert out['loss'].isfinite()
    classifier = net.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    without = {id(p) for layer in heads for p in layer.parameters()}
    assert all(p.grad is not None for p in net.parameters() if id(p) not in without)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'test_ceit', 'swin_tiny_patch4_window7_224'])
def test_maps_are_the_features_at_their_places(name):
    net = timm.create_model(name).eval()
    size = net.pretrained_cfg['input_size']
    encoder = MapEncoder(net, -1, size)
    x = torch.rand(2, *size)
    features = net.forward_features(x)
    if features.ndim == 3:
        h, w = encoder.map_shape[1:]
        features = features[:, net.num_prefix_tokens :].unflatten(1, (h, w))
    maps, embedding = encoder.maps_and_embeddings(x)
    assert torch.equal(maps, features.permute(0, 3, 1, 2)) and torch.equal(maps, encoder.maps(x))
    assert torch.equal(embedding, encoder(x))


def test_models_without_a_norm_for_their_maps_have_maps():
    encoder = MapEncoder(timm.create_model('hiera_tiny_224', stages=(1, 1, 1, 1)), -1, (3, 224, 224))
    assert encoder.map_shape == (768, 7, 7) and not encoder.norm


def test_the_instance_loss_can_be_left_out():
    task = make(instance_weight=0)
    assert set(task.target) == {'encoder', 'projector'}
    assert {name for name, _ in task.trainable_module.named_children()} == {'encoder', 'projector', 'propagation'}
    pooled = timm.create_model('test_resnet', num_classes=0, global_pool='')  # embeddings are not needed
    assert make(pooled, instance_weight=0)(located(torch.float32))['loss'].isfinite()
    views = located()
    task = make(model().double())
    whole = task(views)['loss'].detach()
    task.instance_weight = 2.0
    more = task(views)['loss'].detach()
    pixels = 2 * whole - more
    task.instance_weight = 0
    assert abs(float(task(views)['loss'].detach() - pixels)) < 1e-12 and float(more) != float(whole)


def test_one_image_has_pixels_enough_without_the_instance_loss():
    one = tuple(Located(v.images[:1], v.box[:1], v.flip[:1]) for v in located(torch.float32))
    assert make(instance_weight=0).train()(one)['loss'].isfinite()
    with pytest.raises(ValueError, match='a batch of one image has no batch statistics: raise `batch_size`'):
        make().train()(one)
    net = without_batchnorm(model())
    heads = dict(head_norm='group', projection_size=32, projection_hidden_size=32)
    assert make(net, **heads).train()(one)['loss'].isfinite()


def test_checkpoints_hold_everything():
    task = make()
    task(located(torch.float32))
    state = task.get_checkpoint_state()
    assert set(state['task_state']) == {'projector', 'propagation', 'instance_projector', 'predictor', 'target'}
    other = make()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    for (name, a), (_, b) in zip(task.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match='Perceiver has no feature maps at `feature_index=-1`: Output format'):
        make(timm.create_model('test_perceiver'), input_size=None)
    with pytest.raises(
        ValueError, match='has no feature maps at `feature_index=-9`: it has 5, with indices from -5 to 4'
    ):
        make(feature_index=-9)
    for value in ('a', None, 1.5, True):
        with pytest.raises(ValueError, match=f'`feature_index` must be an integer, got {value!r}'):
            make(feature_index=value)
    with pytest.raises(ValueError, match='VisionTransformer does not take inputs of 3×32×48: '):
        make(timm.create_model('vit_tiny_patch16_224', depth=1))
    with pytest.raises(ValueError, match='Sequential has no forward_features and no forward_head'):
        make(nn.Sequential(nn.Conv2d(3, 4, 1)))
    numbers = dict(gamma=(0, math.inf, math.nan, '2'), threshold=(-0.1, math.nan), instance_weight=(-1, math.inf, None))
    for name, values in dict(numbers, transform_layers=(-1, 1.5, True)).items():
        for value in values:
            with pytest.raises(ValueError, match=f'`{name}` must be (positive|0 or more|an integer).*, got {value!r}'):
                make(**{name: value})
    with pytest.raises(ValueError, match=r'decay must be between 0 and 1, got 1\.5'):
        make(decay=1.5)
    task = make(view1=lambda x: x[..., :32, :48])
    with pytest.raises(ValueError, match='view1 gives Tensor, not `Located`: PixPro needs the place of every crop'):
        task(torch.rand(2, *SIZE))
    views = located()
    with pytest.raises(ValueError, match='got 3 tensors'):
        make()(views + views[:1])
    with pytest.raises(ValueError, match=r'images, or a list of views \(2\), got one Located'):
        make()(views[0])
    part = Located(views[0].images[:2], views[0].box[:2], views[0].flip[:2])
    with pytest.raises(ValueError, match='views must be of the same images, got 2 and 3 views'):
        make()((part, views[1]))
    for change in (
        dict(box=part.box[0]),
        dict(box=part.box[:1]),
        dict(flip=part.flip.float()),
        dict(flip=part.flip[0]),
    ):
        with pytest.raises(ValueError, match=r'`(box|flip)` must (have|be torch.bool of) shape \(2.*for 2 views, got'):
            Located(**{**vars(part), **change})
