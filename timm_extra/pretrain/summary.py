"""What a pretraining is about to do, in a few lines."""

from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch

from .config import PretrainConfig
from .recipes import Plan
from .tasks.task import PretrainingTask


def summary(
    config: PretrainConfig,
    plan: Plan,
    task: PretrainingTask,
    accelerator: Any,
    *,
    model: str,
    images: Optional[int],
    probes: Sequence[str],
    labelled: Sequence[int],
    start: int,
    output: Path,
) -> Dict[str, str]:
    """Rows for `print_summary`.

    Args:
        config: The options.
        plan: Steps and recipe.
        task: The task.
        accelerator: Devices and processes.
        model: Name of the model.
        images: How many there are; None for a stream.
        probes: Names of probes.
        labelled: How many images they learn from and are measured on.
        start: Steps done before.
        output: Folder of the training.

    Returns:
        Words by what they are about.
    """
    recipe, processes = plan.recipe, accelerator.num_processes
    parts = ((processes, 'processes'), (config.grad_accum_steps, 'forward passes'))
    parts = ''.join(f' × {number} {what}' for number, what in parts if number > 1)
    shape = '×'.join(map(str, task.input_size))
    device = str(accelerator.device.type)
    if device == 'cuda':
        device = torch.cuda.get_device_name(accelerator.device)
    preset = f', preset {config.preset}' if config.preset else ''
    return dict(
        model=f'{model}, {sum(p.numel() for p in task.model.parameters()):,} parameters',
        images=f'{"a stream" if images is None else format(images, ",")}, views of {shape}',
        method=(
            f'{config.method}{preset}, {recipe.optimizer}, peak lr {recipe.learning_rate:.3g}, '
            f'weight decay {recipe.weight_decay:.3g}, warm-up {recipe.warmup_epochs:.3g} epochs'
        ),
        steps=(
            f'{plan.steps:,} of {config.batch_size} images{parts}, {plan.steps / plan.steps_per_epoch:.4g} '
            f'epochs of {plan.steps_per_epoch:,}' + (f'; {start:,} done' if start else '')
        ),
        probes=f'{", ".join(probes)}, {" and ".join(f"{n:,}" for n in labelled)} images' if probes else '',
        device=f'{device}, {processes} process{"es" if processes > 1 else ""}, {accelerator.mixed_precision} autocast',
        output=str(output),
    )
