"""All operations in one list, which tests, compile gates, `doctor`, FLOP counts, layers and benchmarks read."""

import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from ._cases import Benchmark, Case, Work
from ._dispatch import Limits, Path
from ._ops import ops
from .linear import explain as explain_linear
from .linear import linear


@dataclass(frozen=True)
class OpSpec:
    """One operation: a package of this one with the modules `naive`, `eager`, `cases` and `kernel`.

    Attributes:
        name: Name of operation, operator, function and package.
        layer: Name of its stateless layer.
        counted: Whether its products are part of a model's FLOPs.
    """

    name: str
    layer: str
    counted: bool = False

    @property
    def package(self) -> ModuleType:
        """Its `prepare` checks the arguments of the public function and puts them into the order of the operator."""
        return importlib.import_module(f'.{self.name}', __package__)

    @property
    def outputs(self) -> int:
        """How many of the operator's outputs its naive form has; what follows is for the backward pass."""
        return self.package.OPERATORS.returned

    @property
    def function(self) -> Callable:
        """The public function."""
        return getattr(self.package, self.name)

    @property
    def operator(self) -> Callable:
        """The operator that the function calls."""
        return getattr(ops, self.name)

    @property
    def backward_operator(self) -> Callable:
        """The operator that its backward pass calls."""
        return getattr(ops, f'{self.name}_backward')

    @property
    def exported_operator(self) -> Callable:
        """The operator that programs of `torch.export` hold."""
        return getattr(ops, f'{self.name}_exported')

    @property
    def limits(self) -> Limits:
        """Says what the kernels cannot do, from arguments of either operator that it picks by their names."""
        return self.package.limits

    @property
    def naive(self) -> ModuleType:
        """`forward`: the mathematics in a few differentiable lines; what errors are measured by."""
        return self._module('naive')

    @property
    def eager(self) -> ModuleType:
        """`forward` and `backward` in PyTorch, fast and in bounded memory."""
        return self._module('eager')

    @property
    def kernel(self) -> ModuleType:
        """Launchers `forward` and `backward` of the kernels, same arguments as the eager form. Imports triton."""
        return self._module('kernel')

    @property
    def inputs(self) -> Callable[..., Tuple[Any, ...]]:
        """Arguments of the operator for a case, a dtype and a device."""
        return self._module('cases').inputs

    def backward_args(self, grad: torch.Tensor, args: Sequence[Any], outs: Any) -> List[Any]:
        """Arguments of the backward operator, for the gradients of all inputs.

        Args:
            grad: Gradient of the first output.
            args: Arguments of the operator.
            outs: What it returned.
        """
        operators = self.package.OPERATORS
        return [grad, *operators.kept(args, outs), *(True for _ in operators.flags)]

    @property
    def example(self) -> Callable[..., Tuple[Tuple[Any, ...], Dict[str, Any]]]:
        """Arguments and keyword arguments of the function on a device, of the shapes that a model has."""
        return self._module('cases').example

    def work(self, args: Sequence[Any]) -> Work:
        """What a call takes at least.

        Args:
            args: Arguments of the operator; shapes may stand in the place of tensors.
        """
        return self._module('cases').work(*_shapes(args))

    def flops(self, *args: Any, **kwargs: Any) -> int:
        """Operations of products, called as `torch.utils.flop_counter` does."""
        return self.work(args).flops

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
        """Inputs of the models' sizes, for which the kernels are compiled ahead of time."""
        return self._module('cases').COMPILED

    @property
    def benchmark(self) -> Benchmark:
        """What is measured, and what it is compared with."""
        return self._module('cases').BENCHMARK

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f'.{self.name}.{name}', __package__)


SPECS = [
    OpSpec('class_attention', 'ClassAttention'),
    OpSpec('fourier_cross_attention', 'FourierCrossAttention', counted=True),
    OpSpec('grid_query_attention', 'GridQueryAttention', counted=True),
    OpSpec('latent_cross_attention', 'LatentCrossAttention', counted=True),
    OpSpec('leff_depthwise', 'LeFFDepthwise'),
    OpSpec('leff_depthwise_train', 'LeFFDepthwiseTrain'),
]


def _shapes(args: Sequence[Any]) -> List[Any]:
    return [a.shape if isinstance(a, torch.Tensor) else _shapes(a) if isinstance(a, (list, tuple)) else a for a in args]


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
            given = inspect.signature(function).bind(*args, **kwargs)
            given.apply_defaults()
            reason = spec.package.OPERATORS.dispatcher.why_not(spec.package.prepare(**given.arguments))
            return Path(spec.name, reason is None, reason or '')
    if function is linear:
        return explain_linear(*args, **kwargs)
    names: Sequence[str] = [*(spec.name for spec in SPECS), 'linear']
    raise ValueError(f'explain knows {", ".join(names)}, not {getattr(function, "__name__", function)!r}')
