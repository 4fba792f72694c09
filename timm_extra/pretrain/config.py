"""The options of a pretraining, in one place."""

import inspect
from dataclasses import dataclass, fields
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import yaml

from timm_extra._files import PathLike, atomic_file
from timm_extra.training.accelerator import TRACKERS
from timm_extra.training.option import check_choices, option

from .data import ON_UNREADABLE
from .presets import PRESETS
from .probe import PROBES
from .tasks import METHODS
from .tasks.denoise import SCHEDULES

POSITIVE = (
    *('epochs', 'num_train_steps', 'batch_size', 'grad_accum_steps', 'lr', 'clip_grad', 'std'),
    *('probe_interval', 'checkpoint_interval', 'checkpoint_hist', 'log_interval'),
)
NOT_NEGATIVE = ('weight_decay', 'warmup_epochs', 'workers', 'seed')
FACTS = ('model', 'images')  # of a training, beside its options in args.yaml
VIEWS = ('view1', 'view2')  # arguments of tasks that pretrain has, too


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How to pretrain; every option has its help beside it.

    The options of `timm-extra pretrain`, the settings saved in `args.yaml` and the table in docs/pretraining.md are
    made from these fields. Data sets and views are arguments of `pretrain`.

    Raises:
        ValueError: A value is out of range, the method has no such option, or neither or both of `epochs` and
            `num_train_steps` are given.
        TypeError: `task_args` has what the method's task does not have.
    """

    method: str = option('byol', 'BYOL, SimSiam, denoising with a GLOM, or PixPro.', choices=METHODS, flags=('method',))
    epochs: Optional[int] = option(
        None, 'Passes over the images; or give num_train_steps. The command defaults to 100.'
    )
    num_train_steps: Optional[int] = option(None, 'Optimizer steps, instead of epochs.')
    batch_size: int = option(256, 'Batch size per process.', flags=('-b', '--batch-size'))
    preset: Optional[str] = option(
        None,
        'Named settings of views, optimizer and heads; options that are given go before it. For byol and simsiam.',
        none='as published',
        choices=PRESETS,
    )
    lr: Optional[float] = option(
        None, 'Peak learning rate, used as it is.', none="the method's, times images per step / 256"
    )
    opt: Optional[str] = option(
        None,
        'Name of a timm optimizer.',
        none='LARS (BYOL, PixPro) or SGD (SimSiam) for models with BatchNorm, else AdamW',
    )
    weight_decay: Optional[float] = option(None, 'Weight decay.', none="the method's")
    warmup_epochs: Optional[float] = option(None, 'Epochs of linear warm-up.', none="the method's")
    grad_accum_steps: int = option(1, 'Forward passes per optimizer step.')
    clip_grad: Optional[float] = option(None, 'Clip the norm of the gradient to this value.', none='no clipping')
    task_args: Optional[Mapping[str, Any]] = option(
        None,
        "More arguments of the method's task, such as projection_size=128 or decay=0.99.",
        none="the task's defaults",
        metavar='NAME=VALUE',
    )
    hidden_layer: Optional[Union[str, int]] = option(
        None,
        'Layer whose output is the embedding, by name or index. Not for glom and pixpro.',
        none="timm's pre_logits features",
    )
    input_size: Optional[Tuple[int, int, int]] = option(
        None, 'Channels, height and width of the views.', none="the model's", metavar=('C', 'H', 'W')
    )
    mean: Optional[Tuple[float, ...]] = option(
        None, 'Mean of each channel, to normalise the views.', none="the model's"
    )
    std: Optional[Tuple[float, ...]] = option(
        None, 'Standard deviation of each channel, to normalise the views.', none="the model's"
    )
    scale: Optional[Tuple[float, float]] = option(
        None,
        'Smallest and largest area of random crops, as fractions of the image.',
        none="the method's",
        metavar=('MIN', 'MAX'),
    )
    noise: Optional[Union[float, Tuple[float, float]]] = option(
        None,
        'Standard deviation of the noise, in units of normalised pixels. Two values are a range, from which every '
        'image gets its own.',
        none='1',
        metavar='STD',
        group='glom: denoising',
    )
    noise_schedule: Optional[str] = option(
        None,
        'How the noise grows from 0 over the training.',
        none='constant noise',
        choices=[name for name in SCHEDULES if name],
        group='glom: denoising',
    )
    iteration: Optional[int] = option(
        None,
        'GLOM iteration that is decoded.',
        none="half of the model's, plus one",
        group='glom: denoising',
    )
    level: Optional[int] = option(
        None, 'GLOM level that is decoded. Negative values count from the top.', none='the top', group='glom: denoising'
    )
    views_on_device: bool = option(False, 'Augment on the GPU, not in the data loader workers.')
    unreadable: str = option(
        'raise',
        'What to do with an image that cannot be read: stop, or skip it and count it.',
        choices=ON_UNREADABLE,
    )
    probes: Optional[Tuple[str, ...]] = option(
        None,
        'Classifiers on frozen features, to measure accuracy while training. They need labelled images, in the command '
        'the splits train and validation. The first selects the best model.',
        none='none; in Python knn if labelled images are given',
        choices=PROBES,
    )
    probe_interval: int = option(1, 'Epochs between probes.')
    checkpoint_interval: Optional[int] = option(None, 'Optimizer steps between checkpoints.', none='one epoch')
    checkpoint_hist: int = option(2, 'Number of latest checkpoints to keep, besides the best if there are probes.')
    resume: bool = option(False, 'Continue from the last checkpoint in the output folder, if there is one.')
    log_interval: int = option(10, 'Optimizer steps between rows of log.csv.')
    log_with: Optional[str] = option(None, 'Tracker that gets the rows as well.', none='none', choices=TRACKERS)
    mixed_precision: Optional[str] = option(
        None, 'Precision of autocast.', none="accelerate's", choices=('no', 'fp16', 'bf16')
    )
    channels_last: bool = option(False, 'Use the channels_last memory format, often faster for convolutions.')
    sync_bn: bool = option(True, 'Synchronise BatchNorm statistics between processes.')
    workers: int = option(4, 'Processes that read images.', flags=('-j', '--workers'))
    seed: int = option(0, 'Random seed of initial weights, image order and views.')
    cpu: bool = option(False, 'Train on the CPU even if there is a GPU.')

    def __post_init__(self):
        for one in fields(self):
            object.__setattr__(self, one.name, _immutable(getattr(self, one.name)))
        if isinstance(self.noise, tuple) and len(self.noise) == 1:
            object.__setattr__(self, 'noise', self.noise[0])
        check_choices(self)
        for name in (*POSITIVE, *NOT_NEGATIVE):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not (number > 0 or (number == 0 and name in NOT_NEGATIVE)):
                    wanted = 'positive' if name in POSITIVE else '0 or more'
                    raise ValueError(f'`{name}` must be {wanted}, got {number}')
        if (self.epochs is None) == (self.num_train_steps is None):
            raise ValueError(f'give `epochs` or `num_train_steps`, got {self.epochs} and {self.num_train_steps}')
        twice = sorted({*TASK_OPTIONS, *VIEWS} & set(self.task_args or {}))
        if twice:
            raise ValueError(f'{", ".join(twice)} cannot be in `task_args`: give {quoted(twice)} instead')
        check_parameters(self.method, [name for name in TASK_OPTIONS if getattr(self, name) is not None])
        if self.preset and self.method not in PRESETS[self.preset].task_args:
            methods = ', '.join(PRESETS[self.preset].task_args)
            raise ValueError(f'`preset` {self.preset!r} is for {methods}, got `method` {self.method!r}')
        unknown = [name for name in self.task_args or {} if name not in task_parameters(self.method)]
        if unknown:
            raise TypeError(
                f'{", ".join(unknown)} in `task_args`: the task of {self.method!r} has '
                f'{", ".join(name for name in task_parameters(self.method) if name not in (*TASK_OPTIONS, *VIEWS))}'
            )

    def task_arguments(self) -> Dict[str, Any]:
        """Arguments of the method's task: those of the preset, and that were given by option or in `task_args`."""
        preset = PRESETS[self.preset].task_args[self.method] if self.preset else {}
        given = {name: getattr(self, name) for name in TASK_OPTIONS if getattr(self, name) is not None}
        return {**preset, **(self.task_args or {}), **given}

    def save(self, file: PathLike, *, model: str, images: Optional[int]) -> None:
        """Write all options as YAML.

        Args:
            file: Where to; its folder exists.
            model: Name of the model, for people to read.
            images: Number of images, likewise; None for a stream.
        """
        values = dict(zip(FACTS, (model, images), strict=True))
        values.update((one.name, getattr(self, one.name)) for one in fields(self))
        with atomic_file(file) as aside:
            text = yaml.dump(values, Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True)
            aside.write_text(text, encoding='utf-8')

    @classmethod
    def load(cls, file: PathLike) -> 'PretrainConfig':
        """Read what `save` has written.

        Raises:
            ValueError: It is something else, or `task_args` held a function, of which only the name is saved.
        """
        with open(file, encoding='utf-8') as lines:
            try:
                values = yaml.safe_load(lines)
            except yaml.YAMLError as e:
                raise ValueError(f'{file} cannot be read: {" ".join(str(e).split())}') from e
        known = {*FACTS, *(one.name for one in fields(cls))}
        if not isinstance(values, dict) or not known.issuperset(values):
            unknown = ', '.join(map(str, set(values) - known)) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f'{file} holds no options of a pretraining: {unknown}')
        return cls(**{name: value for name, value in values.items() if name not in FACTS})


class _Dumper(yaml.SafeDumper):
    """With a tag, which no loader accepts, for what YAML cannot hold."""


_Dumper.add_multi_representer(
    object, lambda dumper, value: dumper.represent_scalar('!object', getattr(value, '__qualname__', repr(value)))
)


def _immutable(value: Any) -> Any:
    """Lists as tuples, within dictionaries too."""
    if isinstance(value, (list, tuple)):
        return tuple(_immutable(v) for v in value)
    return {k: _immutable(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def quoted(names: List[str]) -> str:
    """Names of options in a message, which the command turns into flags."""
    return ', '.join(f'`{name}`' for name in names)


def task_parameters(method: str) -> List[str]:
    """Arguments of a method's task, but for the model."""
    return list(task_defaults(method))


def task_defaults(method: str) -> Dict[str, Any]:
    """The same with their defaults."""
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def check_parameters(method: str, names: List[str]) -> None:
    """Refuse what a method's task does not have.

    Raises:
        ValueError: There is such a name.
    """
    known = task_parameters(method)
    missing = [name for name in names if name not in known]
    if missing:
        alike = VIEWS if missing[0] in VIEWS else TASK_OPTIONS
        has = quoted([name for name in known if name in alike])
        raise ValueError(f'method {method!r} has no {quoted(missing)}; it has {has}')


# fields whose name is also a parameter of a task: passed to it where they are not None, which is their default
TASK_OPTIONS = tuple(
    one.name for one in fields(PretrainConfig) if any(one.name in task_parameters(method) for method in METHODS)
)
