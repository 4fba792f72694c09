"""How a model was trained: kept in its configuration, said on its card."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Optional

import timm
from torch import nn

from timm_extra.models.info import is_ours

KEY = 'provenance'  # in config.json
# what a configuration of timm says about the weights that come with a name, and not about those of a training
OF_OTHER_WEIGHTS = ('tag', 'license', 'description', 'origin_url', 'notes', 'paper_ids', 'paper_name')
PAPER = ('paper_ids', 'paper_name')


@dataclass(frozen=True)
class Provenance:
    """How weights came about.

    Attributes:
        method: What trained them, as 'BYOL'.
        images: Number of images, or of other inputs; None for a stream of unknown length.
        steps: Optimizer steps.
        epochs: Passes over the images; None where the training was counted in steps.
        base_model: Weights that the training started from, as 'OWNER/NAME' on the Hub or in words; None for random
            ones, or where nothing is known.
        arxiv: Number of the paper of the method.
        kind: What the inputs are, in the plural.
    """

    method: str
    images: Optional[int]
    steps: int
    epochs: Optional[int] = None
    base_model: Optional[str] = None
    arxiv: Optional[str] = None
    kind: str = 'images'

    def __str__(self) -> str:
        steps = f'{self.steps:,} step{"s" * (self.steps != 1)}'
        counted = steps if self.epochs is None else f'{self.epochs} epoch{"s" * (self.epochs != 1)} ({steps})'
        start = f', starting from {self._base()}' if self.base_model else ''
        paper = f' ([arXiv:{self.arxiv}](https://arxiv.org/abs/{self.arxiv}))' if self.arxiv else ''
        inputs = f'a stream of {self.kind}' if self.images is None else f'{self.images:,} {self.kind}'
        return f'{self.method}{paper}: {counted} on {inputs}{start}.'

    def _base(self) -> str:
        linked = f'the weights of [{self.base_model}](https://huggingface.co/{self.base_model})'
        return linked if self.hub_base else str(self.base_model)

    @property
    def hub_base(self) -> Optional[str]:
        """The repository of `base_model`, if it is one."""
        return self.base_model if re.fullmatch(r'[\w.-]+/[\w.-]+', self.base_model or '') else None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Optional['Provenance']:
        """What a configuration says; None if it says nothing, or nothing of this kind."""
        held = config.get(KEY)
        if not isinstance(held, dict) or {'method', 'steps'} - set(held):
            return None
        given = {one.name: held[one.name] for one in fields(cls) if one.name in held}
        known = {'kind': cls.kind, 'images': None, **given}
        numbers = (known['images'] or 0, known['steps'], known.get('epochs') or 0)
        texts = (known['method'], known['kind'], known.get('base_model') or '', known.get('arxiv') or '')
        good = all(isinstance(n, int) for n in numbers) and all(isinstance(t, str) for t in texts)
        return cls(**known) if good and all(re.fullmatch(r'[\w ./-]*', t) for t in texts) else None

    def write(self, config: Dict[str, Any]) -> None:
        """Put it into a configuration, and leave out what that says about weights which the training replaced.

        The paper of the architecture stays in those of this package's models; timm's name the paper of the weights.
        """
        config[KEY] = {name: value for name, value in asdict(self).items() if value is not None}
        for name in OF_OTHER_WEIGHTS:
            if name not in PAPER or not is_ours(config['architecture']):
                config['pretrained_cfg'].pop(name, None)


def base_model(name: str, model: nn.Module, pretrained: bool) -> Optional[str]:
    """What a card calls the weights that a training starts from.

    Args:
        name: As `timm.create_model` took it.
        model: The model that it gave.
        pretrained: Whether it was to load weights; folders and repositories always do.

    Returns:
        A repository of the Hub, words where the weights are a file's, or None for random weights.
    """
    kind, _, place = name.partition(':')
    if kind == 'hf-hub' and place:
        return place.partition('@')[0]
    cfg: Dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    if kind == 'local-dir' and place:
        return f'saved weights of {cfg.get("architecture")}'
    if not pretrained or not timm.is_model(name):
        return None
    return cfg.get('hf_hub_id') or f'weights of {cfg.get("architecture")}'
