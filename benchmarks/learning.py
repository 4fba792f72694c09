"""How fast CeiT learns: an equal-budget comparison with timm's DeiT on Fashion-MNIST, with the paper's ablations.

Every run gets the same images, epochs, batches, augmentation, optimizer and schedule; only the model differs. One
thread a run and the processor time of that thread, so that runs side by side do not disturb the time axis.
"""

import argparse
import gzip
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask

import timm_extra  # noqa: F401
from benchmarks.environment import environment
from timm_extra.plot import new_figure

SIZE = dict(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=6, num_heads=2)
VARIANTS = {
    'DeiT': ('deit_tiny_patch16_224', {}),
    'CeiT': ('ceit_tiny', {}),
    'CeiT, plain patches': ('ceit_tiny', dict(conv_stem=False)),
    'CeiT, LeFF 1×1 without BatchNorm': ('ceit_tiny', dict(leff_kernel_size=1, leff_bn=False)),
    'CeiT, no LCA': ('ceit_tiny', dict(use_lca=False)),
}
RECIPE = dict(
    batch_size=128, lr=1e-3, weight_decay=0.05, warmup_epochs=1, smoothing=0.1, augmentation='flip, shift by 2 px'
)


def read_idx(path: Path) -> torch.Tensor:
    """Read a gzipped IDX file of bytes."""
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], 'big') for i in range(data[3])]
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy())


def load_data(folder: Path, num_train: int):
    """Fashion-MNIST as normalised (N, 1, 28, 28) floats and labels: the first `num_train` images, all test images."""
    images = {}
    for split, prefix in (('train', 'train'), ('test', 't10k')):
        x = read_idx(folder / f'{prefix}-images-idx3-ubyte.gz').unsqueeze(1).float() / 255
        images[split] = (x.sub(0.2860).div(0.3530), read_idx(folder / f'{prefix}-labels-idx1-ubyte.gz').long())
    x, y = images['train']
    return (x[:num_train], y[:num_train]), images['test']


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
    model: torch.nn.Module,
    data: Tuple[torch.Tensor, torch.Tensor],
    test: Tuple[torch.Tensor, torch.Tensor],
    recipe: Dict[str, Any],
    epochs: int,
    seed: int,
) -> List[Dict[str, float]]:
    """Train a classifier and test it after every epoch.

    Args:
        model: Classifier of (N, 1, 28, 28).
        data: Images and labels to train with, `augment`ed in every batch.
        test: Images and labels to test with.
        recipe: `batch_size`, `lr`, `weight_decay` and `warmup_epochs` of AdamW under a cosine; where given, `smoothing`
            of labels and `clip_grad`, the largest norm of a gradient.
        epochs: Passes over the data.
        seed: Of orders and augmentations.

    Returns:
        For every epoch `top1` in per cent, and `train_seconds` of this thread up to then.
    """
    task = ClassificationTask(model, criterion_kwargs=dict(smoothing=recipe.get('smoothing', 0.0)), verbose=False)
    optimizer = create_optimizer_v2(model, 'adamw', lr=recipe['lr'], weight_decay=recipe['weight_decay'])
    batches = len(data[0]) // recipe['batch_size']
    scheduler, _ = create_scheduler_v2(
        optimizer,
        'cosine',
        num_epochs=epochs,
        warmup_epochs=recipe['warmup_epochs'],
        warmup_lr=1e-6,
        min_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=batches,
    )
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
        curve.append(dict(top1=accuracy(model, *test), train_seconds=round(seconds, 1)))
    return curve


def run(variant: str, seed: int, epochs: int, num_train: int, folder: Path) -> dict:
    """Train one model and test it after every epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data, test = load_data(folder, num_train)
    name, extra = VARIANTS[variant]
    model = timm.create_model(name, **SIZE, **extra)
    curve = train(model, data, test, RECIPE, epochs, seed)
    return dict(variant=variant, seed=seed, params=sum(p.numel() for p in model.parameters()), curve=curve)


def plot(result: dict, path: Path) -> None:
    """Accuracy against epoch and against processor time, the mean of the seeds with their range."""
    figure = new_figure(11, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for variant in VARIANTS:
        curves = [r['curve'] for r in result['runs'] if r['variant'] == variant]
        if not curves:
            continue
        top1 = np.array([[e['top1'] for e in c] for c in curves])
        seconds = np.array([[e['train_seconds'] for e in c] for c in curves]).mean(0)
        for axis, time_axis in zip(axes, (np.arange(1, top1.shape[1] + 1), seconds), strict=True):
            (line,) = axis.plot(time_axis, top1.mean(0), marker='.', label=variant)
            axis.fill_between(time_axis, top1.min(0), top1.max(0), color=line.get_color(), alpha=0.15, lw=0)
    axes[0].set(xlabel='epoch', ylabel='test accuracy, %')
    axes[1].set(xlabel='training time, processor seconds of one thread')
    axes[0].legend(loc='lower right')
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(f'Fashion-MNIST, {result["num_train"]:,} training images, {result["epochs"]} epochs')
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.learning', description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder with the four Fashion-MNIST .gz files')
    parser.add_argument('--num-train', type=int, default=10_000)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--jobs', type=int, default=2, help='runs side by side, one thread each')
    parser.add_argument('--out', type=Path, default=Path('output/learning'), help='folder for the JSON and the plot')
    args = parser.parse_args()
    if args.num_train < RECIPE['batch_size']:
        parser.error(f'--num-train must be at least a batch, {RECIPE["batch_size"]}, not {args.num_train}')
    load_data(args.data, 1)  # fail on missing files, or missing matplotlib, before the first run
    new_figure(1, 1)
    args.out.mkdir(parents=True, exist_ok=True)

    runs = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        futures = [
            pool.submit(run, variant, seed, args.epochs, args.num_train, args.data)
            for seed in args.seeds
            for variant in VARIANTS
        ]
        for future in as_completed(futures):
            runs.append(future.result())
            last = runs[-1]['curve'][-1]
            print(f'{runs[-1]["variant"]}, seed {runs[-1]["seed"]}: {last["top1"]:.2f} % in {last["train_seconds"]} s')
    runs.sort(key=lambda r: (list(VARIANTS).index(r['variant']), r['seed']))
    result = dict(
        environment=dict(environment(), threads=1, jobs=args.jobs),
        num_train=args.num_train,
        epochs=args.epochs,
        model=SIZE,
        recipe=RECIPE,
        runs=runs,
    )
    (args.out / 'learning.json').write_text(json.dumps(result, indent=1) + '\n')
    plot(result, args.out / 'learning.png')
    print(f'{args.out}/learning.json, learning.png')


if __name__ == '__main__':
    main()
