"""BYOL and SimSiam of other packages, as their documentation shows them, for `pretraining`."""

import copy
import importlib.util
from typing import Any, Dict, Sequence, Tuple

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import Dataset

from timm_extra.pretrain import PretrainConfig
from timm_extra.pretrain.data import Collate, MakeViews, Samples, loader
from timm_extra.pretrain.recipes import Schedule, plan
from timm_extra.pretrain.views import RandomView
from timm_extra.training.order import Batches

Views = Sequence[torch.Tensor]


class LightlyBYOL(nn.Module):
    """lightly's heads, loss, moving average and schedule of its decay."""

    package, method = 'lightly', 'byol'

    def __init__(self, model: nn.Module, size: int, heads: Dict[str, int], decay: float, steps: int):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        hidden, out = heads['projection_hidden_size'], heads['projection_size']
        self.online = nn.Sequential(model, BYOLProjectionHead(model.num_features, hidden, out))
        self.predictor = BYOLPredictionHead(out, hidden, out)
        self.target = copy.deepcopy(self.online)
        deactivate_requires_grad(self.target)
        self.similarity, self.decay, self.steps = NegativeCosineSimilarity(), decay, steps

    def forward(self, views: Views) -> torch.Tensor:
        """Mean of both orders of two views (B, C, H, W)."""
        predictions = [self.predictor(self.online(view)) for view in views]
        with torch.no_grad():
            targets = [self.target(view) for view in views]
        return 0.5 * (self.similarity(predictions[0], targets[1]) + self.similarity(predictions[1], targets[0]))

    def after_step(self, step: int) -> None:
        """Move the target."""
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        update_momentum(self.online, self.target, cosine_schedule(step, self.steps, self.decay, 1.0))


class LightlySimSiam(nn.Module):
    """lightly's heads and loss."""

    package, method = 'lightly', 'simsiam'

    def __init__(self, model: nn.Module, size: int, heads: Dict[str, int], decay: float, steps: int):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__()
        out, hidden = heads['projection_size'], heads['prediction_hidden_size']
        self.online = nn.Sequential(model, SimSiamProjectionHead(model.num_features, out, out))
        self.predictor = SimSiamPredictionHead(out, hidden, out)
        self.similarity = NegativeCosineSimilarity()

    def forward(self, views: Views) -> torch.Tensor:
        """Mean of both orders of two views (B, C, H, W)."""
        targets = [self.online(view) for view in views]
        predictions = [self.predictor(target) for target in targets]
        targets = [target.detach() for target in targets]
        return 0.5 * (self.similarity(predictions[0], targets[1]) + self.similarity(predictions[1], targets[0]))

    def after_step(self, step: int) -> None:
        """Nothing follows the network."""


class BYOLPytorch(nn.Module):
    """byol-pytorch's learner, without simplicial embeddings; its decay is constant."""

    package, method = 'byol_pytorch', 'byol'

    def __init__(self, model: nn.Module, size: int, heads: Dict[str, int], decay: float, steps: int):
        from byol_pytorch import BYOL

        super().__init__()
        self.views = iter(())
        ready = dict(augment_fn=lambda images: next(self.views), augment_fn2=lambda images: next(self.views))
        self.views = iter([torch.randn(2, 1, size, size)] * 2)  # its constructor makes a forward pass
        whole = dict(hidden_layer=-1, moving_average_decay=decay, use_simplicial_embeddings=False)
        self.learner = BYOL(nn.Sequential(model, nn.Identity()), size, **heads, **ready, **whole)

    def forward(self, views: Views) -> torch.Tensor:
        """Its loss of two views (B, C, H, W)."""
        self.views = iter(views)
        return self.learner(views[0])

    def after_step(self, step: int) -> None:
        """Move the target."""
        self.learner.update_moving_average()


PEERS = {'lightly BYOL': LightlyBYOL, 'lightly SimSiam': LightlySimSiam, 'byol-pytorch': BYOLPytorch}


def check_installed(methods: Sequence[str]) -> None:
    """Refuse methods of packages that are not there.

    Raises:
        SystemExit: One is not.
    """
    for name in methods:
        if name in PEERS and importlib.util.find_spec(PEERS[name].package) is None:
            raise SystemExit(f'{name} needs a package: pip install {PEERS[name].package.replace("_", "-")}')


def train(
    name: str, model: nn.Module, images: Dataset, config: PretrainConfig, view: RandomView, heads: Dict[str, Any]
) -> Tuple[int, float]:
    """Train by another package on the very batches, views, optimizer and schedule that `pretrain` has.

    Args:
        name: One of `PEERS`.
        model: Trained in place.
        images: Data set of images (C, H, W).
        config: Options of our training.
        view: Makes both views.
        heads: Sizes of the heads, as arguments of our task.

    Returns:
        Steps, and the last loss.
    """
    planned = plan(config, model, images, 1)
    torch.manual_seed(config.seed)
    peer = PEERS[name](model, view.input_size[-1], heads, planned.recipe.decay, planned.steps)
    peer = peer.to(memory_format=torch.channels_last).train()
    settings = planned.recipe
    optimizer = create_optimizer_v2(
        peer, settings.optimizer, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = Schedule(optimizer, planned.steps, round(settings.warmup_epochs * planned.steps_per_epoch))
    batches = Batches(len(images), config.batch_size, steps=(0, planned.steps), seed=config.seed)
    collate = Collate(MakeViews((view, view), config.seed))
    for step, batch in enumerate(loader(Samples(images, view.input_size[0]), batches, collate, workers=0)):
        schedule.set(step)
        loss = peer([one.contiguous(memory_format=torch.channels_last) for one in batch['views']])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peer.after_step(step)
    return planned.steps, loss.item()
