"""The pretraining loop."""

import math
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from timm_extra import hub
from timm_extra._files import PathLike
from timm_extra.images import check_takes_images, input_config
from timm_extra.training import checkpoints
from timm_extra.training.accelerator import create_accelerator
from timm_extra.training.interrupt import Interrupted, Interruption, ignored_by_processes, interruptible
from timm_extra.training.log import Log, check_log
from timm_extra.training.order import Batches, order_of
from timm_extra.training.progress import Progress, print_summary

from .backbone import check_output, provenance, save_backbone
from .config import PretrainConfig, check_parameters
from .data import Collate, MakeViews, Samples, fingerprint, loader
from .presets import PRESETS
from .probe import PROBES, accuracies, check_probes
from .recipes import Plan, Schedule, build_optimizer, load_optimizer, plan
from .resume import check_resumes, settings_of, task_arguments
from .streams import CHECKPOINT_INTERVAL, Stream, is_stream, length_of, note_of, stream_loader
from .summary import summary
from .sync_batchnorm import cross_replica
from .tasks import METHODS, Encoder
from .tasks.task import PretrainingTask, View
from .views import RECIPES, Images, PlainView, RandomView

COLLAPSED = 0.1  # std of projections; over the whole sphere it is 1
COLUMNS = ('step', 'epoch', 'loss', 'std', 'learning_rate', 'images_per_second', 'skipped', *PROBES)
DEFAULT_PROBES = ('knn',)  # where labelled images are given, and no option names others


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining leaves behind.

    Attributes:
        model: The model that was passed in, trained.
        folder: Folder of `model/` (Hub format), `best/` if there was a probe, `checkpoints/`, `log.csv`, `args.yaml`.
        steps: Optimizer steps.
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
    output: PathLike,
    config: PretrainConfig,
    *,
    probe: Optional[Tuple[Dataset, Dataset]] = None,
    view1: Optional[View] = None,
    view2: Optional[View] = None,
    base_model: Optional[str] = None,
) -> Pretrained:
    """Train a model without labels.

    Devices, mixed precision and processes are Accelerate's: run the script by `accelerate launch` or torchrun to use
    several. All random numbers depend on the seed, the epoch and the index of an image alone: an interrupted training
    that is resumed goes on exactly as if it had not been, and any number of processes sees the same views.

    Args:
        model: Any timm model, or any module together with `hidden_layer` and `input_size`; a GLOM for 'glom'. Trained
            in place; in a run of several processes its BatchNorms become synchronised ones.
        dataset: Any map-style data set of images, with or without classes. One that streams trains, too, in
            one process; resuming is not exact then, as it begins another pass.
        output: Folder to write to.
        config: All options.
        probe: Labelled training and test images for the probes.
        view1: As the task has it.
        view2: As `BYOL` has it; not for 'glom'. `PixPro` takes a `RandomView`, or what gives `Located`.
        base_model: What the card calls the weights that the training starts from, as in `hub.Provenance`.

    Returns:
        The trained model and where it was saved.

    Raises:
        ValueError: An argument is out of range or not the method's, the data set is too small, an image cannot be
            read, a checkpoint belongs to another training, or the training diverges.
        Interrupted: Ctrl-C (`KeyboardInterrupt`), after the step that was running and a checkpoint; in a run of several
            processes all stop after the same step. The second Ctrl-C raises at once.
        FileExistsError: `output` has checkpoints and `resume` is False, or holds another model.
        OSError: A checkpoint cannot be written; earlier ones stay.
    """
    check_takes_images(model)
    if config.probes and probe is None:
        raise ValueError('`probes` need labelled images: pass probe=(training images, test images)')
    if config.probes:
        check_probes(config.probes, Encoder(model, config.hidden_layer))
    accelerator = create_accelerator(config.mixed_precision, config.cpu, config.log_with, Path(output))
    views = _views(config, model, view1=view1, view2=view2)
    if is_stream(dataset) and accelerator.num_processes > 1:
        raise ValueError(
            f'{type(dataset).__name__} streams, which one process does: {accelerator.num_processes} need a data set '
            'with a length, as a folder of shards'
        )
    planned = plan(config, model, dataset, accelerator.num_processes)
    torch.manual_seed(config.seed)
    task = METHODS[config.method](model.to(accelerator.device), **task_arguments(config, planned), **views)

    def settings_at(steps: int) -> Dict[str, Any]:
        other = plan(replace(config, epochs=None, num_train_steps=steps), model, dataset, accelerator.num_processes)
        arguments = {**task_arguments(config, other), **task.input_config}
        return settings_of(config, other, model, length_of(dataset), arguments, task.views, fingerprint(dataset))

    run = _Run(
        config=config,
        accelerator=accelerator,
        plan=planned,
        task=task,
        samples=(Stream if is_stream(dataset) else Samples)(dataset, task.input_size[0], unreadable=config.unreadable),
        output=Path(output),
        base_model=base_model,
        probe=probe,
        probes=(DEFAULT_PROBES if config.probes is None else config.probes) if probe else (),
        settings_at=settings_at,
    )
    return run.go()


def _views(config: PretrainConfig, model: nn.Module, **given: Optional[View]) -> Dict[str, View]:
    """Views that are given, of a preset or with crops of another scale; none where the task makes the published."""
    views = {name: view for name, view in given.items() if view is not None}
    check_parameters(config.method, list(views))
    if views and config.scale is not None:
        raise ValueError(f"`scale` is for the crops of the method's own views: leave out `scale` or {', '.join(views)}")
    if 'view1' in views or (config.scale is None and config.preset is None):
        return views  # without a second one it is the first
    size = input_config(model, config.input_size, config.mean, config.std)
    recipes = PRESETS[config.preset].views if config.preset else RECIPES[config.method]
    if config.scale is not None:
        recipes = [replace(recipe, scale=config.scale) for recipe in recipes]
    return {**{f'view{number}': RandomView(recipe, **size) for number, recipe in enumerate(recipes, 1)}, **views}


@dataclass
class _Run:
    """One training."""

    config: PretrainConfig
    accelerator: Any
    plan: Plan
    task: PretrainingTask
    samples: Union[Samples, Stream]
    output: Path
    base_model: Optional[str]
    probe: Optional[Tuple[Dataset, Dataset]]
    probes: Tuple[str, ...]
    settings_at: Callable[[int], Dict[str, Any]]  # all that the result depends on, by the number of steps
    best: Tuple[float, int] = (-1.0, -1)  # accuracy and step of the best of the first probe
    skipped: int = 0  # by this process
    accuracies: Dict[str, float] = field(default_factory=dict)
    alarmed: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and weights."""
        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    @property
    def streams(self) -> bool:
        """Whether the images stream."""
        return isinstance(self.samples, Stream)

    def go(self) -> Pretrained:
        """Train from the start or the last checkpoint to the end."""
        folder = self.output / 'checkpoints'
        found = checkpoints.steps(folder)
        if found and not self.config.resume:
            raise FileExistsError(
                f'{self.output} has checkpoints up to step {found[-1]}: `resume=True` goes on, or choose another folder'
            )
        check_log(self.output / 'log.csv', COLUMNS)
        if self.accelerator.is_main_process:
            checkpoints.clean(folder)
        saved = checkpoints.read(folder / checkpoints.NAME.format(found[-1])) if found else None
        start = saved['step'] if saved else 0
        self.settings = self.settings_at(self.plan.steps)
        changes = check_resumes(saved, self.settings, self.settings_at, self.output) if saved else ''
        self._prepare(saved)
        if not found:
            for name in ('model', *(['best'] if self.probes else [])):
                check_output(self.task.model, self.output / name)
        for dataset in self.probe if self.probes else ():
            Samples(dataset, self.task.input_size[0], labelled=True)[(0, 0)]  # refused now, not after an epoch
        log = None
        if self.accelerator.is_main_process:
            self._introduce(start, changes)
            log = Log(self.output, COLUMNS, start, self.accelerator, asdict(self.config))
            self.config.save(self.output / 'args.yaml', model=self.settings['model'], images=self.settings['images'])
        self.accelerator.wait_for_everyone()
        with interruptible() as interruption:
            try:
                self._train(start, log, interruption)
            finally:
                if log:
                    log.close()
            if log:
                save_backbone(self.task, self.output / 'model', self._provenance(self.plan.steps))
            self.accelerator.wait_for_everyone()
        return Pretrained(self.task.model, self.output, self.plan.steps, self._skipped_by_all(), self.accuracies)

    def _introduce(self, start: int, changes: str) -> None:
        """Say what is about to run."""
        labelled = [len(dataset) for dataset in self.probe] if self.probes else []
        facts = dict(model=self.settings['model'], images=self.settings['images'], probes=self.probes)
        rows = summary(
            self.config, self.plan, self.task, self.accelerator,
            **facts, labelled=labelled, start=start, output=self.output,
        )  # fmt: skip
        notes = (changes, note_of(self.samples.dataset) if self.streams else '')
        print_summary(dict(rows, note='; '.join(filter(None, notes))))

    def _prepare(self, saved: Optional[Dict[str, Any]]) -> None:
        """Make or load everything that has a state."""
        task, accelerator = self.task, self.accelerator
        task.to(accelerator.device, memory_format=self.memory_format).train()
        if not self.config.views_on_device:
            for view in task.views:
                if isinstance(view, nn.Module):
                    view.cpu()  # processes that read images cannot use the GPU
        if saved:
            task.load_checkpoint_state(saved['task']['state_dict'], saved['task'].get('task_state'))
            self.best = saved['best']['accuracy'], saved['best']['step']
            self.accuracies = saved['accuracies']
            self.skipped = saved['skipped'] if accelerator.is_main_process else 0
        if accelerator.num_processes > 1 and self.config.sync_bn:
            for module in task.children():
                cross_replica(module)
        optimizer = build_optimizer(task.trainable_module, self.plan.recipe)
        warmup = round(self.plan.recipe.warmup_epochs * self.plan.steps_per_epoch)
        self.schedule = Schedule(optimizer, self.plan.steps, warmup)
        if saved:
            load_optimizer(optimizer, saved['optimizer'])
            if accelerator.scaler is not None and saved['scaler']:
                accelerator.scaler.load_state_dict(saved['scaler'])
        self.signals = dist.new_group(backend='gloo') if accelerator.num_processes > 1 else None
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*broadcast_buffers', FutureWarning)  # Accelerate knows no other yet
            online, self.optimizer = accelerator.prepare(task.trainable_module, optimizer)
        task.trainable_module = online
        if not saved and hasattr(task, 'reset_target'):
            task.reset_target()  # the online network is that of the first process now

    def _train(self, start: int, log: Optional[Log], interruption: Interruption) -> None:
        config, accelerator, total = self.config, self.accelerator, self.plan.steps
        views = MakeViews(self.task.views, config.seed)
        incoming = self._batches(start, views)
        stds: List[Optional[torch.Tensor]] = []
        clock = time.perf_counter()
        with Progress(total, start, accelerator.is_main_process) as progress:
            for step in range(start, total):
                rate = self.schedule.set(step)
                # random numbers of the model (dropout, drop path) depend on the step alone, too
                torch.manual_seed(config.seed + (step * accelerator.num_processes + accelerator.process_index))
                loss, std = self._step(incoming, views, step)
                stds.append(std)
                done = step + 1
                progress.update()
                if step % config.log_interval == 0 or done == total:
                    row = dict(step=step, epoch=step // self.plan.steps_per_epoch, learning_rate=rate)
                    row.update(self._averages(loss, _mean(stds), step), skipped=self._skipped_by_all())
                    seconds = (time.perf_counter() - clock) / len(stds)
                    row['images_per_second'] = self.plan.images_per_step / seconds
                    self._alarm(row, progress)
                    if log:
                        log.row(row)
                        std = f' std {row["std"]:.2f}' if 'std' in row else ''
                        progress.show(f'loss {row["loss"]:.3f}{std}')
                    stds, clock = [], time.perf_counter()
                stop = self._stops(interruption)
                if self._after(done, loss, log, progress, stop):
                    stds, clock = [], time.perf_counter()
                if stop and done < total:
                    raise Interrupted(f'stopped after step {done} of {total}; `resume=True` goes on from there')

    def _stops(self, interruption: Interruption) -> bool:
        """Whether Ctrl-C reached any of the processes, each of which has to call this.

        They agree after every step, on the CPU: a GPU's queue of work is not waited for.
        """
        if self.signals is None:
            return interruption.came
        came = torch.tensor(int(interruption.came))
        dist.all_reduce(came, dist.ReduceOp.MAX, group=self.signals)
        return bool(came)

    def _batches(self, start: int, views: MakeViews) -> Iterator[Dict[str, Any]]:
        """Batches of this process, one per forward pass, from a step on."""
        collate = Collate(None if self.config.views_on_device else views)
        read = dict(workers=self.config.workers, pin_memory=self.accelerator.device.type == 'cuda')
        if self.streams:
            self.samples.first_pass = start  # other numbers than those of passes before
            with ignored_by_processes():
                return iter(stream_loader(self.samples, self.config.batch_size, collate, **read))
        batches = Batches(
            len(self.samples),
            self.config.batch_size,
            steps=(start, self.plan.steps),
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            accumulate=self.config.grad_accum_steps,
            order=order_of(self.samples.dataset),
        )
        with ignored_by_processes():
            return iter(loader(self.samples, batches, collate, **read))

    def _step(
        self, incoming: Iterator, make_views: MakeViews, step: int
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """One optimizer step; loss and, of tasks that have one, std over its forward passes."""
        task, accelerator, config = self.task, self.accelerator, self.config
        losses, stds = [], []
        for part in range(config.grad_accum_steps):
            batch = next(incoming, None)
            if batch is None:
                raise ValueError(f'the images of the stream have ended at step {step}')
            self.skipped += batch['skipped']
            if config.views_on_device:
                views = make_views(_moved(batch['images'], accelerator.device), batch['at'])
            else:
                views = _moved(batch['views'], accelerator.device)
            views = tuple(view.to(task.dtype, memory_format=self.memory_format) for view in views)
            last = part == config.grad_accum_steps - 1
            with nullcontext() if last else accelerator.no_sync(task.trainable_module):
                with accelerator.autocast():
                    out = task(views)
                accelerator.backward(out['loss'] / config.grad_accum_steps)
            losses.append(out['loss'].detach())
            stds.append(out.get('std'))
        if config.clip_grad is not None:
            accelerator.clip_grad_norm_(task.trainable_module.parameters(), config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            task.update_ema(step)
        return torch.stack(losses).mean(), _mean(stds)

    def _skipped_by_all(self) -> int:
        """Images left out by all processes, each of which has to call this."""
        if self.accelerator.num_processes == 1:
            return self.skipped
        count = torch.tensor(self.skipped, device=self.accelerator.device)
        return int(self.accelerator.reduce(count, 'sum'))

    def _averages(self, loss: torch.Tensor, std: Optional[torch.Tensor], step: int) -> Dict[str, float]:
        """Loss and std, if there is one, over the processes."""
        found = dict(loss=loss) if std is None else dict(loss=loss, std=std.to(loss))
        return dict(zip(found, self._finite(torch.stack(list(found.values())), step), strict=True))

    def _finite(self, values: torch.Tensor, step: int) -> List[float]:
        """The loss and what else there is, averaged over the processes."""
        found = self.accelerator.reduce(values, 'mean').tolist()
        if not all(map(math.isfinite, found)):
            fp16 = ", or leave out `mixed_precision='fp16'`" if self.accelerator.mixed_precision == 'fp16' else ''
            raise ValueError(f'the training diverged at step {step} (loss {found[0]:.4g}): lower `lr`{fp16}')
        return found

    def _alarm(self, row: Dict[str, Any], progress: Progress) -> None:
        if row.get('std', 1.0) < COLLAPSED and not self.alarmed:
            self.alarmed = True
            progress.line(
                f'warning: step {row["step"]}: the projections have collapsed, their std is {row["std"]:.3f} of 1: '
                'all images look the same to the model. Lower the learning rate, or train with more images per step.'
            )

    def _after(self, done: int, loss: torch.Tensor, log: Optional[Log], progress: Progress, stop: bool) -> bool:
        """Probe and checkpoint, where they are due or the training stops; whether they were."""
        each, last = self.plan.steps_per_epoch, done == self.plan.steps
        interval = self.config.checkpoint_interval or (min(each, CHECKPOINT_INTERVAL) if self.streams else each)
        due = done % interval == 0 or last or stop
        probing = bool(self.probes) and (done % (self.config.probe_interval * each) == 0 or last)
        if not due and not probing:
            return False
        self._finite(torch.stack([loss, *map(torch.sum, self.task.trainable_module.parameters())]), done - 1)
        skipped = self._skipped_by_all()
        better = False
        if probing and log:
            self.accuracies = self._probe()
            log.row(dict(step=done - 1, **self.accuracies))
            found = ', '.join(f'{probe} {accuracy:.2f} %' for probe, accuracy in self.accuracies.items())
            progress.line(f'step {done}: accuracy {found}')
            first = self.accuracies[self.probes[0]]
            better = first > self.best[0]
            if better:
                self.best = first, done
                save_backbone(self.task, self.output / 'best', self._provenance(done))
        if log and (due or better):
            log.flush()
            self._checkpoint(done, skipped)
        self.accelerator.wait_for_everyone()
        return True

    def _provenance(self, steps: int) -> hub.Provenance:
        """How the model has been trained after so many steps."""
        whole = self.config.epochs is not None and steps % self.plan.steps_per_epoch == 0
        return provenance(
            self.config.method,
            images=self.settings['images'],
            steps=steps,
            epochs=steps // self.plan.steps_per_epoch if whole else None,
            base_model=self.base_model,
        )

    def _probe(self) -> Dict[str, float]:
        view = PlainView(**self.task.input_config)
        where = dict(device=self.accelerator.device, workers=self.config.workers)
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
        checkpoints.prune(folder, self.config.checkpoint_hist, self.best[1])


def _mean(values: List[Optional[torch.Tensor]]) -> Optional[torch.Tensor]:
    """Mean of scalars; None if there are none."""
    return None if values[0] is None else torch.stack(values).mean()


def _moved(images: Images, device: torch.device) -> Images:
    """Images, or images one by one, on a device."""
    if isinstance(images, torch.Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]
