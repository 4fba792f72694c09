"""What the trainings on Fashion-MNIST share: its files, runs side by side, the training of a classifier."""

import argparse
import gzip
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask

import timm_extra  # noqa: F401

from ..environment import environment

MEAN, STD = 0.2860, 0.3530
Data = Tuple[torch.Tensor, torch.Tensor]


def _read_idx(path: Path) -> torch.Tensor:
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], 'big') for i in range(data[3])]
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy())


def load_images(folder: Path, split: str, count: int, normalised: bool = True) -> Data:
    """The first images of 'train' or 't10k' (N, 1, 28, 28), normalised or as bytes, with classes (N,)."""
    x = _read_idx(folder / f'{split}-images-idx3-ubyte.gz')[:count, None]
    x = x.float().div(255).sub(MEAN).div(STD) if normalised else x
    return x, _read_idx(folder / f'{split}-labels-idx1-ubyte.gz')[:count].long()


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images and shift each by up to two pixels, per image."""
    b, _, h, w = x.shape
    flip = torch.rand(b, 1, 1, 1, generator=generator) < 0.5
    x = torch.nn.functional.pad(torch.where(flip, x.flip(3), x), (2, 2, 2, 2), value=float(x.min()))
    dy, dx = torch.randint(0, 5, (2, b, 1, 1), generator=generator)
    rows = dy + torch.arange(h).view(1, h, 1)
    cols = dx + torch.arange(w).view(1, 1, w)
    return x[torch.arange(b).view(b, 1, 1), 0, rows, cols].unsqueeze(1)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Top-1 accuracy in per cent."""
    model.eval()
    hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * hits / len(y)


def train(
    model: torch.nn.Module, data: Data, test: Optional[Data], recipe: Dict[str, Any], epochs: int, seed: int
) -> Dict[str, Any]:
    """Train a classifier of (N, 1, 28, 28) by AdamW under a cosine, and test it after every epoch.

    Returns:
        `params` and the `curve`: for every epoch `top1` in per cent, if there is a test, and `train_seconds` of this
        thread up to then.
    """
    task = ClassificationTask(model, criterion_kwargs=dict(smoothing=recipe.get('smoothing', 0.0)), verbose=False)
    optimizer = create_optimizer_v2(model, 'adamw', lr=recipe['lr'], weight_decay=recipe['weight_decay'])
    batches = len(data[0]) // recipe['batch_size']
    schedule = dict(num_epochs=epochs, warmup_epochs=recipe['warmup_epochs'], warmup_lr=1e-6, min_lr=1e-5)
    steps = dict(step_on_epochs=False, updates_per_epoch=batches)
    scheduler, _ = create_scheduler_v2(optimizer, 'cosine', **schedule, **steps)
    generator = torch.Generator().manual_seed(seed)
    curve, seconds, updates = [], 0.0, 0
    for _ in range(epochs):
        begin = time.thread_time()
        model.train()
        order = torch.randperm(len(data[0]), generator=generator)[: batches * recipe['batch_size']]
        for index in order.view(batches, -1):
            task(augment(data[0][index], generator), data[1][index])['loss'].backward()
            if 'clip_grad' in recipe:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe['clip_grad'])
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            scheduler.step_update(updates)
        seconds += time.thread_time() - begin
        tested = dict(top1=accuracy(model, *test)) if test else {}
        curve.append(dict(tested, train_seconds=round(seconds, 1)))
    return dict(params=sum(p.numel() for p in model.parameters()), curve=curve)


def arguments(name: str, about: str, epochs: int, num_train: int) -> argparse.Namespace:
    """Parse the command line that all trainings have."""
    parser = argparse.ArgumentParser(f'python -m benchmarks.learning.{name}', description=about)
    parser.add_argument('--data', type=Path, required=True, help='folder with the four Fashion-MNIST .gz files')
    parser.add_argument('--num-train', type=int, default=num_train, help='images to train with (%(default)s)')
    parser.add_argument('--epochs', type=int, default=epochs, help='passes over them (%(default)s)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='one run for each (0)')
    parser.add_argument('--jobs', type=int, default=2, help='runs side by side, one thread each (%(default)s)')
    parser.add_argument('--out', type=Path, default=Path('output/learning'), help='folder for JSON and pictures')
    args = parser.parse_args()
    load_images(args.data, 't10k', 1)  # fail on missing files before the first run
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def _one(run: Callable[..., Dict[str, Any]], kind: str, seed: int, args: argparse.Namespace) -> Dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return dict(kind=kind, seed=seed, **run(kind, seed, args))


def run_all(
    name: str, run: Callable[..., Dict[str, Any]], kinds: Sequence[str], args: argparse.Namespace, **about: Any
) -> Dict[str, Any]:
    """Run every kind with every seed, side by side; the result, which is written, says `about` of itself too."""
    tasks = [(run, kind, seed, args) for kind in kinds for seed in args.seeds]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        runs = list(pool.map(_one, *zip(*tasks, strict=True)))
    where = dict(environment(), threads=1, jobs=args.jobs)
    result = dict(environment=where, num_train=args.num_train, epochs=args.epochs, **about, runs=runs)
    (args.out / f'{name}.json').write_text(json.dumps(result, indent=1) + '\n')
    print(f'{args.out}/{name}.json')
    return result
