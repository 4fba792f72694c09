"""The options of a fine-tuning, in one place."""

import math
from dataclasses import dataclass, fields
from typing import Any, Dict, Optional, Tuple

from timm_extra.training.accelerator import TRACKERS
from timm_extra.training.option import check_choices, option

ON_UNREADABLE = ('raise', 'skip')
AUGMENTATION = 'images: augmentation'
POSITIVE = ('epochs', 'batch_size', 'checkpoint_interval', 'checkpoint_hist', 'log_interval', 'lr', 'clip_grad')
FRACTIONS = ('smoothing', 'hflip', 'vflip', 'reprob', 'model_ema_decay')
# of which the result does not depend: all others have to be the same in a training that is resumed
FREE = ('checkpoint_interval', 'checkpoint_hist', 'resume', 'log_interval', 'log_with', 'workers', 'device')


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How to fine-tune; every option has its help beside it, and its name from timm's train.py.

    The options of `timm-extra finetune` and the table in docs/finetuning.md are made from these fields.

    Raises:
        ValueError: A value is out of range.
    """

    epochs: int = option(10, 'Passes over the training files.')
    batch_size: int = option(64, 'Files per step, all of them where there are fewer.', flags=('-b', '--batch-size'))
    opt: str = option('adamw', 'Name of a timm optimizer.')
    lr: Optional[float] = option(
        None, 'Peak learning rate, used as it is.', none='1e-4 for loaded weights, 1e-3 for random ones'
    )
    weight_decay: float = option(0.05, 'Weight decay.')
    layer_decay: Optional[float] = option(
        None, 'Learning rate of a layer as a fraction of that of the layer above it.', none='1, for all the same'
    )
    warmup_epochs: Optional[float] = option(
        None, 'Epochs of linear warm-up; then the learning rate falls along a cosine.', none='1, and 0 of one epoch'
    )
    clip_grad: Optional[float] = option(None, 'Clip the norm of the gradient to this value.', none='no clipping')
    smoothing: float = option(0.1, 'Label smoothing.')
    mixup: float = option(0.0, 'Alpha of mixup, which blends inputs and their classes; 0 for none.')
    cutmix: float = option(0.0, 'Alpha of cutmix, which pastes a part of another image; 0 for none.')
    model_ema: bool = option(False, 'Evaluate and save a moving average of the weights.')
    model_ema_decay: float = option(0.9998, 'Decay of that average, reached slowly.')
    scale: Tuple[float, float] = option(
        (0.08, 1.0),
        'Smallest and largest area of random crops, as fractions of the image.',
        metavar=('MIN', 'MAX'),
        group=AUGMENTATION,
    )
    ratio: Tuple[float, float] = option(
        (0.75, 1.3333), 'Smallest and largest aspect ratio of the crops.', metavar=('MIN', 'MAX'), group=AUGMENTATION
    )
    hflip: float = option(0.5, 'Probability of mirroring left and right.', group=AUGMENTATION)
    vflip: float = option(0.0, 'Probability of mirroring top and bottom.', group=AUGMENTATION)
    color_jitter: float = option(0.4, 'Strength of random changes of colour; 0 for none.', group=AUGMENTATION)
    aa: Optional[str] = option(
        None, 'AutoAugment policy of timm, such as rand-m9-mstd0.5-inc1.', none='none', group=AUGMENTATION
    )
    reprob: float = option(0.0, 'Probability of erasing a random rectangle.', group=AUGMENTATION)
    holdout: float = option(
        0.2, 'Part of each class that is held out to measure accuracy, where the folder has no validation/.'
    )
    unreadable: str = option(
        'raise', 'What to do with a file that cannot be read: stop, or skip it and count it.', choices=ON_UNREADABLE
    )
    checkpoint_interval: Optional[int] = option(None, 'Steps between checkpoints.', none='one epoch')
    checkpoint_hist: int = option(2, 'Number of latest checkpoints to keep. The best model is kept anyway.')
    resume: bool = option(False, 'Continue from the last checkpoint in the output folder, if there is one.')
    log_interval: int = option(10, 'Steps between losses shown.')
    log_with: Optional[str] = option(None, 'Tracker that gets the rows of log.csv, too.', none='none', choices=TRACKERS)
    mixed_precision: Optional[str] = option(
        None, 'Precision of autocast.', none="accelerate's", choices=('no', 'fp16', 'bf16')
    )
    device: str = option('auto', 'cpu, cuda, cuda:1, mps; auto takes the fastest.')
    workers: int = option(4, 'Processes that read files.', flags=('-j', '--workers'))
    seed: int = option(0, 'Random seed of new weights, order, augmentation and of what is held out.')

    def __post_init__(self):
        for name in ('scale', 'ratio'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_choices(self)
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f'`{name}` must be positive, got {value}')
        for name in FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'`{name}` must be in 0 to 1, got {getattr(self, name)}')
        for name in ('weight_decay', 'mixup', 'cutmix', 'color_jitter', 'workers'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'`{name}` must be finite and not negative, got {getattr(self, name)}')
        for name in ('scale', 'ratio'):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf or (name == 'scale' and high > 1):
                raise ValueError(f'`{name}` must be a range of positive numbers, of scale up to 1, got {low} {high}')
        if not 0 < self.holdout < 1:
            raise ValueError(f'`holdout` must be between 0 and 1, got {self.holdout}')
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f'`layer_decay` must be above 0 and at most 1, got {self.layer_decay}')
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f'`warmup_epochs` must be at least 0 and less than `epochs`, got {self.warmup_epochs}')
        if not 0 <= self.seed < 2**32:
            raise ValueError(f'`seed` must be between 0 and 2**32 - 1, got {self.seed}')
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f'`mixup` and `cutmix` need an even `batch_size`, got {self.batch_size}')

    def image_augmentation(self) -> Dict[str, Any]:
        """Arguments of timm's `create_transform` for training."""
        return dict(
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            color_jitter=self.color_jitter or None,
            auto_augment=self.aa,
            re_prob=self.reprob,
        )

    def settings(self) -> Dict[str, Any]:
        """Options that the result depends on."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in FREE}
