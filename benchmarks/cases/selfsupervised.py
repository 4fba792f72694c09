"""Steps of BYOL and SimSiam against byol-pytorch, with the same network and heads."""

import copy
import random
from functools import partial
from typing import List, Tuple

import timm
import torch
from torch import nn

from timm_extra.pretrain.tasks import BYOL

from ..harness import Asked, Case, Made, Side

BATCH, SIZE = 64, 64
PEER = 'byol-pytorch'


def _tasks(use_momentum: bool) -> Tuple[BYOL, nn.Module]:
    """Our task and byol-pytorch's learner, with equal weights in network, projector, predictor and target."""
    from byol_pytorch import BYOL as Learner

    torch.manual_seed(0)
    random.seed(0)  # the learner's constructor makes a forward pass with its augmentations
    net = timm.create_model('resnet18', num_classes=0)
    learner = Learner(
        copy.deepcopy(net), SIZE, hidden_layer='global_pool', use_momentum=use_momentum, use_simplicial_embeddings=False
    )
    net.load_state_dict(learner.net.state_dict())  # its constructor changed the statistics
    task = BYOL(net, input_size=(3, SIZE, SIZE), use_momentum=use_momentum, decay=0.99)
    task.trainable_module.projector = copy.deepcopy(learner.online_encoder.projector)
    task.trainable_module.predictor = copy.deepcopy(learner.online_predictor)
    if use_momentum:
        task.target['projector'] = copy.deepcopy(learner.target_encoder.projector)
        task.target['encoder'].model.load_state_dict(learner.target_encoder.net.state_dict())
    return task, learner


def _step(device: str, *, side: str, use_momentum: bool) -> Made:
    """Augmentation, forward, backward, optimizer and moving average.

    byol-pytorch puts both views into one batch: its losses can be the same in evaluation mode only, where there are no
    batch statistics.
    """
    task, learner = _tasks(use_momentum)
    module = (task if side == 'ours' else learner).to(device).train()
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    learning = task.trainable_module if side == 'ours' else learner
    optimizer = torch.optim.SGD([p for p in learning.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    average = task.update_ema if side == 'ours' else learner.update_moving_average

    def loss(module: nn.Module) -> torch.Tensor:
        return module(images)['loss'] if side == 'ours' else module(images)

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

    return Made(call, checked)


class _Mirror(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)


def _average(device: str, *, side: str) -> Made:
    """The moving average alone, or a plain copy of its numbers."""
    task, learner = (module.to(device) for module in _tasks(use_momentum=True))
    if side != 'other':
        encoder, average = task.trainable_module.encoder, task.update_ema
        target: List[nn.Module] = [task.target['encoder'], task.target['projector']]
    else:
        encoder, average = learner.online_encoder.net, learner.update_moving_average
        target = [learner.target_encoder.net, learner.target_encoder.projector]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))

    if side == 'copy':
        source = [p.detach() for module in target for p in module.parameters()]
        copies = [torch.empty_like(p) for p in source]

        def average() -> None:
            torch._foreach_copy_(copies, source)

    def call() -> torch.Tensor:
        average()
        return torch.zeros(())

    def checked() -> torch.Tensor:
        average()
        return torch.cat([p.flatten() for module in target for p in module.parameters()])

    return Made(call, checked)


def _step_case(name: str, ours: str, other: str, speed: float, use_momentum: bool) -> Case:
    sides = [partial(_step, side=side, use_momentum=use_momentum) for side in ('ours', 'other')]
    return Case(
        f'ssl/{name}/step',
        Side(ours, sides[0]),
        {PEER: Side(other, sides[1], package='byol_pytorch')},
        atol=1e-4,
        asked=(Asked('speed', speed, PEER),),
    )


SETTING = f'resnet18, {BATCH} images of {SIZE} × {SIZE}'
CASES = [
    _step_case(
        'byol',
        f"BYOL, {SETTING}: two draws for every image, the paper's views",
        'byol-pytorch with the same heads: one draw for the whole batch, both views in one batch',
        0.95,
        use_momentum=True,
    ),
    _step_case(
        'simsiam',
        f'BYOL(use_momentum=False), {SETTING}: two draws for every image',
        "byol-pytorch's use_momentum=False with the same heads (SimSiam's projector)",
        1.25,
        use_momentum=False,
    ),
    Case(
        'ssl/moving-average',
        Side('update_ema: weights and running statistics of resnet18 and projector', partial(_average, side='ours')),
        {
            PEER: Side(
                "byol-pytorch's update_moving_average: weights alone",
                partial(_average, side='other'),
                package='byol_pytorch',
            ),
            'copy': Side('a plain copy of as many numbers', partial(_average, side='copy'), same=False),
        },
        atol=1e-6,
        asked=(Asked('speed', 4, PEER),),
    ),
]
