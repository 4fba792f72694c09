"""What the kernels are launched on: its name, and what tiles are chosen by."""

import os
from typing import NamedTuple, Optional

import torch

INTERPRETER = 'interpreter'
FUSION = dict(enable_fp_fusion=True)  # of a product and a sum into one instruction, of every launch: defaults differ


class Target(NamedTuple):
    """What a kind of GPU has.

    Attributes:
        name: As `target` gives it.
        unit: What multiplies matrices of 16 bits: 'mma.sync', 'wgmma', 'tcgen05' or 'mfma'; '' where it has nothing
            that the kernels use.
        shared: KiB of shared memory that a block may have.
        warp: Threads of a warp.
    """

    name: str
    unit: str
    shared: int
    warp: int


def target(device: Optional[torch.device] = None) -> str:
    """'sm_80', 'sm_90', 'sm_100', 'gfx942' and the like, or 'interpreter' under `TRITON_INTERPRET=1`.

    Args:
        device: Of a tensor; where that is no GPU, and without one, what Triton compiles for.
    """
    if os.environ.get('TRITON_INTERPRET') == '1':
        return INTERPRETER
    if device is not None and device.type == 'cuda':
        if torch.version.hip is not None:
            return torch.cuda.get_device_properties(device).gcnArchName.split(':')[0]
        major, minor = torch.cuda.get_device_capability(device)
        return f'sm_{major}{minor}'
    from triton.runtime import driver  # which calls on processors do without

    current = driver.active.get_current_target()
    return f'sm_{current.arch}' if current.backend == 'cuda' else str(current.arch).split(':')[0]


def describe(name: str) -> Target:
    """What the GPU of that name has; of one that is not known, the least that its kind has."""
    if name == INTERPRETER:
        return Target(name, name, 64, 32)
    if name.startswith('gfx'):
        matrices = name == 'gfx90a' or name.startswith(('gfx94', 'gfx95'))
        return Target(name, 'mfma' if matrices else '', 160 if name == 'gfx950' else 64, 64 if matrices else 32)
    capability = int(name[3:])
    if capability in (80, 87):
        return Target(name, 'mma.sync', 163, 32)
    unit, shared = {9: ('wgmma', 227), 10: ('tcgen05', 227), 11: ('tcgen05', 227)}.get(
        capability // 10, ('mma.sync', 99)
    )
    return Target(name, unit, shared, 32)
