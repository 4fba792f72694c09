"""What all probes ask of features and labels."""

from typing import Optional, Sequence, Tuple

import torch

LAYOUTS = {2: 'features (N, D)', 3: 'tokens (B, N, C)'}


def checked(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    ndim: int,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and labels as a probe computes with them.

    Args:
        train_features: (N, D) or (N, T, C).
        train_labels: (N,).
        test_features: (M, D) or (M, T, C); there may be none.
        ndim: 2 for vectors, 3 for tokens.

    Returns:
        The same, without gradients: features in float32, float64 where both are; labels int64.

    Raises:
        ValueError: There are no training images, shapes do not fit, labels are no classes, or features not finite.
    """
    check_labels(train_labels, len(train_features))
    for features in (train_features, test_features):
        if features.ndim != ndim or not features.is_floating_point():
            got = f'{features.dtype} {tuple(features.shape)}'.removeprefix('torch.')
            raise ValueError(f'the probe needs {LAYOUTS[ndim]} of a floating-point type, got features {got}')
    if train_features.shape[2:] != test_features.shape[2:] or train_features.shape[-1] != test_features.shape[-1]:
        shapes = f'{tuple(train_features.shape)} and {tuple(test_features.shape)}'
        raise ValueError(f'features of training and test images differ in channels: {shapes}')
    check_finite(train_features, 'training')
    check_finite(test_features, 'test')
    double = train_features.dtype == test_features.dtype == torch.float64
    train, test = (_plain(x).to(torch.float64 if double else torch.float32) for x in (train_features, test_features))
    return train, _plain(train_labels).long(), test


def check_labels(labels: torch.Tensor, images: int) -> None:
    """Refuse what are no classes of images.

    Raises:
        ValueError: There are none, or of another number than images, or they are not whole or negative.
    """
    if not images:
        raise ValueError('a probe needs training images, got none')
    if labels.ndim != 1 or len(labels) != images:
        raise ValueError(f'a probe needs a class of each of {images} training images, got {tuple(labels.shape)}')
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f'classes must be integers, got {labels.dtype}')
    if int(labels.min()) < 0:
        raise ValueError(f'classes must not be negative, got {int(labels.min())}')


def check_finite(features: torch.Tensor, which: str, indices: Optional[Sequence[int]] = None) -> None:
    """Refuse features that are not finite.

    Args:
        features: (N, …).
        which: Which images they are of, for the message.
        indices: Of these images in the data set; in order from 0 when None.

    Raises:
        ValueError: Some are not; the message names the number of images and the first.
    """
    bad = ~features.isfinite().flatten(1).all(1)
    if bad.any():
        at = int(bad.nonzero()[0, 0])
        at = at if indices is None else int(indices[at])
        raise ValueError(f'{int(bad.sum())} of {len(bad)} {which} images have features not finite, first image {at}')


def check_weight_decay(weight_decay: float) -> None:
    """Refuse a weight decay that is negative or not finite.

    Raises:
        ValueError: It is.
    """
    if not 0 <= weight_decay < float('inf'):
        raise ValueError(f'`weight_decay` must be finite and not negative, got {weight_decay}')


def _plain(x: torch.Tensor) -> torch.Tensor:
    """A tensor without a graph, that autograd may save."""
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x.detach()
