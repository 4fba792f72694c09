"""How fast CeiT learns: an equal-budget comparison with timm's DeiT on Fashion-MNIST, with the paper's ablations.

Every run gets the same images, epochs, batches, augmentation, optimizer and schedule; only the model differs. One
thread a run and the processor time of that thread, so that runs side by side do not disturb the time axis.
"""

import argparse
from pathlib import Path
from typing import Any, Dict

import numpy as np
import timm

from timm_extra.plot import new_figure

from .common import arguments, load_images, run_all, train

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


def run(variant: str, seed: int, args: argparse.Namespace) -> Dict[str, Any]:
    """Train one model and test it after every epoch."""
    data, test = (load_images(args.data, *split) for split in (('train', args.num_train), ('t10k', 10_000)))
    name, extra = VARIANTS[variant]
    model = timm.create_model(name, **SIZE, **extra)
    return train(model, data, test, RECIPE, args.epochs, seed)


def plot(result: Dict[str, Any], path: Path) -> None:
    """Accuracy against epoch and against processor time, the mean of the seeds with their range."""
    figure = new_figure(11, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for variant in VARIANTS:
        curves = [r['curve'] for r in result['runs'] if r['kind'] == variant]
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


if __name__ == '__main__':
    args = arguments('ceit', __doc__.splitlines()[0], epochs=8, num_train=10_000)
    plot(run_all('ceit', run, list(VARIANTS), args, model=SIZE, recipe=RECIPE), args.out / 'ceit.png')
