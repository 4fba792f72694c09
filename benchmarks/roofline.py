"""The least time that counted work allows: bytes moved, operations on matrices, special functions."""

import time
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Tuple

import torch

SAMPLES = 4  # of which the best counts; the first also warms up
RULES = (
    'Counted per forward pass: inputs read once and the result written once; two operations per multiply-add of the '
    'products (of the separated ones for Fourier features); one exponential per score, two error functions per '
    'element of LeFF. A step reads the inputs again and the gradient of the result and writes the gradients of the '
    'inputs, with three times the operations and twice the special functions.'
)


@dataclass(frozen=True)
class Work:
    """What one call cannot do without.

    Attributes:
        bytes: Inputs read once and outputs written once.
        flops: Operations of products, two per multiply-add.
        special: Special functions (exponentials, error functions).
    """

    bytes: float
    flops: float
    special: float


class Peak(NamedTuple):
    """What a machine can do per second: bytes copied, operations on matrices, special functions."""

    bytes: float
    flops: float
    special: float


# 80 GB, SXM: bytes are 0.9 of the 2.0e12 of the datasheet, as a copy has them; dense bfloat16 products are the
# datasheet's; special functions are counted, 16 a clock on each multiprocessor
A100 = Peak(bytes=1.8e12, flops=312e12, special=108 * 16 * 1.41e9)
H100 = Peak(bytes=3.0e12, flops=800e12, special=132 * 16 * 1.755e9)  # copy and products as measured, the rest counted


def measured_peak(device: str) -> Peak:
    """Measure what this machine can do.

    Args:
        device: 'cpu' (products in float32) or 'cuda' (products in bfloat16).

    Returns:
        The best of a few samples of a copy far larger than caches, of a product of square matrices and, on the CPU, of
        exponentials in cache. A GPU's special functions are counted: alone they would wait for memory.
    """
    return Peak(_copied(device), _multiplied(device), _special(device))


def _copied(device: str) -> float:
    source = torch.ones(2**30 if device == 'cuda' else 2**27, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _best(lambda: target.copy_(source), device)


def _multiplied(device: str) -> float:
    side, dtype = (8192, torch.bfloat16) if device == 'cuda' else (2048, torch.float32)
    a = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return 2 * side**3 / _best(lambda: torch.mm(a, a, out=out), device)


def _special(device: str) -> float:
    if device == 'cuda':
        about = torch.cuda.get_device_properties(device)
        return about.multi_processor_count * 16 * about.clock_rate * 1e3  # the rate is in kHz
    x = torch.linspace(-10, 0, 2**18)
    out = torch.empty_like(x)
    return x.numel() / _best(lambda: torch.exp(x, out=out), device, repeats=100)


def _best(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Seconds of one call in the best sample."""
    times = []
    for _ in range(SAMPLES):
        if device == 'cuda':
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / repeats)
    return min(times)


def floor_seconds(work: Work, peak: Peak) -> Tuple[float, str]:
    """Seconds that no implementation can beat on a machine, and what sets them.

    Args:
        work: What is to be done.
        peak: What the machine can do.

    Returns:
        The seconds, and 'bytes', 'flops' or 'special'.
    """
    seconds = {part: getattr(work, part) / getattr(peak, part) for part in Peak._fields}
    bound = max(seconds, key=seconds.__getitem__)
    return seconds[bound], bound
