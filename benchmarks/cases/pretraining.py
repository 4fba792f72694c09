"""Steps of BYOL and SimSiam against byol-pytorch with the same network and heads."""

import copy
import random
from functools import partial
from typing import List, Tuple

import timm
import torch
from torch import nn

from timm_extra.pretrain.tasks import BYOL

from ..case import OURS, Case, Implementation, Ready

BATCH, SIZE = 64, 64
ORIGINAL = 'byol-pytorch'


def _tasks(use_momentum: bool) -> Tuple[BYOL, nn.Module]:
    """Our task and byol-pytorch's learner, with equal weights in network, projector, predictor and target."""
    from byol_pytorch import BYOL as Learner

    torch.manual_seed(0)
    random.seed(0)  # the learner's constructor makes a forward pass with its augmentations
    net = timm.create_model('resnet18', num_classes=0)
    given = dict(hidden_layer='global_pool', use_momentum=use_momentum, use_simplicial_embeddings=False)
    learner = Learner(copy.deepcopy(net), SIZE, **given)
    net.load_state_dict(learner.net.state_dict())  # its constructor changed the statistics
    task = BYOL(net, input_size=(3, SIZE, SIZE), use_momentum=use_momentum, decay=0.99)
    task.trainable_module.projector = copy.deepcopy(learner.online_encoder.projector)
    task.trainable_module.predictor = copy.deepcopy(learner.online_predictor)
    if use_momentum:
        task.target['projector'] = copy.deepcopy(learner.target_encoder.projector)
        task.target['encoder'].model.load_state_dict(learner.target_encoder.net.state_dict())
    return task, learner


def _step(ours: bool, use_momentum: bool, device: str) -> Ready:
    """Augmentation, forward, backward, optimizer and moving average.

    byol-pytorch puts both views into one batch: its losses can be the same in evaluation mode only, where there are no
    batch statistics.
    """
    task, learner = _tasks(use_momentum)
    module = (task if ours else learner).to(device).train()
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    learning = task.trainable_module if ours else learner
    optimizer = torch.optim.SGD([p for p in learning.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    average = task.update_ema if ours else learner.update_moving_average

    def loss(module: nn.Module) -> torch.Tensor:
        return module(images)['loss'] if ours else module(images)

    def call() -> torch.Tensor:
        value = loss(module)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if use_momentum:
            average()
        return value.detach()

    @torch.no_grad()
    def checked() -> torch.Tensor:
        twin = copy.deepcopy(module).eval()
        for name in ('view1', 'view2', 'augment1', 'augment2'):
            if hasattr(twin, name):
                setattr(twin, name, nn.Identity() if name.endswith('1') else _Mirror())
        return loss(twin)

    return Ready(call, checked)


class _Mirror(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)


def _average(who: str, device: str) -> Ready:
    """The moving average of one of both, or a plain copy of as many numbers."""
    task, learner = (module.to(device) for module in _tasks(use_momentum=True))
    if who == ORIGINAL:
        encoder, average = learner.online_encoder.net, learner.update_moving_average
        target = [learner.target_encoder.net, learner.target_encoder.projector]
    else:
        encoder, average = task.trainable_module.encoder, task.update_ema
        target = [task.target['encoder'], task.target['projector']]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    if who == 'copy':
        source = [p.detach() for module in target for p in module.parameters()]
        average = partial(torch._foreach_copy_, [torch.empty_like(p) for p in source], source)

    def call() -> torch.Tensor:
        average()
        return torch.zeros(())

    def checked() -> torch.Tensor:
        average()
        return torch.cat([p.flatten() for module in target for p in module.parameters()])

    return Ready(call, checked)


def _steps(name: str, words: str, other: str, use_momentum: bool) -> Case:
    words = f'{words}, resnet18, {BATCH} images of {SIZE} × {SIZE}: two draws for every image'
    implementations = {
        OURS: Implementation(words, partial(_step, True, use_momentum)),
        ORIGINAL: Implementation(f'byol-pytorch{other}', partial(_step, False, use_momentum), package='byol_pytorch'),
    }
    return Case(f'ssl/{name}/step', implementations, 1e-4)


ONE_DRAW = ' with the same heads: one draw for the whole batch, both views in one batch'
UPDATE = 'update_ema: weights and running statistics of resnet18 and projector'
THEIRS = "byol-pytorch's update_moving_average: weights alone"
AVERAGES = {
    OURS: Implementation(UPDATE, partial(_average, OURS)),
    ORIGINAL: Implementation(THEIRS, partial(_average, ORIGINAL), package='byol_pytorch'),
    'copy': Implementation('a plain copy of as many numbers', partial(_average, 'copy'), baseline=True),
}
CASES: List[Case] = [
    _steps('byol', 'BYOL', ONE_DRAW, use_momentum=True),
    _steps('simsiam', 'BYOL(use_momentum=False)', "'s use_momentum=False with the same heads (SimSiam's)", False),
    Case('ssl/moving-average', AVERAGES, 1e-6),
]
