"""The attentive probe: a pool of learned queries and a linear classifier, trained on frozen tokens."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.utils.data import Dataset

from timm_extra.models.latent_pool import LatentPool, LatentPoolConfig, find_features, remove_classifier, to_tokens

from .checked import check_finite, check_labels, check_weight_decay, checked
from .features import Encode, encoded, in_order
from .held_out import held_out
from .tasks.encoder import Encoder
from .views import PlainView

WARMUP = 0.1  # of the steps
POOL = LatentPoolConfig(mlp_ratio=0.0)
BATCH_SIZES, STEPS_PER_EPOCH = (8, 256), 32  # an epoch has so many steps, in batches of no fewer and no more
WEIGHT_DECAYS = (1.0, 0.1, 0.01)  # that are chosen from
CACHE = 4 << 30  # bytes of tokens that are kept


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the attentive probe is trained.

    Attributes:
        config: Options of the pool.
        epochs: Passes over the training images, in batches of 256 images, smaller ones of 8192 images and fewer.
        lr: Peak learning rate.
        seed: Of initial weights and order.
        device: Where.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    config: LatentPoolConfig = POOL
    epochs: int = 20
    lr: float = 1e-3
    seed: int = 0
    device: Union[str, torch.device] = 'cpu'

    def __post_init__(self):
        if type(self.epochs) is not int or self.epochs < 1:
            raise ValueError(f'`epochs` must be a positive integer, got {self.epochs!r}')
        if not 0 < self.lr < float('inf'):
            raise ValueError(f'`lr` must be positive and finite, got {self.lr}')
        if not self.config.pool_type:
            raise ValueError("`pool_type` of the attentive probe must be 'avg' or 'token', got ''")


class TokenEncoder(nn.Module):
    """A timm model as a map from images to its tokens (B, N, C).

    Args:
        model: The model. Its weights are shared, it is not changed.

    Raises:
        ValueError: The model has no features, or they are neither tokens nor a map.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.layout = find_features(model).layout
        held = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, held)
        remove_classifier(self.model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to tokens (B, N, C)."""
        return to_tokens(self.model.forward_features(x), self.layout)


def token_encoder(encoder: Encode) -> Encode:
    """What gives the tokens that the attentive probe pools.

    Args:
        encoder: An `Encoder` without `hidden_layer`, a timm model, or anything else from images to tokens (B, N, C).

    Raises:
        ValueError: An `Encoder` has a `hidden_layer`, or a model's features are neither tokens nor a map.
    """
    if isinstance(encoder, Encoder):
        if encoder.hidden_layer is not None:
            raise ValueError(
                f'the attentive probe pools the tokens of a model, not `hidden_layer={encoder.hidden_layer!r}`'
            )
        encoder = encoder.model
    return TokenEncoder(encoder) if hasattr(encoder, 'forward_features') else encoder


class TokenTensor:
    """Tokens in memory.

    Args:
        tokens: (N images, N tokens, C).
        labels: Classes (N images,).

    Raises:
        ValueError: They are of another shape.
    """

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor):
        self.tokens, self.labels = tokens, labels
        self.shape = _checked(tokens)

    def batches(self, indices: Sequence[Sequence[int]]) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Tokens (B, N, C) and classes (B,) of the images of each batch."""
        for batch in indices:
            at = torch.as_tensor(batch)
            yield self.tokens[at], self.labels[at]


class Tokens:
    """Tokens of a labelled data set: kept in memory where they fit, else computed again whenever they are read.

    They take images · tokens · channels · 4 bytes.

    Args:
        encoder: From images (B, C, H, W) to tokens (B, N, C); a module is put in evaluation mode, and back.
        dataset: Map-style data set of images and classes.
        view: Preprocessing.
        batch_size: Images per forward pass.
        device: Device of the encoder.
        workers: Processes that read images.
        limit: Bytes that may be kept.

    Raises:
        ValueError: An image has no class, or the encoder gives no tokens.
    """

    def __init__(
        self,
        encoder: Encode,
        dataset: Dataset,
        view: PlainView,
        *,
        batch_size: int = 256,
        device: Union[str, torch.device] = 'cpu',
        workers: int = 4,
        limit: int = CACHE,
    ):
        self._read = partial(encoded, encoder, dataset, view, device=device, workers=workers)
        all_batches = in_order(len(dataset), batch_size)
        self.shape = _checked(next(self._read(all_batches[:1]))[0])
        self.kept: Optional[TokenTensor] = None
        if len(dataset) * math.prod(self.shape) * 4 > limit:
            labels = encoded(_nothing, dataset, view, all_batches, device=device, workers=workers)
            self.labels = torch.cat([classes for _, classes in labels])
            return
        tokens, at, classes = torch.empty(len(dataset), *self.shape), 0, []
        for found, labels in self._read(all_batches):
            check_finite(found, 'labelled', range(at, at + len(found)))
            tokens[at : at + len(found)] = found.cpu()
            at += len(found)
            classes.append(labels)
        self.labels = torch.cat(classes)
        self.kept = TokenTensor(tokens, self.labels)

    def batches(self, indices: Sequence[Sequence[int]]) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Tokens (B, N, C) and classes (B,) of the images of each batch."""
        return self._again(indices) if self.kept is None else self.kept.batches(indices)

    def _again(self, indices: Sequence[Sequence[int]]) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        for batch, (found, labels) in zip(indices, self._read(indices), strict=True):
            check_finite(found, 'labelled', batch)
            yield found, labels


def _nothing(images: torch.Tensor) -> torch.Tensor:
    return images.new_empty(len(images), 0)


def _checked(tokens: torch.Tensor) -> Tuple[int, int]:
    """Number of tokens and channels.

    Raises:
        ValueError: These are no tokens.
    """
    if tokens.ndim != 3:
        raise ValueError(f'the attentive probe needs tokens (B, N, C), got features {tuple(tokens.shape)}')
    return tokens.shape[1], tokens.shape[2]


Source = Union[Tokens, TokenTensor]


def attentive(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    *,
    weight_decay: Optional[float] = None,
    training: Optional[Training] = None,
) -> torch.Tensor:
    """Classes by a linear classifier on tokens pooled by learned queries, both trained with AdamW.

    As the attentive probe of AIM (https://arxiv.org/abs/2401.08541, section 4): one layer of cross-attention from one
    query, without an MLP. The learning rate rises for a tenth of the steps and falls as a cosine.

    Args:
        train_features: Tokens (N, T, C).
        train_labels: (N,).
        test_features: Tokens (M, T, C).
        weight_decay: Of AdamW; None for the one of 1, 0.1 and 0.01 with most of one in ten training images right, that
            are held out for it; with it all training images are then fitted.
        training: How to train.

    Returns:
        Classes (M,).

    Raises:
        ValueError: Features or labels are not as all probes need them, or the weight decay is negative.
    """
    train_features, train_labels, test_features = checked(train_features, train_labels, test_features, 3)
    train, training = TokenTensor(train_features.float(), train_labels), training or Training()
    test = TokenTensor(test_features.float(), train_labels.new_zeros(len(test_features)))
    return _predicted(_probe(train, weight_decay, training), test, torch.arange(len(test_features)), training)


def attentive_accuracy(train: Source, test: Source, training: Optional[Training] = None) -> float:
    """Top-1 of `attentive` in per cent, on tokens that need not be in memory."""
    training = training or Training()
    classes = _predicted(_probe(train, None, training), test, torch.arange(len(test.labels)), training)
    return 100 * int((classes == test.labels).sum()) / len(test.labels)


def _probe(train: Source, weight_decay: Optional[float], training: Training) -> nn.Module:
    """The probe that is trained on all images, with the weight decay that held-out images choose if none is given."""
    check_labels(train.labels, len(train.labels))
    if weight_decay is not None:
        check_weight_decay(weight_decay)
    else:
        weight_decay = WEIGHT_DECAYS[0]
        kept, held = held_out(len(train.labels))
        if len(kept):
            right = []
            for probe in _fitted(train, kept, WEIGHT_DECAYS, training):
                right.append(int((_predicted(probe, train, held, training) == train.labels[held]).sum()))
            weight_decay = WEIGHT_DECAYS[right.index(max(right))]  # of equal ones the largest
    return _fitted(train, torch.arange(len(train.labels)), [weight_decay], training)[0]


def _fitted(
    train: Source, indices: torch.Tensor, weight_decays: Sequence[float], training: Training
) -> List[nn.Module]:
    """Train a probe for each weight decay, all with the same initial weights and batches, read once."""
    classes, dim = train.labels.unique(), train.shape[1]  # those that occur: none else is right
    probes, optimizers = [], []
    for weight_decay in weight_decays:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            pool = LatentPool(dim, training.config)
            probe = nn.Sequential(pool, nn.Linear(pool.num_features, len(classes))).to(training.device)
        probe.classes = classes
        groups = param_groups_weight_decay(probe, weight_decay, no_weight_decay_list=['0.latents'])
        probes.append(probe)
        optimizers.append(torch.optim.AdamW(groups, lr=0.0))
    order = torch.Generator().manual_seed(training.seed)
    size = min(max(len(indices) // STEPS_PER_EPOCH, BATCH_SIZES[0]), BATCH_SIZES[1])
    epochs = [indices[torch.randperm(len(indices), generator=order)].split(size) for _ in range(training.epochs)]
    total, step = sum(map(len, epochs)), 0
    with torch.enable_grad():
        for epoch in epochs:
            for tokens, labels in train.batches(epoch):
                tokens, labels = tokens.to(training.device), torch.searchsorted(classes, labels).to(training.device)
                for probe, optimizer in zip(probes, optimizers, strict=True):
                    for group in optimizer.param_groups:
                        group['lr'] = training.lr * _schedule((step + 1) / total)
                    optimizer.zero_grad()
                    F.cross_entropy(probe(tokens), labels).backward()
                    optimizer.step()
                step += 1
    return [probe.eval() for probe in probes]


def _schedule(done: float) -> float:
    """Part of the peak learning rate, by the part of the steps that is done."""
    return done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))


def _parts(indices: torch.Tensor) -> Sequence[torch.Tensor]:
    return indices.split(BATCH_SIZES[1]) if len(indices) else ()


@torch.no_grad()
def _predicted(probe: nn.Module, source: Source, indices: torch.Tensor, training: Training) -> torch.Tensor:
    """Classes of images, by their indices."""
    found = [probe.classes[probe(x.to(training.device)).argmax(1).cpu()] for x, _ in source.batches(_parts(indices))]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long)
