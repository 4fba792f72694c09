"""How much frozen feature maps know about every place of an image."""

from contextlib import contextmanager
from typing import Iterator, List, NamedTuple, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from .checked import check_finite
from .data import in_unit_range
from .located import LocatedView, with_places
from .tasks.maps import MapEncoder
from .views import RandomView, in_float32

IGNORED = 255  # the class of pixels that have none, as in Pascal VOC and Cityscapes
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64)


class Segmentation(NamedTuple):
    """How well pixels were classified, in per cent.

    Attributes:
        mean_iou: Intersection over union of the classes that occur, averaged.
        pixel_accuracy: Pixels whose class was found.
        iou: Intersection over union of every class; NaN where neither labels nor predictions have it.
    """

    mean_iou: float
    pixel_accuracy: float
    iou: Tuple[float, ...]


class Correspondence(NamedTuple):
    """How often places of an image are found again in another crop of it, in per cent.

    Attributes:
        accuracy: Cells of one crop whose nearest neighbour in the other lies within one cell of the true place.
        chance: The same for a neighbour drawn from all cells.
        cells: How many there were.
    """

    accuracy: float
    chance: float
    cells: int


class LinearSegmenter(nn.Module):
    """A 1×1 convolution on standardised feature maps, whose logits are resized to the labels.

    Resizing features first would be the same: both are linear, and the weights of bilinear resizing sum to 1.

    Args:
        mean: Of every feature (D,).
        std: Of every feature (D,).
        num_classes: Classes.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, num_classes: int):
        super().__init__()
        self.register_buffer('mean', mean[:, None, None])
        self.register_buffer('std', std.clamp(min=1e-6)[:, None, None])
        self.classifier = nn.Conv2d(len(mean), num_classes, 1, device=mean.device, dtype=mean.dtype)
        nn.init.zeros_(self.classifier.weight)  # nothing is random: the problem is convex
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Logits (B, num_classes, *size) from maps (B, D, h, w)."""
        logits = self.classifier((maps - self.mean) / self.std)
        return F.interpolate(logits, tuple(size), mode='bilinear', align_corners=False)


def linear_segmentation(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    num_classes: int,
    *,
    feature_index: int = -1,
    weight_decay: float = 1e-4,
    steps: int = 100,
    batch_size: int = 64,
    ignore_index: int = IGNORED,
) -> Segmentation:
    """Classes of pixels by multinomial logistic regression on frozen feature maps.

    The classifier is fitted by L-BFGS on all training images at once, from zero: the result is the same every time.
    The model is in evaluation mode meanwhile, on its own device, and its maps of all training images are kept there.

    Args:
        model: Any timm model with feature maps.
        train: Map-style data set of images (C, H, W), normalised as the model takes them, and classes (H, W) of any
            integer dtype. Images of uint8 are scaled to [0, 1], and not normalised.
        test: The same, to be classified.
        num_classes: Classes.
        feature_index: Which of the model's maps; the last by default.
        weight_decay: Half the factor of the squared weights, beside the mean cross-entropy.
        steps: Iterations at most.
        batch_size: Images per forward pass, of the classifier too.
        ignore_index: The class of pixels that are left out.

    Returns:
        Mean intersection over union, accuracy of pixels, intersection over union by class.

    Raises:
        ValueError: The model has no feature maps, there are no images, items are no pairs of images and integer
            classes, a class is out of range, no pixel has one, or a feature is not finite.
    """
    for name, dataset in (('training', train), ('test', test)):
        _check_first(dataset, name)
    with evaluated(model):
        read = dict(feature_index=feature_index, batch_size=batch_size, classes=num_classes, ignore_index=ignore_index)
        seen = list(_batches(model, train, 'training', **read))
        pixels = torch.cat([maps.permute(1, 0, 2, 3).flatten(1) for maps, _ in seen], 1)
        segmenter = LinearSegmenter(pixels.mean(1), pixels.std(1, correction=0), num_classes)
        del pixels
        _fit(segmenter, seen, weight_decay, steps, ignore_index)
        counts = torch.zeros(num_classes, num_classes, dtype=torch.long)
        for maps, labels in _batches(model, test, 'test', **read):
            found = segmenter(maps, labels.shape[1:]).argmax(1)
            known = labels != ignore_index
            cells = labels[known] * num_classes + found[known]
            counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts).cpu()
    return scores(counts)


def scores(counts: torch.Tensor) -> Segmentation:
    """Scores of a confusion matrix.

    Args:
        counts: Pixels (K, K) by true class and found class.

    Returns:
        The scores.

    Raises:
        ValueError: There is no pixel.
    """
    if not counts.sum():
        raise ValueError('no pixel of the test images has a class')
    both = counts.diagonal().double()
    iou = 100 * both / (counts.sum(0) + counts.sum(1) - both)
    accuracy = 100 * both.sum() / counts.sum()
    return Segmentation(float(iou.nanmean()), float(accuracy), tuple(iou.tolist()))


def correspondence(
    model: nn.Module,
    images: Sequence[torch.Tensor],
    views: Tuple[Union[LocatedView, RandomView], Union[LocatedView, RandomView]],
    *,
    feature_index: int = -1,
    seed: int = 0,
    batch_size: int = 64,
) -> Correspondence:
    """Whether features of a place are nearest to those of the same place in another crop of the image.

    For every cell of the first crop's map whose centre lies in the second crop, the nearest neighbour by cosine among
    the cells of the second crop's map. It is right if its centre is at most one cell from the true place, in rows and
    in columns. An image whose crops do not meet adds no cell.

    Args:
        model: Any timm model with feature maps; in evaluation mode meanwhile.
        images: (N, C, H, W), or images (C, H, W) of any sizes; uint8, or floating-point in [0, 1].
        views: How both crops are made; draws depend on `seed` and the number of the image alone.
        feature_index: Which of the model's maps; the last by default.
        seed: Of the draws.
        batch_size: Images per forward pass.

    Returns:
        Accuracy, that of chance, and how many cells there were.

    Raises:
        ValueError: The model has no feature maps, a view is of another kind, a feature is not finite, or no crops meet.
    """
    views = tuple(with_places(view) for view in views)
    for view in views:
        if not isinstance(view, LocatedView):
            raise ValueError(f'views must be `RandomView` or `LocatedView`, got {type(view).__name__}')
    tensor = next(model.parameters())
    encoder = MapEncoder(model, feature_index, views[0].view.input_size)
    right, chance, count = 0, 0.0, 0
    with evaluated(model):
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size]
            made = [
                view(part, [(seed, 0, first + i, number) for i in range(len(part))]).to(tensor.device)
                for number, view in enumerate(views)
            ]
            maps = [_finite_maps(encoder, view.images.to(tensor.dtype), 'cropped', first) for view in made]
            sizes = [m.shape[2:] for m in maps]
            unit = [F.normalize(m.flatten(2), dim=1) for m in maps]  # (B, D, N)
            nearest = (unit[0].mT @ unit[1]).argmax(2)  # (B, N)
            gaps = (made[0].centres(sizes[0])[:, :, None] - made[1].centres(sizes[1])[:, None]).abs()
            near = (gaps <= (1 + 1e-9) * made[1].cells(sizes[1])[:, None, None]).all(-1)  # (B, N, M)
            top, left, height, width = made[1].box.double()[:, None].unbind(-1)
            y, x = made[0].centres(sizes[0]).unbind(-1)
            inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
            right += int(near.gather(2, nearest[:, :, None])[..., 0][inside].sum())
            chance += float(near[inside].double().mean(1).sum())
            count += int(inside.sum())
    if not count:
        raise ValueError(f'the crops of none of the {len(images)} images meet')
    return Correspondence(100 * right / count, 100 * chance / count, count)


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, without gradients, and every part of it back in its mode afterwards."""
    were = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in were:
            module.training = training


def _batches(
    model: nn.Module,
    dataset: Dataset,
    which: str,
    *,
    feature_index: int,
    batch_size: int,
    classes: int,
    ignore_index: int,
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Maps (B, D, h, w) in at least float32 and classes (B, H, W), in order."""
    tensor, encoder = next(model.parameters()), None
    for number, (images, labels) in enumerate(DataLoader(dataset, batch_size)):
        _check(images, labels)
        images, labels = in_unit_range(images), labels.long()
        encoder = encoder or MapEncoder(model, feature_index, images.shape[1:])
        found = labels[labels != ignore_index].unique()
        if len(found) and not 0 <= found[0] <= found[-1] < classes:
            first, last = int(found[0]), int(found[-1])
            raise ValueError(f'classes must be 0 to {classes - 1}, or {ignore_index} for none, got {first} to {last}')
        maps = _finite_maps(encoder, images.to(tensor.device, tensor.dtype), which, number * batch_size)
        yield maps, labels.to(tensor.device)


def _check_first(dataset: Dataset, name: str) -> None:
    """Refuse a data set by its first item, before a model runs.

    Raises:
        ValueError: It is empty, or its first item is no image and its classes.
    """
    if not len(dataset):
        raise ValueError(f'there are no {name} images')
    item = dataset[0]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(f'items of the {name} images must be an image and its classes, got {type(item).__name__}')
    try:
        images, labels = default_collate([tuple(item)])
    except TypeError as e:
        kinds = ' and '.join(type(part).__name__ for part in item)
        raise ValueError(f'items of the {name} images must be tensors or arrays, got {kinds}') from e
    _check(images, labels)


def _check(images: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse a batch that is not images (B, C, H, W) and integer classes (B, H, W)."""
    for what, value, ndim, dtypes in (
        ('images must be floating-point or uint8, of shape (C, H, W)', images, 4, (torch.uint8,)),
        ('classes must be integers of shape (H, W)', labels, 3, INTEGERS),
    ):
        floating = ndim == 4 and isinstance(value, torch.Tensor) and value.is_floating_point()
        if not isinstance(value, torch.Tensor):
            raise ValueError(f'{what}, got {type(value).__name__}')
        if value.ndim != ndim or not (floating or value.dtype in dtypes):
            raise ValueError(f'{what}, got {value.dtype} of shape {tuple(value.shape[1:])}')


def _finite_maps(encoder: MapEncoder, images: torch.Tensor, which: str, first: int) -> torch.Tensor:
    """Maps (B, D, h, w) in at least float32, all finite; `which` and the index of the `first` image name others."""
    maps = in_float32(encoder.maps(images))
    check_finite(maps, which, range(first, first + len(maps)))
    return maps


def _fit(
    segmenter: LinearSegmenter,
    seen: List[Tuple[torch.Tensor, torch.Tensor]],
    weight_decay: float,
    steps: int,
    ignore_index: int,
) -> None:
    """Fit a classifier to maps and classes, all at once."""
    parameters = list(segmenter.classifier.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn='strong_wolfe')
    total = sum(int((labels != ignore_index).sum()) for _, labels in seen)
    if not total:
        raise ValueError('no pixel of the training images has a class')

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        whole = weight_decay / 2 * segmenter.classifier.weight.square().sum()
        whole.backward()
        whole = whole.detach()
        for maps, labels in seen:
            logits = segmenter(maps, labels.shape[1:])
            part = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction='sum') / total
            part.backward()
            whole += part.detach()
        return whole

    with torch.enable_grad():
        optimizer.step(loss)
