"""What PixPro and BYOL teach a small network about every pixel of generated scenes, at equal time.

The scenes are those of `segmentation`: the class of a pixel is the shape it belongs to. Networks, views, images,
optimizer and processor time are the same; features are frozen, and measured by `timm_extra.pretrain.dense_probe`.
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List

import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

from timm_extra.pretrain.dense_probe import correspondence, linear_segmentation
from timm_extra.pretrain.located import LocatedView
from timm_extra.pretrain.tasks import BYOL, PixPro
from timm_extra.pretrain.tasks.momentum import MomentumTask
from timm_extra.pretrain.views import RandomView, Recipe

from ..environment import environment
from . import timed
from .segmentation import CLASSES, SIZE, scenes

INPUT = dict(input_size=(3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)
VIEW = Recipe(scale=(0.2, 1.0), blur=0.0)
RECIPE: Dict[str, Any] = dict(batch_size=64, lr=1e-3, weight_decay=1e-2, clip_grad=10.0, warmup=0.03)
HEADS: Dict[str, Any] = dict(projection_size=128, projection_hidden_size=256)
DECAY = 0.99
METHODS: Dict[str, Any] = {
    'random': None,
    'BYOL': (BYOL, {}),
    'PixPro': (PixPro, {}),
    'PixPro, α = 0': (PixPro, dict(instance_weight=0)),
}
NUM_IMAGES, NUM_LABELLED, NUM_TEST = 4_000, 1_000, 400
FIRST = dict(images=3 * 10**6, labelled=4 * 10**6, test=10**6)  # seeds of scenes; the test's are those of segmentation


def network() -> nn.Module:
    """A ResNet of one block per stage, whose last three stages have maps of 8 × 8 cells for images of 32 × 32.

    timm's residual branches begin at zero, so that a network of few blocks begins as a subsampling: not here.
    """
    channels = dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), zero_init_last=False)
    model = timm.create_model('resnet18', num_classes=0, output_stride=8, **channels)
    model.maxpool = nn.Identity()
    return model


def in_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Scenes as images in [0, 1]."""
    return (0.5 + 0.4 * images).clamp(0, 1)


def labelled(first: int, count: int) -> TensorDataset:
    """Scenes as the network takes them, and classes of their pixels."""
    images, labels = scenes(first, count)
    return TensorDataset((in_unit_range(images) - INPUT['mean'][0]) / INPUT['std'][0], labels)


def train(task: MomentumTask, minutes: float, seed: int) -> Dict[str, Any]:
    """Train for a time; the decay of the target follows the time that has passed."""
    images = in_unit_range(scenes(FIRST['images'], NUM_IMAGES)[0])
    random = torch.Generator().manual_seed(seed)
    progress = 0.0
    task.decay = lambda _: 1 - (1 - DECAY) * (math.cos(math.pi * progress) + 1) / 2

    def step(number: int, passed: float) -> Dict[str, torch.Tensor]:
        nonlocal progress
        if number:  # after the optimizer's last step
            task.update_ema(number - 1)
        progress = passed
        out = task(images[torch.randint(NUM_IMAGES, (RECIPE['batch_size'],), generator=random)])
        return dict(loss=out['loss'], std=out['std'])

    task.train()
    return timed.train(task.trainable_module, step, RECIPE, minutes)


def measure(model: nn.Module) -> Dict[str, Any]:
    """Both probes of a network, in per cent."""
    sets = labelled(FIRST['labelled'], NUM_LABELLED), labelled(FIRST['test'], NUM_TEST)
    found = linear_segmentation(model, *sets, len(CLASSES))
    view = LocatedView(RandomView(VIEW, **INPUT))
    again = correspondence(model, in_unit_range(scenes(FIRST['test'], NUM_TEST)[0]), (view, view))
    return dict(
        miou=round(found.mean_iou, 2),
        iou=dict(zip(CLASSES, [round(v, 2) for v in found.iou], strict=True)),
        pixel_accuracy=round(found.pixel_accuracy, 2),
        correspondence=round(again.accuracy, 2),
        chance=round(again.chance, 2),
    )


def run(method: str, seed: int, minutes: float) -> Dict[str, Any]:
    """Train and measure one network."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = network()
    about = dict(method=method, seed=seed, params=sum(p.numel() for p in model.parameters()))
    if METHODS[method]:
        kind, options = METHODS[method]
        view = RandomView(VIEW, **INPUT)
        task = kind(model, view1=view, view2=view, decay=DECAY, num_steps=None, **HEADS, **options, **INPUT)
        about.update(train(task, minutes, seed))
    return dict(about, **measure(model))


def table(runs: List[Dict[str, Any]]) -> str:
    """Results as a table of Markdown."""
    lines = ['| seed | features | steps | mIoU, % | pixels, % | correspondence, % |', '|---' * 6 + '|']
    for one in runs:
        figures = ' | '.join(f'{one[name]:.1f}' for name in ('miou', 'pixel_accuracy', 'correspondence'))
        lines.append(f'| {one["seed"]} | {one["method"]} | {one.get("steps", 0):,} | {figures} |')
    return '\n'.join(lines)


def arguments() -> argparse.Namespace:
    """Parse the command line; makes the folder."""
    parser = argparse.ArgumentParser('python -m benchmarks.learning.dense', description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=8.0, help='of a training, on a processor of its own (8)')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS, help='all by default')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='one run for each (0)')
    parser.add_argument('--jobs', type=int, default=2, help='runs side by side, one thread each (%(default)s)')
    parser.add_argument('--out', type=Path, default=Path('output/learning'), help='folder for what comes out')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == '__main__':
    args = arguments()
    tasks = [(method, seed, args.minutes) for seed in args.seeds for method in args.methods]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        runs = list(pool.map(run, *zip(*tasks, strict=True)))
    about = dict(recipe=RECIPE, heads=HEADS, decay=DECAY, minutes=args.minutes, jobs=args.jobs, threads=1)
    counts = dict(num_images=NUM_IMAGES, num_labelled=NUM_LABELLED, num_test=NUM_TEST)
    result = dict(environment=environment(), **about, **counts, runs=runs)
    (args.out / 'dense.json').write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n')
    print(f'{table(runs)}\n{args.out}/dense.json')
