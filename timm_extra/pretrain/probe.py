"""How much frozen features know about classes."""

from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, Sampler

from timm_extra.training.interrupt import ignored_by_processes

from .data import Collate, Samples, loader
from .views import PlainView

TEMPERATURE = 0.07
WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # that `linear` chooses from
HELD_OUT, SPLIT_SEED = 10, 0  # one in so many training images chooses; which ones


class _InOrder(Sampler):
    """Batches of (epoch, index), in order."""

    def __init__(self, length: int, batch_size: int):
        self.length, self.batch_size = length, batch_size

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self):
        for first in range(0, self.length, self.batch_size):
            yield [(0, i) for i in range(first, min(first + self.batch_size, self.length))]


@torch.no_grad()
def features(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    dataset: Dataset,
    view: PlainView,
    *,
    batch_size: int = 256,
    device: Union[str, torch.device] = 'cpu',
    workers: int = 4,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Features of a labelled data set.

    Args:
        encoder: From images (B, C, H, W) to features (B, D); a module is put in evaluation mode, and back.
        dataset: Map-style data set of images and classes.
        view: Preprocessing.
        batch_size: Images per forward pass.
        device: Device of the encoder.
        workers: Processes that read images.

    Returns:
        Features (N, D) float32 and classes (N,), on the CPU.

    Raises:
        ValueError: An image has no class, or a number is out of range.
    """
    if workers < 0 or batch_size < 1:
        raise ValueError(
            f'`workers` must not be negative and `batch_size` must be positive, got {workers} and {batch_size}'
        )
    modules = list(encoder.modules()) if isinstance(encoder, nn.Module) else []
    were = [m.training for m in modules]
    dtype = next((p.dtype for m in modules for p in m.parameters()), torch.float32)
    for m in modules:
        m.training = False
    try:
        out, labels = [], []
        samples = Samples(dataset, view.input_size[0], labelled=True)
        with ignored_by_processes():
            batches = iter(loader(samples, _InOrder(len(samples), batch_size), Collate(None), workers))
        for batch in batches:
            out.append(encoder(view(batch['images']).to(device, dtype)).float().cpu())
            labels.append(batch['labels'])
    finally:
        for m, training in zip(modules, were, strict=True):
            m.training = training
    return torch.cat(out), torch.cat(labels)


def knn(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    center: bool = True,
) -> torch.Tensor:
    """Classes by the k nearest neighbours in cosine, each with weight exp(cosine / temperature).

    As in https://arxiv.org/abs/1805.01978, section 3.4, whose features are not centred: they come from a layer that
    learned by this very cosine. Those of pooled ReLUs, or pixels, all point one way, and their cosines tell little.

    Args:
        train_features: (N, D).
        train_labels: (N,).
        test_features: (M, D).
        k: Neighbours.
        temperature: Of the weights.
        center: Subtract the mean of the training features from all features.

    Returns:
        Classes (M,).

    Raises:
        ValueError: There are fewer than k training images.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f'k must be between 1 and {len(train_features)}, the number of training images, got {k}')
    classes = int(train_labels.max()) + 1
    if center:
        mean = train_features.mean(0)
        train_features, test_features = train_features - mean, test_features - mean
    train = F.normalize(train_features, dim=1)
    found = []
    for part in F.normalize(test_features, dim=1).split(1024):
        cosines, index = (part @ train.T).topk(k, 1)
        votes = part.new_zeros(len(part), classes)
        votes.scatter_add_(1, train_labels[index], ((cosines - 1) / temperature).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)


def linear(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    *,
    weight_decay: Optional[float] = None,
    steps: int = 200,
) -> torch.Tensor:
    """Classes by multinomial logistic regression on standardised features, fitted by L-BFGS.

    Args:
        train_features: (N, D).
        train_labels: (N,).
        test_features: (M, D).
        weight_decay: Half the factor of the squared weights, beside the mean cross-entropy; None for the one that
            `choose_weight_decay` finds.
        steps: Iterations at most.

    Returns:
        Classes (M,).
    """
    if weight_decay is None:
        weight_decay = choose_weight_decay(train_features, train_labels, steps=steps)
    train, test = _standardised(train_features, test_features)
    start = _zeros(train, int(train_labels.max()) + 1)
    weight, bias = _logistic_regression(train, train_labels, start, weight_decay, steps)
    return (test @ weight + bias).argmax(1)


def choose_weight_decay(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 200,
) -> float:
    """The weight decay whose logistic regression has most held-out training images right.

    One in ten training images is held out, the same ones every time. Each fit starts where the one with the next
    larger weight decay ended.

    Args:
        features: Training features (N, D).
        labels: Their classes (N,).
        weight_decays: What to choose from.
        steps: Iterations at most, for each.

    Returns:
        The best, of equal ones the largest; with a single image the largest.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, kept = order.tensor_split([max(1, len(order) // HELD_OUT)])
    decays = sorted(weight_decays, reverse=True)
    if not len(kept):
        return decays[0]
    train, test = _standardised(features[kept], features[held])
    fitted, best, most = _zeros(train, int(labels.max()) + 1), decays[0], -1
    for decay in decays:
        fitted = _logistic_regression(train, labels[kept], fitted, decay, steps)
        right = int(((test @ fitted[0] + fitted[1]).argmax(1) == labels[held]).sum())
        if right > most:
            best, most = decay, right
    return best


def _standardised(train: torch.Tensor, test: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Features less the mean of the training features, over their standard deviation."""
    mean, std = train.mean(0), train.std(0, unbiased=len(train) > 1).clamp(min=1e-6)
    return (train - mean) / std, (test - mean) / std


def _zeros(train: torch.Tensor, classes: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Weight (D, classes) and bias (classes,) to start from."""
    return train.new_zeros(train.shape[1], classes), train.new_zeros(classes)


def _logistic_regression(
    train: torch.Tensor,
    labels: torch.Tensor,
    start: Tuple[torch.Tensor, torch.Tensor],
    weight_decay: float,
    steps: int,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Weight (D, classes) and bias (classes,) of least mean cross-entropy + weight_decay / 2 · weight²."""
    weight, bias = (x.clone().requires_grad_() for x in start)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn='strong_wolfe')

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        out = F.cross_entropy(train @ weight + bias, labels) + weight_decay / 2 * weight.square().sum()
        out.backward()
        return out

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()


PROBES = dict(knn=knn, linear=linear)


def accuracies(
    probes: Sequence[str],
    encoder: Callable[[torch.Tensor], torch.Tensor],
    train: Dataset,
    test: Dataset,
    *,
    view: PlainView,
    batch_size: int = 256,
    device: Union[str, torch.device] = 'cpu',
    workers: int = 4,
) -> Dict[str, float]:
    """Accuracies of probes.

    Args:
        probes: Some of 'knn' (20 neighbours, fewer if there are fewer training images) and 'linear'.
        encoder: As `features` has it.
        train: Labelled training images.
        test: Labelled test images.
        view: Preprocessing.
        batch_size: Images per forward pass.
        device: Device of the encoder.
        workers: Processes that read images.

    Returns:
        Top-1 in per cent by probe.

    Raises:
        ValueError: A probe is unknown.
    """
    for probe in probes:
        if probe not in PROBES:
            raise ValueError(f'a probe must be one of {", ".join(PROBES)}, got {probe!r}')
    read = dict(batch_size=batch_size, device=device, workers=workers)
    train_x, train_y = features(encoder, train, view, **read)
    test_x, test_y = features(encoder, test, view, **read)
    found = {}
    for probe in probes:
        options = dict(k=min(20, len(train_x))) if probe == 'knn' else {}
        classes = PROBES[probe](train_x, train_y, test_x, **options)
        found[probe] = 100 * int((classes == test_y).sum()) / len(test_y)
    return found
