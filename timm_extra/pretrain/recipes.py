"""Optimizers and schedules as published."""

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import Dataset

from timm_extra.training.order import steps_per_epoch

from .config import PretrainConfig
from .presets import PRESETS, Preset
from .streams import length_of

# BYOL's code, configs/byol.py: epochs to learning rate for 256 images, weight decay, τ₀
BYOL_PRESETS = {
    40: (0.45, 1e-6, 0.97),
    100: (0.45, 1e-6, 0.99),
    300: (0.3, 1e-6, 0.99),
    1000: (0.2, 1.5e-6, 0.996),
}

# PixPro's section 4.1, and tools/pixpro_base_r50_100ep.sh of its code: the same, and epochs of warm-up
PIXPRO = (1.0, 1e-5, 0.99, 5)

WITH_BATCHNORM = {'byol': 'lars', 'simsiam': 'momentum', 'pixpro': 'lars'}  # others than AdamW
LARS = ('lars', 'larc')
SGD = ('sgd', 'momentum', 'nesterov')


@dataclass(frozen=True)
class Settings:
    """How to optimize.

    Attributes:
        optimizer: timm's name.
        learning_rate: Peak.
        weight_decay: Weight decay.
        warmup_epochs: Epochs over which the rate rises from 0; then it falls along a cosine to 0.
        decay: τ₀ of BYOL's and PixPro's target.
        decay_norms: Weight decay on vectors (biases, norms), too.
        fixed_predictor: The predictor keeps the peak rate.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    decay: float = 0.996
    decay_norms: bool = False
    fixed_predictor: bool = False


def settings(
    method: str, model: nn.Module, epochs: float, images_per_step: int = 256, optimizer: Optional[str] = None
) -> Settings:
    """The published settings of BYOL, SimSiam and PixPro; for denoising our own, as none are published.

    Models with BatchNorm: LARS for BYOL, by the nearest shorter preset of `BYOL_PRESETS`, and for PixPro; SGD for
    SimSiam, whose predictor keeps its rate and whose weight decay is on everything. Models without, as ViTs, and
    `optimizer='adamw'`: MoCo v3's AdamW (https://arxiv.org/abs/2104.02057). Denoising: AdamW at 5e-4 with weight decay
    0.05.

    Args:
        method: 'byol', 'simsiam', 'glom' or 'pixpro'.
        model: The model.
        epochs: Passes over the data.
        images_per_step: Images per step of the optimizer; rates are for 256 and scaled by them.
        optimizer: timm's name of another optimizer.

    Returns:
        The settings; warm-ups of 10 epochs (BYOL, denoising), 5 (PixPro) and 40 (MoCo v3) are shortened to a tenth of
        shorter trainings. The rate is NaN for an optimizer that there is none for: LARS for BYOL and PixPro, SGD for
        SimSiam, Adam's for all.
    """
    preset = (*BYOL_PRESETS[max([e for e in BYOL_PRESETS if e <= epochs], default=min(BYOL_PRESETS))], 10)
    if method == 'pixpro':
        preset = PIXPRO
    decay, scale = preset[2], images_per_step / 256
    batch_normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if optimizer is None:
        optimizer = WITH_BATCHNORM.get(method, 'adamw') if batch_normed else 'adamw'
    optimizer = optimizer.lower()
    if method == 'glom' and 'adam' in optimizer:
        return Settings(optimizer, 5e-4 * scale, 0.05, min(10, epochs / 10))
    if 'adam' in optimizer:
        return Settings(optimizer, 1.5e-4 * scale, 0.1, min(40, epochs / 10), decay)
    if method == 'simsiam' and optimizer in SGD:
        return Settings(optimizer, 0.05 * scale, 1e-4, 0, decay_norms=True, fixed_predictor=True)
    warmup = min(preset[3], epochs / 10)
    if method in ('byol', 'pixpro') and optimizer in LARS:
        return Settings(optimizer, preset[0] * scale, preset[1], warmup, decay)
    return Settings(optimizer, math.nan, preset[1], warmup, decay)


def settings_of_preset(
    preset: Preset, epochs: float, images_per_step: int = 256, optimizer: Optional[str] = None
) -> Settings:
    """Settings of a preset.

    Args:
        preset: The preset.
        epochs: Passes over the data.
        images_per_step: Images per step of the optimizer.
        optimizer: timm's name of another optimizer than the preset's: the rate is NaN then.

    Returns:
        The settings.
    """
    own = optimizer is None or optimizer.lower() == preset.optimizer
    rate = preset.learning_rate * images_per_step / 256 if own else math.nan
    name = preset.optimizer if own else optimizer.lower()
    return Settings(name, rate, preset.weight_decay, preset.warmup * epochs, preset.decay)


class Plan(NamedTuple):
    """How long a training is, and how it is optimized.

    Attributes:
        steps: Optimizer steps.
        steps_per_epoch: Of them in an epoch.
        images_per_step: Images of all processes and forward passes of a step.
        recipe: Settings of the optimizer.
    """

    steps: int
    steps_per_epoch: int
    images_per_step: int
    recipe: Settings


def plan(config: PretrainConfig, model: nn.Module, dataset: Dataset, processes: int) -> Plan:
    """The published settings or those of a preset, but for what the options set.

    Args:
        config: The options.
        model: The model.
        dataset: The images.
        processes: How many processes share a step.

    Returns:
        The plan.

    Raises:
        ValueError: There is no published learning rate and none in the options, the data set is too small, or it
            streams, and neither its length nor the steps are known.
    """
    images = config.batch_size * processes * config.grad_accum_steps
    length = length_of(dataset)
    if length is None and config.num_train_steps is None:
        raise ValueError('the images stream, and how many there are is not known: give `num_train_steps`, not `epochs`')
    # a training on a stream of unknown length is one pass
    each = config.num_train_steps if length is None else steps_per_epoch(length, images)
    steps = config.epochs * each if config.num_train_steps is None else config.num_train_steps
    given = dict(learning_rate=config.lr, weight_decay=config.weight_decay, warmup_epochs=config.warmup_epochs)
    if config.preset:
        recipe = settings_of_preset(PRESETS[config.preset], steps / each, images, config.opt)
    else:
        recipe = settings(config.method, model, steps / each, images, config.opt)
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    if math.isnan(recipe.learning_rate):
        if config.preset:
            raise ValueError(f'`preset` {config.preset!r} has no learning rate for {recipe.optimizer!r}: give `lr`')
        raise ValueError(f'no learning rate is published for {config.method} with {recipe.optimizer!r}: give `lr`')
    return Plan(steps, each, images, recipe)


def build_optimizer(online: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Optimizer of an encoder and its heads.

    LARS adapts the rates of those tensors only that have weight decay, as published.

    Args:
        online: The network that learns, as `trainable_module` of a task.
        settings: How.

    Returns:
        The optimizer.
    """
    names = getattr(online.encoder.model, 'no_weight_decay', set)()
    groups: List[Dict[str, Any]] = []
    for name, module in online.named_children():
        fixed = settings.fixed_predictor and name == 'predictor'
        found = param_groups_weight_decay(
            module,
            settings.weight_decay,
            weight_decay_exclude_1d=not settings.decay_norms,
            no_weight_decay_list=tuple(f'model.{n}' for n in names),
        )
        groups += [dict(group, fixed_lr=fixed) for group in found]
    return create_optimizer_v2(
        groups,
        settings.optimizer,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        filter_bias_and_bn=False,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: Dict[str, Any]) -> None:
    """Load an optimizer's state, but for what its recipe says: a training of more steps may have another.

    Args:
        optimizer: Of `build_optimizer`, with a `Schedule`.
        state: State of an optimizer of the same tensors.
    """
    own = [{name: group[name] for name in ('initial_lr', 'weight_decay')} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


class Schedule:
    """Learning rates by step: from 0 to the peak, and along a cosine to 0.

    Args:
        optimizer: Optimizer.
        steps: All steps.
        warmup: Steps of the rise.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, warmup: int):
        self.optimizer = optimizer
        self._cosine = CosineLRScheduler(
            optimizer,
            t_initial=max(steps - warmup, 1),
            warmup_t=warmup,
            warmup_lr_init=0.0,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def set(self, step: int) -> float:
        """Set the rates of a step, counted from 0, and give that of the encoder."""
        self._cosine.step_update(step)
        for group in self.optimizer.param_groups:
            if group.get('fixed_lr'):
                group['lr'] = group['initial_lr']
        return self.optimizer.param_groups[0]['lr']
