"""Devices, precision and processes, which are Accelerate's."""

from datetime import timedelta
from typing import Optional


def create_accelerator(mixed_precision: Optional[str], cpu: bool):
    """Accelerate's `Accelerator`, set up for pretraining.

    Args:
        mixed_precision: 'no', 'fp16' or 'bf16'; that of `accelerate launch` when None.
        cpu: Stay on the CPU.

    Returns:
        The accelerator.

    Raises:
        ModuleNotFoundError: Accelerate is not installed.
        ValueError: This process already has one with another precision.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('pretraining needs accelerate: pip install "timm-extra[train]"') from e
    # a classifier gets no gradient; statistics are synchronised where they are computed
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    wait = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while the first process probes
    try:
        return Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[ddp, wait])
    except ValueError as e:
        if 'already been initialized' not in str(e):
            raise
        raise ValueError(
            f'this process has used another mixed precision than {mixed_precision!r}: start a new process'
        ) from e
