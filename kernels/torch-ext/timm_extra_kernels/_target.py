"""What the kernels are launched on. Imports triton, so only kernel.py files and what they alone use import it."""

import os

from triton.runtime import driver

INTERPRETER = 'interpreter'
FUSION = dict(enable_fp_fusion=True)  # of a product and a sum into one instruction, of every launch: defaults differ


def target() -> str:
    """'sm_80', 'sm_90', 'sm_100', 'gfx942' and the like, or 'interpreter' under `TRITON_INTERPRET=1`."""
    if os.environ.get('TRITON_INTERPRET') == '1':
        return INTERPRETER
    current = driver.active.get_current_target()
    return f'sm_{current.arch}' if current.backend == 'cuda' else str(current.arch).split(':')[0]
