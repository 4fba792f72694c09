"""Gradient checkpointing that counts each batch once."""

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as torch_checkpoint


@contextmanager
def _frozen_running_stats(module: nn.Module) -> Iterator[None]:
    """Normalise by batch statistics as before, but leave running statistics and batch counters as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum = 0.0
        m.num_batches_tracked = m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None
    try:
        yield
    finally:
        for m, (momentum, count) in zip(norms, kept, strict=True):
            m.momentum, m.num_batches_tracked = momentum, count


def _contexts(module: nn.Module):
    return nullcontext(), _frozen_running_stats(module)


def checkpoint(module: nn.Module, *args: Any) -> Any:
    """Run a module without keeping its activations; they are computed again in the backward pass.

    The second forward pass of plain checkpointing updates BatchNorm's running statistics once more, so that a
    checkpointed model evaluates differently from the same model trained without. Here it does not. (The debugging
    backend `torch.compile(backend='eager')` cannot checkpoint a BatchNorm; `inductor` and `aot_eager` can.)

    Args:
        module: Module to run.
        *args: Its positional arguments.

    Returns:
        What the module returns.
    """
    if torch.compiler.is_compiling():  # the compiler saves the statistics' update with the first pass
        return torch_checkpoint(module, *args, use_reentrant=False)
    return torch_checkpoint(module, *args, use_reentrant=False, context_fn=partial(_contexts, module))
