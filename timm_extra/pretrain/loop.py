"""The pretraining loop."""

import inspect
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import nn
from torch.utils.data import Dataset

from . import checkpoints
from .data import Batches, Collate, MakeViews, Samples, loader, steps_per_epoch
from .log import Log, save_backbone
from .probe import accuracies, check_probes
from .recipes import Schedule, build_optimizer, settings
from .sync_batchnorm import cross_replica
from .tasks import BYOL, Denoise, SimSiam
from .tasks.encoder import HiddenLayer
from .tasks.task import PretrainingTask, View
from .views import Images, PlainView

METHODS = {'byol': BYOL, 'simsiam': SimSiam, 'glom': Denoise}
COLLAPSED = 0.1  # of the spread that projections over the whole sphere have


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining leaves behind.

    Attributes:
        model: The model that was passed in, trained.
        folder: The folder of `model/` (Hub format), `best/` if there was a probe, `checkpoints/` and `log.csv`.
        steps: Steps of the optimizer.
        skipped: How often an image that could not be read was left out, by all processes.
        accuracies: Of the last probes, in per cent; none without labelled images, and in other than the first process.
    """

    model: nn.Module
    folder: Path
    steps: int
    skipped: int
    accuracies: Dict[str, float]


def pretrain(
    model: nn.Module,
    dataset: Dataset,
    output: Union[str, Path],
    *,
    method: str = 'byol',
    epochs: Optional[int] = None,
    num_train_steps: Optional[int] = None,
    batch_size: int = 256,
    learning_rate: Optional[float] = None,
    optimizer: Optional[str] = None,
    weight_decay: Optional[float] = None,
    warmup_epochs: Optional[float] = None,
    grad_accum_steps: int = 1,
    clip_grad: Optional[float] = None,
    task_args: Optional[Dict[str, Any]] = None,
    hidden_layer: HiddenLayer = None,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    view1: Optional[View] = None,
    view2: Optional[View] = None,
    views_on_device: bool = False,
    unreadable: str = 'raise',
    probe: Optional[Tuple[Dataset, Dataset]] = None,
    probes: Sequence[str] = ('knn',),
    probe_every: int = 1,
    checkpoint_every: Optional[int] = None,
    keep: int = 2,
    resume: bool = False,
    log_every: int = 10,
    tensorboard: bool = False,
    mixed_precision: Optional[str] = None,
    channels_last: bool = False,
    sync_batchnorm: bool = True,
    workers: int = 4,
    seed: int = 0,
    cpu: bool = False,
) -> Pretrained:
    """Train a model without labels.

    Devices, mixed precision and processes are Accelerate's: run the script by `accelerate launch` or torchrun to use
    several. All draws depend on the seed, the epoch and the index of an image alone: an interrupted training that is
    resumed goes on exactly as if it had not been, and any number of processes sees the same views.

    Args:
        model: Any timm model, or any module together with `hidden_layer` and `input_size`; a GLOM for 'glom'. Trained
            in place; in a run of several processes its BatchNorms become synchronised ones.
        dataset: Any map-style data set of images, with or without classes.
        output: Folder to write to.
        method: 'byol', 'simsiam' or 'glom' (denoising).
        epochs: Passes over the data; this or `num_train_steps`.
        num_train_steps: Steps of the optimizer.
        batch_size: Images per process and forward pass.
        learning_rate: Peak rate; when None the recipe's, which is scaled by the images of a step over 256.
        optimizer: timm's name; when None LARS (BYOL) or SGD (SimSiam) for models with BatchNorm, AdamW for others.
        weight_decay: The recipe's when None.
        warmup_epochs: The recipe's when None.
        grad_accum_steps: Forward passes per step of the optimizer.
        clip_grad: Largest norm of the gradient.
        task_args: Further arguments of the task, as `dict(projection_size=128, decay=0.99)` or `dict(noise=0.5)`.
        hidden_layer: As `BYOL` has it; not for 'glom'.
        input_size: Channels, height and width of a view; the model's own when None.
        mean: What views and the probe subtract from each channel; the model's own when None.
        std: What they divide by then; likewise.
        view1: As the task has it.
        view2: As `BYOL` has it; not for 'glom'.
        views_on_device: Make the views on the device, not where images are read.
        unreadable: 'raise' on an image that cannot be read, or 'skip' and count it.
        probe: Labelled training and test images.
        probes: What to probe with, of 'knn' and 'linear'; the first tells the best model.
        probe_every: Epochs from one probe to the next.
        checkpoint_every: Steps from one checkpoint to the next; an epoch when None.
        keep: How many of the last checkpoints to keep, beside the best.
        resume: Go on from the last checkpoint in `output`, if there is one.
        log_every: Steps from one row of the log to the next.
        tensorboard: Write TensorBoard's events as well.
        mixed_precision: 'no', 'fp16' or 'bf16'; what `accelerate launch` was told when None.
        channels_last: Memory format of images and weights, often faster for convolutions.
        sync_batchnorm: Share batch statistics between processes.
        workers: Processes that read images.
        seed: Seed of heads, orders and views.
        cpu: Stay on the CPU.

    Returns:
        The trained model and where it was saved.

    Raises:
        ValueError: An argument is out of range or not the method's, the data set is too small, an image cannot be
            read, a checkpoint belongs to another training, or the training diverges.
        FileExistsError: `output` has checkpoints and `resume` is False.
        OSError: A checkpoint cannot be written; earlier ones stay.
    """
    accelerator = _accelerator(mixed_precision, cpu)
    counts = dict(batch_size=batch_size, grad_accum_steps=grad_accum_steps, keep=keep, log_every=log_every)
    check_probes(probes)
    _check(method, probe_every=probe_every, checkpoint_every=checkpoint_every, **counts)
    if (epochs is None) == (num_train_steps is None):
        raise ValueError(f'give epochs or num_train_steps, got {epochs} and {num_train_steps}')
    images = batch_size * accelerator.num_processes * grad_accum_steps
    each = steps_per_epoch(len(dataset), images) if hasattr(dataset, '__len__') else 1
    total = num_train_steps if num_train_steps is not None else epochs * each
    if total < 1:
        raise ValueError(f'the number of steps must be positive, got {total}')
    given = dict(learning_rate=learning_rate, weight_decay=weight_decay, warmup_epochs=warmup_epochs)
    recipe = settings(method, model, total / each, images, optimizer)
    recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})
    if math.isnan(recipe.learning_rate):
        raise ValueError(f'no learning rate is published for {method} with {recipe.optimizer!r}: give learning_rate')

    torch.manual_seed(seed)
    shared = dict(hidden_layer=hidden_layer, input_size=input_size, mean=mean, std=std, view1=view1, view2=view2)
    task_args = _arguments(method, task_args or {}, shared, dict(decay=recipe.decay, num_steps=total))
    task = METHODS[method](model.to(accelerator.device), **task_args)
    made = {f'view{number}': view for number, view in enumerate(task.views, 1)}
    run = _Run(
        accelerator=accelerator,
        task=task,
        samples=Samples(dataset, task.input_size[0], unreadable=unreadable),
        output=Path(output),
        total=total,
        steps_per_epoch=each,
        batch_size=batch_size,
        accumulate=grad_accum_steps,
        clip_grad=clip_grad,
        recipe=recipe,
        views_on_device=views_on_device,
        probe=probe if probes else None,
        probes=tuple(probes),
        probe_steps=probe_every * each,
        checkpoint_steps=checkpoint_every or each,
        keep=keep,
        log_every=log_every,
        tensorboard=tensorboard,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        sync_batchnorm=sync_batchnorm,
        workers=workers,
        seed=seed,
        settings=dict(
            method=method,
            model=_name(model),
            images=len(dataset),
            images_per_step=images,
            steps=total,
            seed=seed,
            clip_grad=clip_grad,
            **{f'recipe.{k}': v for k, v in asdict(recipe).items()},
            **{k: _described(v) for k, v in {**task_args, **task.input_config, **made}.items()},
        ),
    )
    return run.go(resume)


def _check(method: str, **counts: Optional[int]) -> None:
    if method not in METHODS:
        raise ValueError(f'method must be one of {", ".join(METHODS)}, got {method!r}')
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f'{name} must be positive, got {value}')


def _arguments(
    method: str, task_args: Dict[str, Any], shared: Dict[str, Any], defaults: Dict[str, Any]
) -> Dict[str, Any]:
    """Arguments of a method's task: its own, and those of `pretrain` and of the recipe that it has."""
    twice = sorted(set(task_args) & set(shared))
    if twice:
        raise ValueError(f'{", ".join(twice)} in task_args are arguments of pretrain itself')
    known = list(inspect.signature(METHODS[method]).parameters)
    for name, value in shared.items():
        if name not in known and value is not None:
            raise ValueError(f'method {method!r} has no {name}; it has {", ".join(known[1:])}')
    given = {**defaults, **task_args, **shared}
    return {name: value for name, value in given.items() if name in known or name in task_args}


def _accelerator(mixed_precision: Optional[str], cpu: bool):
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
        raise ValueError(f'this process has used another mixed precision than {mixed_precision!r}: start anew') from e


def _name(model: nn.Module) -> str:
    return (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__


def _described(value: Any) -> Any:
    """An argument as something that a checkpoint can hold and that is the same in another process."""
    if isinstance(value, (tuple, list)):
        return [_described(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return (
        ' '.join(repr(value).split())
        if isinstance(value, nn.Module)
        else getattr(value, '__qualname__', type(value).__name__)
    )


@dataclass
class _Run:
    """One training; what `pretrain` was told."""

    accelerator: Any
    task: PretrainingTask
    samples: Samples
    output: Path
    total: int
    steps_per_epoch: int
    batch_size: int
    accumulate: int
    clip_grad: Optional[float]
    recipe: Any
    views_on_device: bool
    probe: Optional[Tuple[Dataset, Dataset]]
    probes: Tuple[str, ...]
    probe_steps: int
    checkpoint_steps: int
    keep: int
    log_every: int
    tensorboard: bool
    memory_format: torch.memory_format
    sync_batchnorm: bool
    workers: int
    seed: int
    settings: Dict[str, Any]
    best: Tuple[float, int] = (-1.0, -1)  # accuracy and step of the best of the first probe
    skipped: int = 0  # by this process
    accuracies: Dict[str, float] = field(default_factory=dict)
    alarmed: bool = False

    def go(self, resume: bool) -> Pretrained:
        """Train from the start or the last checkpoint to the end."""
        folder = self.output / 'checkpoints'
        found = checkpoints.steps(folder)
        if found and not resume:
            raise FileExistsError(
                f'{self.output} has checkpoints up to step {found[-1]}: resume, or choose another folder'
            )
        if self.accelerator.is_main_process:
            checkpoints.clean(folder)
        saved = checkpoints.read(folder / checkpoints.NAME.format(found[-1])) if found else None
        self._prepare(saved)
        for dataset in self.probe or ():
            Samples(dataset, self.task.input_size[0], labelled=True)[(0, 0)]  # refused now, not after an epoch
        start = saved['step'] if saved else 0
        log = Log(self.output, start, self.tensorboard) if self.accelerator.is_main_process else None
        self.accelerator.wait_for_everyone()
        self._train(start, log)
        if log:
            log.close()
            save_backbone(self.task, self.output / 'model')
        self.accelerator.wait_for_everyone()
        return Pretrained(self.task.model, self.output, self.total, self._skipped_by_all(), self.accuracies)

    def _prepare(self, saved: Optional[Dict[str, Any]]) -> None:
        """Make or load everything that has a state."""
        task, accelerator = self.task, self.accelerator
        task.to(accelerator.device, memory_format=self.memory_format).train()
        if not self.views_on_device:
            for view in task.views:
                if isinstance(view, nn.Module):
                    view.cpu()  # processes that read images cannot use the GPU
        if saved:
            wrong = checkpoints.differences(saved['settings'], self.settings)
            if wrong:
                raise ValueError(f'the checkpoint in {self.output} is of another training: {"; ".join(wrong)}')
            task.load_checkpoint_state(saved['task']['state_dict'], saved['task'].get('task_state'))
            self.best = saved['best']['accuracy'], saved['best']['step']
            self.accuracies = saved['accuracies']
            self.skipped = saved['skipped'] if accelerator.is_main_process else 0
        if accelerator.num_processes > 1 and self.sync_batchnorm:
            for module in task.children():
                cross_replica(module)
        optimizer = build_optimizer(task.trainable_module, self.recipe)
        self.schedule = Schedule(optimizer, self.total, round(self.recipe.warmup_epochs * self.steps_per_epoch))
        if saved:
            optimizer.load_state_dict(saved['optimizer'])
            if accelerator.scaler is not None and saved['scaler']:
                accelerator.scaler.load_state_dict(saved['scaler'])
        online, self.optimizer = accelerator.prepare(task.trainable_module, optimizer)
        task.trainable_module = online
        if not saved and hasattr(task, 'reset_target'):
            task.reset_target()  # the online network is that of the first process now

    def _train(self, start: int, log: Optional[Log]) -> None:
        views = MakeViews(self.task.views, self.seed)
        batches = Batches(
            len(self.samples),
            self.batch_size,
            steps=(start, self.total),
            seed=self.seed,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            accumulate=self.accumulate,
        )
        collate = Collate(None if self.views_on_device else views)
        device = self.accelerator.device
        incoming = iter(loader(self.samples, batches, collate, self.workers, device.type == 'cuda'))
        spreads: List[Optional[torch.Tensor]] = []
        clock = time.perf_counter()
        with _bar(start, self.total, self.accelerator.is_main_process) as bar:
            for step in range(start, self.total):
                rate = self.schedule.set(step)
                # what a model draws (dropout, drop path) depends on the step alone, too
                torch.manual_seed(self.seed + (step * self.accelerator.num_processes + self.accelerator.process_index))
                loss, spread = self._step(incoming, views, step)
                spreads.append(spread)
                done = step + 1
                if step % self.log_every == 0 or done == self.total:
                    row = dict(step=step, epoch=step // self.steps_per_epoch, learning_rate=rate)
                    row.update(self._averages(loss, _mean(spreads), step), skipped=self._skipped_by_all())
                    seconds = (time.perf_counter() - clock) / len(spreads)
                    row['images_per_second'] = self.settings['images_per_step'] / seconds
                    self._alarm(row)
                    if log:
                        log.row(row)
                        spread = f' spread {row["std"]:.2f}' if 'std' in row else ''
                        bar.set_description(f'loss {row["loss"]:.3f}{spread}', refresh=False)
                    spreads, clock = [], time.perf_counter()
                bar.update()
                if self._after(done, loss, log, bar):
                    spreads, clock = [], time.perf_counter()

    def _step(self, incoming: Any, make_views: MakeViews, step: int) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """One step of the optimizer; loss and, of tasks that have one, spread over its forward passes."""
        task, accelerator = self.task, self.accelerator
        losses, spreads = [], []
        for part in range(self.accumulate):
            batch = next(incoming)
            self.skipped += batch['skipped']
            if self.views_on_device:
                views = make_views(_moved(batch['images'], accelerator.device), batch['at'])
            else:
                views = _moved(batch['views'], accelerator.device)
            views = tuple(view.to(task.dtype, memory_format=self.memory_format) for view in views)
            last = part == self.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(task.trainable_module):
                with accelerator.autocast():
                    out = task(views)
                accelerator.backward(out['loss'] / self.accumulate)
            losses.append(out['loss'].detach())
            spreads.append(out.get('std'))
        if self.clip_grad is not None:
            accelerator.clip_grad_norm_(task.trainable_module.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            task.update_ema(step)
        return torch.stack(losses).mean(), _mean(spreads)

    def _skipped_by_all(self) -> int:
        """Images left out by all processes; all have to ask."""
        if self.accelerator.num_processes == 1:
            return self.skipped
        count = torch.tensor(self.skipped, device=self.accelerator.device)
        return int(self.accelerator.reduce(count, 'sum'))

    def _averages(self, loss: torch.Tensor, spread: Optional[torch.Tensor], step: int) -> Dict[str, float]:
        """Loss and spread, if there is one, over the processes."""
        found = dict(loss=loss) if spread is None else dict(loss=loss, std=spread.to(loss))
        return dict(zip(found, self._finite(torch.stack(list(found.values())), step), strict=True))

    def _finite(self, values: torch.Tensor, step: int) -> List[float]:
        """The loss and what else there is, averaged over the processes."""
        found = self.accelerator.reduce(values, 'mean').tolist()
        if not all(map(math.isfinite, found)):
            raise ValueError(
                f'the training diverged at step {step} (loss {found[0]:.4g}): lower learning_rate, or use no fp16'
            )
        return found

    def _alarm(self, row: Dict[str, Any]) -> None:
        if row.get('std', 1.0) < COLLAPSED and not self.alarmed and self.accelerator.is_main_process:
            self.alarmed = True
            print(
                f'warning: step {row["step"]}: the projections have collapsed, their spread is {row["std"]:.3f} of 1: '
                'all images look the same to the model. Lower the learning rate, or train with more images per step.',
                file=sys.stderr,
            )

    def _after(self, done: int, loss: torch.Tensor, log: Optional[Log], bar: Any) -> bool:
        """Probe and checkpoint, where they are due; whether they were."""
        last = done == self.total
        due = done % self.checkpoint_steps == 0 or last
        probing = self.probe is not None and (done % self.probe_steps == 0 or last)
        if not due and not probing:
            return False
        self._finite(torch.stack([loss, *map(torch.sum, self.task.trainable_module.parameters())]), done - 1)
        skipped = self._skipped_by_all()
        better = False
        if probing and log:
            self.accuracies = self._probe()
            log.row(dict(step=done - 1, **self.accuracies))
            bar.set_postfix_str(', '.join(f'{probe} {found:.2f} %' for probe, found in self.accuracies.items()))
            first = self.accuracies[self.probes[0]]
            better = first > self.best[0]
            if better:
                self.best = first, done
                save_backbone(self.task, self.output / 'best')
        if log and (due or better):
            log.flush()
            self._checkpoint(done, skipped)
        self.accelerator.wait_for_everyone()
        return True

    def _probe(self) -> Dict[str, float]:
        view = PlainView(**self.task.input_config)
        where = dict(device=self.accelerator.device, workers=self.workers)
        return accuracies(self.probes, self.task.encoder, *self.probe, view=view, **where)

    def _checkpoint(self, done: int, skipped: int) -> None:
        folder = self.output / 'checkpoints'
        scaler = self.accelerator.scaler
        state = dict(
            step=done,
            settings=self.settings,
            task=self.task.get_checkpoint_state(),
            optimizer=self.optimizer.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
            best=dict(accuracy=self.best[0], step=self.best[1]),
            accuracies=self.accuracies,
            skipped=skipped,
        )
        checkpoints.write(state, folder / checkpoints.NAME.format(done))
        checkpoints.prune(folder, self.keep, self.best[1])


def _mean(values: List[Optional[torch.Tensor]]) -> Optional[torch.Tensor]:
    """Mean of scalars; None if there are none."""
    return None if values[0] is None else torch.stack(values).mean()


def _bar(start: int, total: int, shown: bool):
    from tqdm import tqdm

    return tqdm(initial=start, total=total, unit='step', mininterval=0.5, disable=not shown)


def _moved(images: Images, device: torch.device) -> Images:
    """Images, or images one by one, on a device."""
    if isinstance(images, torch.Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]
