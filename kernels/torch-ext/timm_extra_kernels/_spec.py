"""All operations in one list, which tests, compile gates and benchmarks read."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Tuple

from ._cases import Case
from ._dispatch import Path, why_not


@dataclass(frozen=True)
class OpSpec:
    """One operation: a package of this one with `reference`, `kernel` and `cases`.

    Attributes:
        name: Name of operation, operator, function and package.
        outputs: How many of the operator's outputs its definition has; what follows is for the backward pass.
    """

    name: str
    outputs: int = 1

    @property
    def package(self) -> ModuleType:
        """Its `prepare` checks the arguments of the public function and puts them into the order of the operator;
        `limits` says what the kernels cannot do."""
        return importlib.import_module(f'.{self.name}', __package__)

    @property
    def function(self) -> Callable:
        """The public function."""
        return getattr(self.package, self.name)

    @property
    def reference(self) -> ModuleType:
        """`forward` and `backward` in PyTorch."""
        return self._module('reference')

    @property
    def kernel(self) -> ModuleType:
        """Launchers `forward` and `backward` of the kernels, same arguments as the reference. Imports triton."""
        return self._module('kernel')

    @property
    def definition(self) -> Callable:
        """The mathematics in a few differentiable lines, same arguments as `forward`; what errors are measured by."""
        return self._module('cases').definition

    @property
    def inputs(self) -> Callable[..., Tuple[Any, ...]]:
        """Arguments of the operator for a case, a dtype and a device."""
        return self._module('cases').inputs

    @property
    def backward_args(self) -> Callable[..., Tuple[Any, ...]]:
        """Arguments of `backward` from the gradient of the output and the arguments and outputs of `forward`."""
        return self._module('cases').backward_args

    @property
    def cases(self) -> List[Case]:
        """Small inputs for correctness."""
        return self._module('cases').CASES

    @property
    def sizes(self) -> Dict[str, Tuple[int, int]]:
        """Ranges from which further cases may be drawn."""
        return self._module('cases').SIZES

    @property
    def compiled(self) -> List[Case]:
        """Inputs of the models' sizes, for which the kernels are compiled ahead of time and measured."""
        return self._module('cases').COMPILED

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f'.{self.name}.{name}', __package__)


SPECS = [
    OpSpec('class_attention'),
    OpSpec('fourier_cross_attention'),
    OpSpec('latent_cross_attention'),
    OpSpec('leff_depthwise'),
    OpSpec('leff_depthwise_train', outputs=5),
]


def explain(function: Callable, *args: Any, **kwargs: Any) -> Path:
    """Say which path a call would take and why, without making it.

    Args:
        function: A public function of this package.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        The path.

    Raises:
        ValueError: The function is not one of this package, or it would refuse these arguments.
    """
    for spec in SPECS:
        if spec.function is function:
            reason = why_not(spec.package.limits, spec.package.prepare(*args, **kwargs))
            return Path(spec.name, reason is None, reason or '')
    names: Sequence[str] = [spec.name for spec in SPECS]
    raise ValueError(f'explain knows {", ".join(names)}, not {getattr(function, "__name__", function)!r}')
