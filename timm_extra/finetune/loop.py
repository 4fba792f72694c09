"""The fine-tuning loop, by timm's task, optimizer, schedule and mixup."""

import hashlib
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, NoReturn, Optional, Tuple

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from timm_extra import hub
from timm_extra._device import find_device
from timm_extra._files import PathLike
from timm_extra.plot import learning_curve
from timm_extra.training import checkpoints
from timm_extra.training.accelerator import create_accelerator
from timm_extra.training.interrupt import Interrupted, Interruption, ignored_by_processes, interruptible
from timm_extra.training.log import Log, check_log
from timm_extra.training.order import Batches, order_of, random_state
from timm_extra.training.progress import Progress, print_summary
from timm_extra.training.workers import Failed, in_words

from .config import FinetuneConfig
from .data import Labelled, loader

COLUMNS = ('step', 'epoch', 'train_loss', 'eval_loss', 'top1', 'learning_rate', 'seconds')
LOADED_LR, RANDOM_LR = 1e-4, 1e-3
FLOOR = 0.01  # of the peak learning rate: where warm-up begins and the cosine ends


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning leaves behind.

    Attributes:
        model: The model that was passed in, as the last step left it.
        folder: Folder of `model/` (the best, Hub format), `checkpoints/`, `log.csv` and `curve.png` (by
            matplotlib, where that is installed); None if none was given.
        history: Of every epoch `train_loss`, `eval_loss`, `top1` (per cent), `learning_rate` and `seconds`.
        skipped: How often a file that could not be read was left out.
    """

    model: nn.Module
    folder: Optional[Path]
    history: List[Dict[str, float]]
    skipped: int

    @property
    def best(self) -> float:
        """Highest accuracy on the held-out files, per cent: that of the model in `folder`."""
        return max(entry['top1'] for entry in self.history)


def finetune(
    model: nn.Module,
    data: Labelled,
    output: Optional[PathLike],
    config: FinetuneConfig,
    *,
    pretrained: bool = True,
    base_model: Optional[str] = None,
) -> Finetuned:
    """Train a classifier and keep it where it is best.

    All random numbers depend on the seed, the epoch, the step and the index of a file alone: a training that was
    interrupted and is resumed goes on exactly as if it had not been. Ctrl-C waits for the step and writes a checkpoint.

    Args:
        model: Classifier made by `timm.create_model`, with as many classes as `data`. Trained in place.
        data: What it learns from, as `folder_data` gives it.
        output: Folder to write to; with None nothing is written.
        config: All options.
        pretrained: The model has learned something: what the default learning rate depends on.
        base_model: What the card calls the weights that the model has, as `timm_extra.hub.base_model` finds it.

    Returns:
        The trained model, what it reached, and where the best was saved.

    Raises:
        ValueError: An argument is out of range or does not fit the others, a file cannot be read, a checkpoint belongs
            to another training, or the training diverges.
        FileExistsError: `output` is a file, or has a model or checkpoints, and `resume` is False.
        OSError: A checkpoint cannot be written; earlier ones stay.
        Interrupted: Ctrl-C came; a checkpoint was written.
    """
    if getattr(model, 'num_classes', None) != len(data.label_names):
        raise ValueError(f'the data has {len(data.label_names)} classes, the model {getattr(model, "num_classes", 0)}')
    if output is not None and not str(output):
        raise ValueError('`output` is empty: name a folder')
    folder = None if output is None else Path(output)
    if folder and folder.exists() and not folder.is_dir():
        raise FileExistsError(f'{output} is a file, not a folder')
    found = checkpoints.steps(folder / 'checkpoints') if folder else []
    if not config.resume and (found or (folder and (folder / 'model').exists())):
        raise FileExistsError(f'{output} has a model already: choose another folder, or go on by `resume=True`')
    if folder:
        inside = [root for root in data.roots if folder.resolve().is_relative_to(Path(root).resolve())]
        if inside:
            raise ValueError(f'`output={str(output)!r}` lies in {inside[0]}, where the {data.kind} are: choose another')
        cfg = getattr(model, 'pretrained_cfg', None) or {}
        if other := hub.another_model(folder / 'model', dict(cfg, num_classes=model.num_classes)):
            raise FileExistsError(f'{other}: choose another folder')
        check_log(folder / 'log.csv', COLUMNS)
    device = find_device(config.device)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    accelerator = create_accelerator(config.mixed_precision, device.type == 'cpu', config.log_with, folder)
    if accelerator.num_processes > 1:
        raise ValueError("fine-tuning runs in one process; timm's train.py takes several")
    lr = config.lr or (LOADED_LR if pretrained else RANDOM_LR)
    run = _Run(config, accelerator, model, data, folder, lr, base_model)
    return run.go(found, pretrained)


@dataclass
class _Run:
    """One training."""

    config: FinetuneConfig
    accelerator: Any
    model: nn.Module
    data: Labelled
    output: Optional[Path]
    lr: float
    base_model: Optional[str]
    done: int = 0  # steps
    losses: Optional[torch.Tensor] = None  # sum over the steps of this epoch
    history: List[Dict[str, float]] = field(default_factory=list)
    skipped: int = 0

    def __post_init__(self):
        config = self.config
        self.batch_size = min(config.batch_size, len(self.data.train))
        mixing = bool(config.mixup or config.cutmix)
        self.batch_size -= mixing and self.batch_size % 2
        self.each = len(self.data.train) // self.batch_size
        self.total = config.epochs * self.each
        self.warmup = min(1, config.epochs - 1) if config.warmup_epochs is None else config.warmup_epochs
        self.mixup = None
        if mixing:
            smoothing, classes = config.smoothing, len(self.data.label_names)
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=classes)

    def _show(self, pretrained: bool) -> None:
        """Say what is about to run."""
        config, cfg = self.config, getattr(self.model, 'pretrained_cfg', None) or {}
        count = sum(p.numel() for p in self.model.parameters())
        options = dict(mixup=config.mixup, cutmix=config.cutmix, layer_decay=config.layer_decay)
        others = ''.join(f', {name.replace("_", " ")} {value:g}' for name, value in options.items() if value)
        others += ', moving average' if config.model_ema else ''
        precision = dict(no='float32').get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)
        print_summary(
            {
                'model': f'{cfg.get("architecture") or type(self.model).__name__}, {count:,} parameters, '
                + ('loaded weights' if pretrained else 'random weights'),
                self.data.kind: self.data.source,
                'classes': _listed(self.data.label_names),
                'device': f'{self.accelerator.device}, {precision}',
                'recipe': f'{config.opt}, lr {self.lr:g}, weight decay {config.weight_decay:g}, '
                f'warm-up {self.warmup:g} of {config.epochs} epochs, smoothing {config.smoothing:g}{others}',
                'steps': f'{self.total:,} of {self.batch_size} {self.data.kind}, {self.each:,} an epoch'
                + (f', going on from {self.done:,}' if self.done else ''),
                'output': str(self.output or ''),
            }
        )

    def go(self, found: List[int], pretrained: bool) -> Finetuned:
        """Train from the start or the last of the checkpoints found to the end."""
        if self.output:
            checkpoints.clean(self.output / 'checkpoints')
        saved = self._read(found[-1]) if found else None
        self._prepare(saved)
        self._check_model()
        self._show(pretrained)
        whole = len(self.history) * self.each  # steps of the epochs that are done
        log = Log(self.output, COLUMNS, whole, self.accelerator, self.settings) if self.output else None
        try:
            if self.output:
                with interruptible() as interruption:
                    self._train(interruption, log)
            else:
                self._train(Interruption(), None)
        finally:
            if log:
                log.close()
        return Finetuned(self.model, self.output, self.history, self.skipped)

    def _read(self, step: int) -> Dict[str, Any]:
        saved = checkpoints.read(self.output / 'checkpoints' / checkpoints.NAME.format(step))
        wrong = checkpoints.differences(saved['settings'], self._settings())
        if wrong:
            raise ValueError(f'the checkpoint in {self.output} is of another training: {"; ".join(wrong)}')
        return saved

    def _settings(self) -> Dict[str, Any]:
        """All that the result depends on; resuming refuses other values. Keys are part of the format of checkpoints."""
        cfg = getattr(self.model, 'pretrained_cfg', None) or {}
        config = {name: checkpoints.described(value) for name, value in self.config.settings().items()}
        return dict(
            config,
            model=cfg.get('architecture') or type(self.model).__name__,
            layers=hashlib.sha1(repr(self.model).encode()).hexdigest()[:8],  # which its arguments decide
            classes=list(self.data.label_names),
            train=len(self.data.train),
            validation=len(self.data.validation),
            files=self.data.files,
            lr=self.lr,
            **{name: checkpoints.described(value) for name, value in self.data.data_config.items()},
        )

    def _prepare(self, saved: Optional[Dict[str, Any]]) -> None:
        """Make or load everything that has a state."""
        config, accelerator = self.config, self.accelerator
        self.settings = self._settings()
        criterion = dict(soft_targets=True) if self.mixup else dict(smoothing=config.smoothing)
        self.task = ClassificationTask(self.model, criterion_kwargs=criterion, verbose=False)
        self.task.to(accelerator.device)
        if config.model_ema:
            self.task.setup_ema(config.model_ema_decay, use_warmup=True)
        optimizer = self._optimizer()
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            'cosine',
            num_epochs=config.epochs,
            warmup_epochs=self.warmup,
            warmup_lr=FLOOR * self.lr,
            min_lr=FLOOR * self.lr,
            step_on_epochs=False,
            updates_per_epoch=self.each,
        )
        self.losses = torch.zeros((), device=accelerator.device)
        if saved:
            self.task.load_checkpoint_state(saved['task']['state_dict'])
            if config.model_ema:
                self.task.load_checkpoint_state(saved['task']['state_dict_ema'], ema=True)
            optimizer.load_state_dict(saved['optimizer'])
            if accelerator.scaler is not None and saved['scaler']:
                accelerator.scaler.load_state_dict(saved['scaler'])
            self.done, self.skipped, self.history = saved['step'], saved['skipped'], saved['history']
            self.losses += saved['losses']
        self.scheduler.step_update(self.done)
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        try:
            optimizer = create_optimizer_v2(
                self.model, config.opt, lr=self.lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay
            )
        except Exception as e:  # what optimizers raise that miss something is of any type
            raise ValueError(f'`opt={config.opt!r}` cannot be made: {e or type(e).__name__}') from e
        if getattr(optimizer, 'is_second_order', False):
            raise ValueError(f'`opt={config.opt!r}` needs second derivatives, which are not computed here')
        return optimizer

    def _check_model(self) -> None:
        """Refuse a model that is no classifier of the inputs, before anything is written."""
        with random_state((self.config.seed,)):
            first = in_words(self.data.validation.__getitem__, 0)
        if isinstance(first, Failed):
            if first.memory:
                raise ValueError(first.reason)
            return
        item = first[0]
        self.model.eval()
        try:
            with torch.inference_mode(), self.accelerator.autocast():
                shape = tuple(self.model(item[None].to(self.accelerator.device)).shape)
        except Exception as e:  # what models raise is of any type
            raise ValueError(f'the model takes no inputs of {tuple(item.shape)}: {e or type(e).__name__}') from e
        if shape != (1, len(self.data.label_names)):
            raise ValueError(f'the model gives {shape} for one input, not ({1}, {len(self.data.label_names)}) logits')

    def _train(self, interruption: Interruption, log: Optional[Log]) -> None:
        incoming = self._batches()
        due = self.config.checkpoint_interval if self.output else None
        with Progress(self.total, self.done) as progress:
            for epoch in range(len(self.history), self.config.epochs):
                clock = time.perf_counter()
                while self.done < (epoch + 1) * self.each:
                    loss = self._step(next(incoming))
                    progress.update()
                    if self.done % self.config.log_interval == 0:
                        progress.show(f'epoch {epoch + 1}/{self.config.epochs}  loss {self._finite(loss):.3f}')
                    if interruption.came:
                        self._stop()
                    if due and self.done % due == 0:
                        self._checkpoint()
                train_loss = self._finite(self.losses) / self.each
                try:
                    measured = self._evaluate(interruption)
                except ValueError:  # of a held-out file: what was learned is not lost
                    if self.output:
                        self._checkpoint()
                    raise
                seconds = round(time.perf_counter() - clock, 1)
                rate = self.optimizer.param_groups[-1]['lr']
                self._after(dict(train_loss=train_loss, **measured, learning_rate=rate, seconds=seconds), log)
                progress.line(f'epoch {epoch + 1}/{self.config.epochs}  {_in_words(self.history[-1])}')

    @cached_property
    def held_out(self) -> DataLoader:
        """Batches of the held-out files, whose workers stay."""
        at = [(0, index) for index in range(len(self.data.validation))]
        batches = [at[begin : begin + self.batch_size] for begin in range(0, len(at), self.batch_size)]
        return self._loader(self.data.validation, batches)

    def _batches(self) -> Iterator:
        """Training batches from the next step on."""
        if self.done == self.total:
            return iter(())
        steps, order = (self.done, self.total), order_of(self.data.train)
        batches = Batches(len(self.data.train), self.batch_size, steps=steps, seed=self.config.seed, order=order)
        return _started(self._loader(self.data.train, batches))

    def _loader(self, dataset, batches):
        on_gpu = self.accelerator.device.type == 'cuda'
        return loader(dataset, self.config.seed, batches, self.config.workers, on_gpu)

    def _step(self, batch) -> torch.Tensor:
        """One step of the optimizer; the loss."""
        config, accelerator = self.config, self.accelerator
        self._check(batch)
        if batch.inputs is None:
            raise ValueError(f'none of the {len(batch.errors)} files of a step can be read; {batch.errors[0].reason}')
        x, y = self._moved(batch)
        if batch.errors:  # others take their places
            places = torch.arange(self.batch_size, device=x.device) % len(x)
            x, y = x[places], y[places]
        self.model.train()
        with random_state((config.seed, self.done)):  # of mixup, dropout and drop path
            if self.mixup:
                x, y = self.mixup(x, y)
            with accelerator.autocast():
                loss = self.task(x, y)['loss']
            accelerator.backward(loss)
        if config.clip_grad is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        self.task.update_ema(self.done)
        self.scheduler.step_update(self.done)
        self.losses += loss.detach().float()
        return loss.detach()

    def _check(self, batch) -> None:
        """Refuse or count what could not be read."""
        if batch.errors and self.config.unreadable == 'raise':
            raise ValueError(f"{batch.errors[0].reason}; `unreadable='skip'` leaves such files out")
        self.skipped += len(batch.errors)

    def _moved(self, batch) -> Tuple[torch.Tensor, torch.Tensor]:
        device = self.accelerator.device
        return batch.inputs.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)

    def _finite(self, loss: torch.Tensor) -> float:
        found = loss.item()
        if not math.isfinite(found):
            raise ValueError(
                f'the training diverged by step {self.done} (loss {found:.4g}): lower `lr`, or use no fp16'
            )
        return found

    @torch.inference_mode()
    def _evaluate(self, interruption: Interruption) -> Dict[str, float]:
        """Loss and accuracy on the held-out files; nothing of it is kept if Ctrl-C comes."""
        model = self.task.get_eval_model(ema=self.config.model_ema).eval()
        loss, hits, count, skipped = 0.0, 0, 0, self.skipped
        for batch in _started(self.held_out):
            if interruption.came:
                self.skipped = skipped
                self._stop()
            self._check(batch)
            if batch.inputs is None:
                continue
            x, y = self._moved(batch)
            with self.accelerator.autocast():
                logits = model(x).float()
            loss += F.cross_entropy(logits, y, reduction='sum').item()
            hits += int((logits.argmax(1) == y).sum())
            count += len(y)
        if not count:
            raise ValueError(f'none of the held-out {self.data.kind} can be read')
        return dict(eval_loss=loss / count, top1=100 * hits / count)

    def _after(self, measured: Dict[str, float], log: Optional[Log]) -> None:
        """Keep an epoch: in the history, the log, the curve, a checkpoint, and the model where it is the best."""
        better = all(measured['top1'] > entry['top1'] for entry in self.history)
        self.history.append(measured)
        self.losses.zero_()
        if not self.output:
            return
        if better:
            hub.save(
                self.task.get_eval_model(ema=self.config.model_ema),
                self.output / 'model',
                model_config=dict(label_names=list(self.data.label_names)),
                data_config=self.data.data_config,
                provenance=self._provenance(),
            )
        if find_spec('matplotlib'):
            learning_curve(self.history, self.output / 'curve.png')
        log.row(dict(step=self.done - 1, epoch=len(self.history) - 1, **measured))
        log.flush()
        self._checkpoint()

    def _provenance(self) -> hub.Provenance:
        """How the model came about, for its card."""
        counts = dict(images=len(self.data.train), steps=self.done, epochs=len(self.history))
        return hub.Provenance('Trained with labels', base_model=self.base_model, kind=self.data.kind, **counts)

    def _stop(self) -> NoReturn:
        """Write a checkpoint and end."""
        self._finite(self.losses)
        self._checkpoint()
        raise Interrupted(f'stopped after step {self.done:,} of {self.total:,}; `resume=True` goes on from there')

    def _checkpoint(self) -> None:
        folder, scaler = self.output / 'checkpoints', self.accelerator.scaler
        self._finite(self.losses)
        states = (self.task.get_checkpoint_state(ema=ema) for ema in (False, True))
        state = dict(
            step=self.done,
            settings=self.settings,
            task={name: value for each in states for name, value in each.items()},
            optimizer=self.optimizer.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
            losses=self.losses.cpu(),
            history=self.history,
            skipped=self.skipped,
        )
        checkpoints.write(state, folder / checkpoints.NAME.format(self.done))
        checkpoints.prune(folder, self.config.checkpoint_hist, None)


def _started(batches: DataLoader) -> Iterator:
    """Batches of a loader, the processes of which Ctrl-C does not end."""
    with ignored_by_processes():
        return iter(batches)


def _listed(names) -> str:
    """How many names, and the first of them."""
    return f'{len(names):,}: ' + ', '.join(names[:8]) + (', …' if len(names) > 8 else '')


def _in_words(entry: Dict[str, float]) -> str:
    return (
        f'training loss {entry["train_loss"]:.3f}, held-out loss {entry["eval_loss"]:.3f}, '
        f'accuracy {entry["top1"]:.2f} %, {entry["seconds"]} s'
    )
