"""Steps of BYOL and SimSiam against byol-pytorch, with the same network and heads."""

import copy
from typing import Any, Callable, List

import timm
import torch
from torch import nn

from timm_extra.tasks import BYOL

from .harness import Pair

BATCH, SIZE = 64, 64


def _tasks(use_momentum: bool):
    """Our task and byol-pytorch's learner, with equal weights in network, projector, predictor and target."""
    from byol_pytorch import BYOL as Learner

    torch.manual_seed(0)
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


def _step_pair(device: str, use_momentum: bool) -> Pair:
    """Augmentation, forward, backward, optimizer and moving average."""
    task, learner = _tasks(use_momentum)
    task, learner = task.to(device).train(), learner.to(device).train()
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)

    def step(forward: Callable[[], torch.Tensor], module: nn.Module, update: Callable[[], Any]):
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1e-3, momentum=0.9)

        def call() -> torch.Tensor:
            loss = forward()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update()
            return loss.detach()

        return call

    def loss_without_batch_statistics(module: nn.Module, forward: Callable[[], torch.Tensor]):
        """byol-pytorch puts both views into one batch: its losses can be the same in evaluation mode only."""

        @torch.no_grad()
        def call() -> torch.Tensor:
            twin = copy.deepcopy(module).eval()
            for name in ('view1', 'view2', 'augment1', 'augment2'):
                if hasattr(twin, name):
                    setattr(twin, name, nn.Identity() if name.endswith('1') else _Mirror())
            return forward(twin)

        return call

    def nothing() -> None:
        pass

    moving = (task.update_ema, learner.update_moving_average) if use_momentum else (nothing, nothing)
    return Pair(
        step(lambda: task(images)['loss'], task.trainable_module, moving[0]),
        step(lambda: learner(images), learner, moving[1]),
        checked=(
            loss_without_batch_statistics(task, lambda twin: twin(images)['loss']),
            loss_without_batch_statistics(learner, lambda twin: twin(images)),
        ),
    )


class _Mirror(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)


def _average_pair(device: str) -> Pair:
    """The moving average alone."""
    task, learner = (side.to(device) for side in _tasks(use_momentum=True))
    with torch.no_grad():
        for side in (task.trainable_module, learner.online_encoder):
            generator = torch.Generator().manual_seed(1)
            for p in side.encoder.parameters() if side is task.trainable_module else side.net.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))

    def weights(modules: List[nn.Module]) -> torch.Tensor:
        return torch.cat([p.flatten() for m in modules for p in m.parameters()])

    def checked(update: Callable[[], Any], modules: List[nn.Module]):
        def call() -> torch.Tensor:
            update()
            return weights(modules)

        return call

    def timed(update: Callable[[], Any]):
        def call() -> torch.Tensor:
            update()
            return torch.zeros(())

        return call

    target = learner.target_encoder
    return Pair(
        timed(task.update_ema),
        timed(learner.update_moving_average),
        checked=(
            checked(task.update_ema, [task.target['encoder'], task.target['projector']]),
            checked(learner.update_moving_average, [target.net, target.projector]),
        ),
    )


def register(case: Callable[..., Callable]) -> None:
    """Add the cases to the registry."""
    setting = f'resnet18, {BATCH} images of {SIZE} × {SIZE}'
    case(
        'ssl/byol/step',
        ours=f"BYOL, {setting}: two draws for every image, the paper's views",
        other='byol-pytorch with the same heads: one draw for the whole batch, both views in one batch',
        atol=1e-4,
    )(lambda device: _step_pair(device, use_momentum=True))
    case(
        'ssl/simsiam/step',
        ours=f'BYOL(use_momentum=False), {setting}: two draws for every image',
        other="byol-pytorch's use_momentum=False with the same heads (SimSiam's projector)",
        atol=1e-4,
    )(lambda device: _step_pair(device, use_momentum=False))
    case(
        'ssl/moving-average',
        ours='update_ema: weights and running statistics of resnet18 and projector',
        other="byol-pytorch's update_moving_average: weights alone",
        atol=1e-6,
    )(_average_pair)
