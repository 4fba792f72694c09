"""What kernels share that hold rows of many channels: these in pieces, and loops in parts. Imports triton.

Pieces are a tuple of blocks whose widths are powers of 2 (`WIDTHS`), as the sum of the channels need not be one.
"""

import functools
from typing import Tuple

import torch
import triton
import triton.language as tl

from ._target import INTERPRETER, target


@triton.constexpr_function
def _before(widths, i):
    return sum(widths[:i])


@triton.jit
def _load_piece(ptr, rows, at, CP: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    # (rows, WIDTH) of rows of CP elements, from channel `at`; EVEN if it does not end beyond CP
    c = at + tl.arange(0, WIDTH)
    place = ptr + rows[:, None] * CP + c[None, :]
    if EVEN:
        return tl.load(place)
    else:
        return tl.load(place, mask=c[None, :] < CP, other=0.0)


@triton.jit
def load_pieces(ptr, rows, CP: tl.constexpr, WIDTHS: tl.constexpr):
    # all CP channels in pieces, the last of which may reach beyond them
    out = ()
    for i in tl.static_range(len(WIDTHS)):
        out += (_load_piece(ptr, rows, _before(WIDTHS, i), CP, WIDTHS[i], _before(WIDTHS, i + 1) <= CP),)
    return out


@triton.jit
def product(a, b):
    # Σ aᵢ bᵢᵀ over pieces
    s = tl.dot(a[0], tl.trans(b[0]), input_precision='ieee')
    for i in tl.static_range(1, len(b)):
        s = tl.dot(a[i], tl.trans(b[i]), s, input_precision='ieee')
    return s


@triton.jit
def _zero(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    return tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def zero_pieces(ROWS: tl.constexpr, WIDTHS: tl.constexpr):
    out = ()
    for i in tl.static_range(len(WIDTHS)):
        out += (_zero(ROWS, WIDTHS[i]),)  # Triton 3.6 takes no element of a tuple into a list
    return out


@triton.jit
def add_product(sums, weights, values):
    # sumsᵢ + weights @ valuesᵢ
    out = ()
    for i in tl.static_range(len(values)):
        out += (tl.dot(weights, values[i], sums[i], input_precision='ieee'),)
    return out


@triton.jit
def scale_pieces(sums, factor):
    out = ()
    for i in tl.static_range(len(sums)):
        out += (sums[i] * factor,)
    return out


@triton.jit
def store_pieces(ptr, sums, rows, inside, C: tl.constexpr, WIDTHS: tl.constexpr):
    # into rows of C elements
    for i in tl.static_range(len(WIDTHS)):
        c = _before(WIDTHS, i) + tl.arange(0, WIDTHS[i])
        valid = inside[:, None] & (c[None, :] < C)
        tl.store(ptr + rows[:, None] * C + c[None, :], sums[i].to(ptr.dtype.element_ty), mask=valid)


def round_up(size: int, step: int) -> int:
    """The least multiple of `step` that is not smaller."""
    return triton.cdiv(size, step) * step


def split_loop(programs: int, size: int, step: int, device: torch.device) -> Tuple[int, int]:
    """Length of the parts that a loop over `size` is split into, a multiple of its step, and their number."""
    each = _steps_each(programs, triton.cdiv(size, step), _processors(device))
    return each * step, triton.cdiv(triton.cdiv(size, step), each)


@functools.lru_cache(maxsize=4096)
def _steps_each(programs: int, steps: int, processors: int) -> int:
    """Steps of a part, by which all processors finish earliest; what is not a step takes a program four of them."""
    most = min(steps, max(1, triton.cdiv(4 * processors, programs)))
    return min(
        (triton.cdiv(steps, parts) for parts in range(1, most + 1)),
        key=lambda each: triton.cdiv(programs * triton.cdiv(steps, each), processors) * (each + 4),
    )


def _processors(device: torch.device) -> int:
    """Processors of the device; few in the interpreter, so that small inputs are split too."""
    if device.type != 'cuda':
        return 4 if target() == INTERPRETER else 132
    return torch.cuda.get_device_properties(device).multi_processor_count
