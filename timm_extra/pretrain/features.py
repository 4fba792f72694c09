"""Features of labelled images, from a frozen encoder."""

from typing import Callable, Iterator, Sequence, Tuple, Union

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler

from timm_extra.training.interrupt import ignored_by_processes

from .data import Collate, Samples, loader
from .views import PlainView

Encode = Callable[[torch.Tensor], torch.Tensor]


class _InOrder(Sampler):
    """Batches of (epoch, index), of given indices."""

    def __init__(self, batches: Sequence[Sequence[int]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            yield [(0, int(i)) for i in batch]


def in_order(length: int, batch_size: int) -> Sequence[Sequence[int]]:
    """Indices of batches, in order."""
    return [range(i, min(i + batch_size, length)) for i in range(0, length, batch_size)]


@torch.no_grad()
def encoded(
    encoder: Encode,
    dataset: Dataset,
    view: PlainView,
    batches: Sequence[Sequence[int]],
    *,
    device: Union[str, torch.device] = 'cpu',
    workers: int = 4,
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Features of batches of a labelled data set, batch by batch.

    Args:
        encoder: From images (B, C, H, W) to features (B, …); a module is put in evaluation mode, and back.
        dataset: Map-style data set of images and classes.
        view: Preprocessing.
        batches: Indices of the images of each batch.
        device: Device of the encoder.
        workers: Processes that read images.

    Yields:
        Features (B, …) float32 on that device and classes (B,), of one batch.

    Raises:
        ValueError: An image has no class.
    """
    modules = list(encoder.modules()) if isinstance(encoder, nn.Module) else []
    were = [m.training for m in modules]
    dtype = next((p.dtype for m in modules for p in m.parameters()), torch.float32)
    samples = Samples(dataset, view.input_size[0], labelled=True)
    with ignored_by_processes():
        read = iter(loader(samples, _InOrder(batches), Collate(None), workers))
    for batch in read:
        for m in modules:
            m.training = False
        try:
            found = encoder(view(batch['images']).to(device, dtype)).float()
        finally:
            for m, training in zip(modules, were, strict=True):
                m.training = training
        yield found, batch['labels']


def features(
    encoder: Encode,
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
    batches = in_order(len(Samples(dataset, view.input_size[0], labelled=True)), batch_size)
    out, labels = [], []
    for found, classes in encoded(encoder, dataset, view, batches, device=device, workers=workers):
        out.append(found.cpu())
        labels.append(classes)
    return torch.cat(out), torch.cat(labels)
