"""A case: implementations that compute one thing, ours first."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Callable, Dict, Optional, Tuple

import torch

from .roofline import Work

OURS = 'timm-extra'
Call = Callable[[], torch.Tensor]


def images(count: int, device: str, size: int = 224) -> torch.Tensor:
    """The same random images (count, 3, size, size) for all implementations."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


@dataclass(frozen=True)
class Ready:
    """An implementation with inputs and weights."""

    call: Call  # what is measured
    checked: Optional[Call] = None  # what is compared instead, where that draws at random or holds several results
    seconds: Optional[Callable[[], float]] = None  # measures one call itself, for one in a process of its own


@dataclass(frozen=True)
class Implementation:
    """One way to compute something; `make` makes weights and inputs, so that a call does only what is measured."""

    words: str  # what is measured
    make: Callable[[str], 'Call | Ready']  # on a device, 'cpu' or 'cuda'
    baseline: bool = False  # another computation of like purpose: its result is not compared
    package: str = ''  # import name of what it needs
    peer: bool = False  # another library's: that it refuses, or is wrong, is not our failure

    def ready(self, device: str) -> Ready:
        """It with inputs and weights, on a device."""
        made = self.make(device)
        return made if isinstance(made, Ready) else Ready(made)

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.package) and find_spec(self.package) is None


@dataclass(frozen=True)
class Case:
    """What is compared and measured; on an axis, cases share all but the last part of their names."""

    name: str
    implementations: Dict[str, Implementation]  # by name, `OURS` first
    tolerance: float = 0.0  # largest difference that counts as correct
    axis: Optional[Tuple[str, int]] = None  # what grows over several cases, such as 'pixels', and its value here
    work: Optional[Work] = None  # of one call of ours, for the roofline
    memory: bool = False  # measure the peak of memory too, in a fresh process for each implementation
    isolated: bool = False  # measure times there as well: for sizes at which one may run out of memory
    large: bool = False  # too large for --quick
    gpu: bool = False  # needs one

    @property
    def about(self) -> Dict[str, Any]:
        """What a result says of it."""
        found = dict(implementations={name: one.words for name, one in self.implementations.items()})
        return found | {key: value for key, value in (('axis', self.axis), ('work', self.work)) if value}

    @property
    def compared(self) -> Dict[str, Implementation]:
        """All but ours and baselines."""
        return {n: one for n, one in self.implementations.items() if n != OURS and not one.baseline}

    @property
    def lacks(self) -> str:
        """The package without which there is no case, if it is not installed: ours takes its weights from there."""
        first = next(iter(self.compared.values()), None)
        return first.package if first and first.missing else ''
