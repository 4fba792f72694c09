"""A case: implementations that compute one thing, ours first."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Callable, Dict, Optional, Tuple

import torch

from .roofline import Work

OURS = 'timm-extra'
Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Ready:
    """An implementation with inputs and weights.

    Attributes:
        call: What is measured.
        checked: What is compared instead, where the measured call draws at random.
        seconds: Measures one call itself, for a call in a process of its own.
    """

    call: Call
    checked: Optional[Call] = None
    seconds: Optional[Callable[[], float]] = None


@dataclass(frozen=True)
class Implementation:
    """One way to compute something.

    Attributes:
        words: What is measured, in words.
        make: Makes inputs and weights on a device ('cpu' or 'cuda'), so that the call does only what is measured.
        baseline: Another computation of like purpose, or a part of ours: measured, but its result is not compared.
        package: Import name of the package that it needs, if any.
    """

    words: str
    make: Callable[[str], 'Call | Ready']
    baseline: bool = False
    package: str = ''

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.package) and find_spec(self.package) is None


@dataclass(frozen=True)
class Case:
    """What is compared and measured.

    Attributes:
        name: Path-like name; cases on one axis share all but its last part.
        implementations: By name, `OURS` first.
        tolerance: Largest difference that counts as correct.
        axis: Name of what grows over several cases, such as 'pixels', and its value here.
        work: Counted work of one call of ours, for the roofline.
        memory: Measure the peak of memory too, in a fresh process for each implementation.
        isolated: Measure times there as well: for sizes at which an implementation may run out of memory.
        large: Too large for `--quick`.
        gpu: Needs a GPU.
    """

    name: str
    implementations: Dict[str, Implementation]
    tolerance: float = 0.0
    axis: Optional[Tuple[str, int]] = None
    work: Optional[Work] = None
    memory: bool = False
    isolated: bool = False
    large: bool = False
    gpu: bool = False

    @property
    def compared(self) -> Dict[str, Implementation]:
        """All but ours and baselines."""
        return {n: one for n, one in self.implementations.items() if n != OURS and not one.baseline}

    @property
    def lacks(self) -> str:
        """The package without which there is no case, if it is not installed: ours takes its weights from there."""
        first = next(iter(self.compared.values()), None)
        return first.package if first and first.missing else ''
