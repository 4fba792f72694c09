"""Devices, precision, processes and trackers, which are Accelerate's."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Optional

TRACKERS = ('tensorboard', 'wandb', 'trackio')


def create_accelerator(
    mixed_precision: Optional[str], cpu: bool, log_with: Optional[str] = None, folder: Optional[Path] = None
):
    """Accelerate's `Accelerator`, set up for training.

    Args:
        mixed_precision: 'no', 'fp16' or 'bf16'; that of `accelerate launch` when None.
        cpu: Stay on the CPU.
        log_with: One of `TRACKERS`, which a `Log` starts.
        folder: Folder of the training, for trackers that write files.

    Returns:
        The accelerator.

    Raises:
        ModuleNotFoundError: Accelerate or the tracker is not installed.
        ValueError: This process already has one with another precision.
    """
    try:
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('training needs accelerate: pip install "timm-extra[train]"') from e
    if log_with and log_with not in map(str, get_available_trackers()):
        raise ModuleNotFoundError(f'`log_with={log_with!r}` needs {log_with}: pip install {log_with}')
    # a classifier gets no gradient; statistics are synchronised where they are computed
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    wait = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while the first process probes
    try:
        return Accelerator(
            mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[ddp, wait], log_with=log_with, project_dir=folder
        )
    except ValueError as e:
        if 'already been initialized' not in str(e):
            raise
        raise ValueError(
            f'this process has used another mixed precision than {mixed_precision!r}: start a new process'
        ) from e


def in_first_process() -> bool:
    """Whether this process is the one that speaks, before there is an accelerator."""
    return os.environ.get('RANK', '0') == '0'
