"""Named settings beside the published ones, which are for photographs of 224 × 224 and hundreds of epochs."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Dict, Mapping, Tuple

from .views import Recipe


@dataclass(frozen=True)
class Preset:
    """What a preset sets; options that are given go before it.

    Attributes:
        views: Recipes of both views.
        optimizer: timm's name.
        learning_rate: Peak, for 256 images per step.
        weight_decay: Weight decay.
        warmup: Warm-up, as a part of the training.
        decay: τ₀ of BYOL's target.
        task_args: More arguments of the task, by the methods that the preset is for.
    """

    views: Tuple[Recipe, Recipe]
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup: float
    decay: float
    task_args: Mapping[str, Mapping[str, Any]]


# crops that still show most of the object, strong jitter, no blur of details that are one pixel wide, smaller heads:
# docs/pretraining.md says what it was measured on
_SMALL = Recipe(scale=(0.7, 1.0), ratio=(4 / 5, 5 / 4), jitter=1.0, brightness=0.5, contrast=0.8, blur=0.0)
PRESETS: Dict[str, Preset] = {
    'small-images': Preset(
        views=(_SMALL, _SMALL),
        optimizer='adamw',
        learning_rate=8e-3,
        weight_decay=1e-2,
        warmup=0.05,
        decay=0.99,
        task_args=MappingProxyType(
            dict(
                byol=dict(projection_size=128, projection_hidden_size=512),
                simsiam=dict(projection_size=512, prediction_hidden_size=128),
            )
        ),
    )
}
