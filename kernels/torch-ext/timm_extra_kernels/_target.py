"""What the kernels are launched on. Imports triton, so only kernel.py files and what they alone use import it."""

import inspect
import os
from typing import Any, Callable

import triton
import triton.language as tl
from triton.runtime import driver

SIZES = ('B', 'H', 'W', 'C', 'N', 'IMAGES', 'TOKENS', 'PARTS', 'INPUT_PARTS', 'OUTPUT_PARTS')  # as kernels name them
INTERPRETER = 'interpreter'
FUSION = dict(enable_fp_fusion=True)  # of a product and a sum into one instruction, of every launch: defaults differ


def target() -> str:
    """'sm_80', 'sm_90', 'sm_100', 'gfx942' and the like, or 'interpreter' under `TRITON_INTERPRET=1`."""
    if os.environ.get('TRITON_INTERPRET') == '1':
        return INTERPRETER
    current = driver.active.get_current_target()
    return f'sm_{current.arch}' if current.backend == 'cuda' else str(current.arch).split(':')[0]


def any_size(function: Callable) -> Any:
    """Decorate a kernel: compiled once for all `SIZES` and alignments of memory, instead of again where one is 1 or a
    multiple of 16."""
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=SIZES, do_not_specialize_on_alignment=names)
