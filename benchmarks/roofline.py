"""The roofline: time that counted work takes at best, by bytes moved, operations on matrices and special functions."""

import timeit
from functools import partial
from typing import Any, Callable, NamedTuple, Tuple

import torch

from timm_extra_kernels import linear

RULES = (
    'Counted per forward pass: inputs read once and the result written once; two operations per multiply-add of the '
    'products (of the separated ones for Fourier features); one exponential per score, two error functions per '
    'element of LeFF. A step reads the inputs again and the gradient of the result and writes the gradients of the '
    'inputs, with three times the operations and twice the special functions.'
)


class Work(NamedTuple):
    """Bytes moved, operations of products and special functions: of one call, or of a processor per second."""

    bytes: float
    flops: float
    special: float


def measured_peak(device: str) -> Work:
    """What this processor does per second, the best of a few samples.

    Measured are a copy far larger than caches, a product of square matrices (in float32, on a GPU in bfloat16) and, on
    the CPU, exponentials in cache. A GPU's special functions are counted, 16 a clock on each multiprocessor.
    """
    cuda = device == 'cuda'
    source = torch.ones(2**30 if cuda else 2**27, device=device)
    copied = 2 * source.nbytes / _best(partial(torch.empty_like(source).copy_, source), device)
    side = 8192 if cuda else 2048
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    products = [partial(torch.mm, a, a, out=torch.empty_like(a)), *(() if cuda else (partial(linear, a, a),))]
    multiplied = 2 * side**3 / min(_best(product, device) for product in products)
    if cuda:
        about = torch.cuda.get_device_properties(device)
        return Work(copied, multiplied, about.multi_processor_count * 16 * about.clock_rate * 1e3)  # rate in kHz
    x = torch.linspace(-10, 0, 2**18)
    return Work(copied, multiplied, x.numel() / _best(partial(torch.exp, x, out=torch.empty_like(x)), device, 100))


def _best(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Seconds of one call in the best sample; the first also warms up."""
    if device == 'cuda':
        from triton.testing import do_bench

        return do_bench(call, return_mode='min') / 1e3
    return min(timeit.repeat(call, number=repeats, repeat=4)) / repeats


def roofline(work: Work, per_second: Work) -> Tuple[float, str]:
    """Seconds at best for inputs that come from memory, and what bounds them: 'bytes', 'flops' or 'special'."""
    seconds = {part: amount / rate for part, amount, rate in zip(Work._fields, work, per_second, strict=True)}
    bound = max(seconds, key=seconds.__getitem__)
    return seconds[bound], bound
