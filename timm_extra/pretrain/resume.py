"""What the result of a pretraining depends on, and which trainings a checkpoint goes on with."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

from torch import nn

from timm_extra.training import checkpoints

from .config import PretrainConfig, task_defaults, task_parameters
from .recipes import Plan
from .tasks.task import View

OPTIONS = {'recipe.optimizer': 'opt', 'recipe.learning_rate': 'lr'}  # that settings are made from under another name
OPTIONS.update({name: name.removeprefix('recipe.') for name in ('recipe.weight_decay', 'recipe.warmup_epochs')})


def task_arguments(config: PretrainConfig, plan: Plan) -> Dict[str, Any]:
    """Arguments of the method's task, but for views: what is given, else what the plan says."""
    planned = dict(decay=plan.recipe.decay, num_steps=plan.steps, hidden_layer=None)
    known = {name: value for name, value in planned.items() if name in task_parameters(config.method)}
    return {**known, **config.task_arguments()}


def settings_of(
    config: PretrainConfig,
    plan: Plan,
    model: nn.Module,
    images: Optional[int],
    arguments: Dict[str, Any],
    views: Tuple[View, ...],
    files: str = '',
) -> Dict[str, Any]:
    """All that the result depends on; resuming refuses other values. Keys are part of the format of checkpoints.

    Args:
        config: The options.
        plan: Steps and recipe.
        model: The model.
        images: How many there are; None if they stream and it is not known.
        arguments: Of the task.
        views: Augmentations of the task.
        files: What stands for the images, where a data set has that.

    Returns:
        Settings that a checkpoint can hold.
    """
    views = {f'view{number}': view for number, view in enumerate(views, 1)}
    return dict(
        method=config.method,
        model=(getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__,
        images=images,
        images_per_step=plan.images_per_step,
        steps=plan.steps,
        seed=config.seed,
        clip_grad=config.clip_grad,
        **{f'recipe.{name}': value for name, value in asdict(plan.recipe).items()},
        **{name: checkpoints.described(value) for name, value in {**arguments, **views}.items()},
        **(dict(files=files) if files else {}),
    )


def check_resumes(
    saved: Dict[str, Any], settings: Dict[str, Any], settings_at: Callable[[int], Dict[str, Any]], folder: Path
) -> str:
    """Refuse a checkpoint of another training; a finished one may go on with more steps.

    Args:
        saved: The checkpoint.
        settings: Settings now.
        settings_at: What they would be for another number of steps.
        folder: Folder of the training.

    Returns:
        What more steps change, in words; nothing if the training goes on as it was.

    Raises:
        ValueError: The checkpoint belongs to another training, there are fewer steps than those done, or other steps
            for a training that is not finished.
    """
    done, now = saved['step'], settings['steps']
    was = saved['settings'].get('steps', now)
    same = saved['settings'].get('method') == settings['method']
    defaults = task_defaults(settings['method']) if same else {}
    wrong = checkpoints.differences(saved['settings'], settings_at(was), OPTIONS, defaults)
    if wrong:
        raise ValueError(f'the checkpoint in {folder} is of another training: {"; ".join(wrong)}')
    if now < done:
        raise ValueError(f'{folder} has done {done} steps already, got {now}: give more `epochs` or `num_train_steps`')
    if now != was and done < was:
        raise ValueError(
            f'{folder} has done {done} of {was} steps, got {now}: `resume=True` with as many `epochs` or '
            '`num_train_steps` as before, then with more'
        )
    if now == was:
        return ''
    before = saved['settings']
    recipe = [name for name in settings if name.startswith('recipe.') and settings[name] != before[name]]
    changed = ''.join(
        f', {name.removeprefix("recipe.")} from {before[name]:.3g} to {settings[name]:.3g}' for name in recipe
    )
    return f'the learning rate schedule changes: from {was} to {now} steps{changed}'
