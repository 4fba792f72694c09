"""What the `cases` of an operation consist of: inputs on which it is tested, compiled and measured."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

Sizes = Dict[str, Any]
LIBRARY = "PyTorch's fused attention, inputs zero-padded where it needs it"
MATMUL = 'plain matmul, softmax and matmul on tokens that were built and normalised before'


@dataclass(frozen=True)
class Case:
    """Sizes of one set of inputs.

    Attributes:
        name: What is particular about it.
        sizes: What the operation's `inputs` reads.
    """

    name: str
    sizes: Sizes


class Work(NamedTuple):
    """What no way to compute an operation can do without.

    Attributes:
        flops: Operations of products, two per multiply-add.
        special: Special functions (exponentials, error functions).
    """

    flops: int
    special: int


@dataclass(frozen=True)
class Route:
    """Another way to compute an operation, which benchmarks compare it with.

    Attributes:
        words: The way, in words.
        function: Takes what `prepare` returns.
        prepare: Turns the operator's arguments into those of `function` before anything is measured.
        applies: Whether the route differs from the naive form at some sizes.
    """

    words: str
    function: Callable[..., torch.Tensor]
    prepare: Callable[..., Sequence[Any]] = lambda *args: args
    applies: Callable[[Sizes], bool] = lambda sizes: True


@dataclass(frozen=True)
class Sweep:
    """Sizes that vary along one axis after another.

    Attributes:
        held: Sizes that the axes do not change.
        axes: By axis, its values with the sizes that each sets.
        model: Sizes as a model has them, for one more measurement.
    """

    held: Sizes
    axes: Dict[str, Dict[int, Sizes]]
    model: Sizes


@dataclass(frozen=True)
class Benchmark:
    """How an operation is measured.

    Attributes:
        sizes: Inputs of the models' sizes, for the kernels.
        routes: Other ways by name; the naive form is always one.
        forward_routes: Ways that only make sense in the forward pass at the models' sizes.
        sweep: Further sizes, on a CPU too.
        memory: Inputs for which memory is what counts.
        rounding: Results of a step that are not compared, by their place: little more than rounding.
        attention: Makes the operator's arguments into q (B, H, M, D), k, v (B, H, N, D), mask (B, N) or None and scale.
    """

    sizes: List[Case]
    routes: Dict[str, Route] = field(default_factory=dict)
    forward_routes: Dict[str, Route] = field(default_factory=dict)
    sweep: Optional[Sweep] = None
    memory: Optional[Case] = None
    rounding: Tuple[int, ...] = ()
    attention: Optional[Callable[..., Tuple[Any, ...]]] = None


def randn(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Normal values, the same ones on every device (none on the meta device) and, but for rounding, in every dtype."""
    if torch.device(device).type == 'meta':
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device, dtype)
