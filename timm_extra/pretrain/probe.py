"""How much frozen features know about classes."""

from typing import Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from .attentive import Tokens, Training, attentive, attentive_accuracy, token_encoder
from .checked import check_weight_decay, checked
from .features import Encode, features
from .held_out import held_out
from .views import PlainView

TEMPERATURE = 0.07
WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # that `linear` chooses from


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
        ValueError: There are fewer than k training images, or features or labels are not as all probes need them.
    """
    train_features, train_labels, test_features = checked(train_features, train_labels, test_features, 2)
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

    Raises:
        ValueError: Features or labels are not as all probes need them, or the weight decay is negative.
    """
    train_features, train_labels, test_features = checked(train_features, train_labels, test_features, 2)
    if weight_decay is None:
        weight_decay = choose_weight_decay(train_features, train_labels, steps=steps)
    check_weight_decay(weight_decay)
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

    Raises:
        ValueError: Features or labels are not as all probes need them, or there is nothing to choose from.
    """
    if not len(weight_decays):
        raise ValueError('`weight_decays` is empty: there is nothing to choose from')
    for decay in weight_decays:
        check_weight_decay(decay)
    features, labels, _ = checked(features, labels, features[:0], 2)
    kept, held = held_out(len(features))
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


PROBES = dict(knn=knn, linear=linear, attentive=attentive)


def check_probes(probes: Sequence[str], encoder: Encode) -> None:
    """Refuse what `accuracies` would.

    Raises:
        ValueError: A probe is unknown, or the encoder has no tokens for the attentive probe.
    """
    for probe in probes:
        if probe not in PROBES:
            raise ValueError(f'a probe must be one of {", ".join(PROBES)}, got {probe!r}')
    if 'attentive' in probes:
        token_encoder(encoder)


def accuracies(
    probes: Sequence[str],
    encoder: Encode,
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
        probes: Some of 'knn' (20 neighbours, fewer if there are fewer training images), 'linear' and 'attentive'.
        encoder: As `features` has it. The attentive probe takes the tokens of a timm model or of an `Encoder` without
            `hidden_layer`, or what any other callable gives, tokens (B, N, C).
        train: Labelled training images.
        test: Labelled test images.
        view: Preprocessing.
        batch_size: Images per forward pass.
        device: Device of the encoder.
        workers: Processes that read images.

    Returns:
        Top-1 in per cent by probe.

    Raises:
        ValueError: A probe is unknown, or the encoder has no tokens for the attentive probe.
    """
    check_probes(probes, encoder)
    read = dict(batch_size=batch_size, device=device, workers=workers)
    found = {}
    if set(probes) - {'attentive'}:
        train_x, train_y = features(encoder, train, view, **read)
        test_x, test_y = features(encoder, test, view, **read)
    for probe in probes:
        if probe == 'attentive':
            tokens = (Tokens(token_encoder(encoder), images, view, **read) for images in (train, test))
            found[probe] = attentive_accuracy(*tokens, Training(device=device))
            continue
        options = dict(k=min(20, len(train_x))) if probe == 'knn' else {}
        classes = PROBES[probe](train_x, train_y, test_x, **options)
        found[probe] = 100 * int((classes == test_y).sum()) / len(test_y)
    return found
