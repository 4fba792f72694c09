"""What pretraining without labels teaches a small network about Fashion-MNIST, beside other packages.

All methods have the same network, images, views, steps, optimizer and schedule, and so the same batches. Frozen
features are measured by 20 nearest neighbours and a linear classifier that learn from the first 10,000 training images;
and the network is fine-tuned with few labels, against one from scratch.
"""

import argparse
import copy
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List

import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

from timm_extra.plot import new_figure
from timm_extra.pretrain import PretrainConfig, pretrain
from timm_extra.pretrain.presets import PRESETS
from timm_extra.pretrain.probe import accuracies
from timm_extra.pretrain.views import PlainView, RandomView
from timm_extra.training.log import read_log

from ..environment import environment
from . import common, pretraining_peers
from .common import MEAN, STD, load_images

PRESET = 'small-images'
SIZE, BATCH = (1, 28, 28), 64
NORM = dict(mean=(MEAN,), std=(STD,))
OURS = {'BYOL': 'byol', 'SimSiam': 'simsiam'}
RANDOM, RAW, AVERAGED = 'random', 'raw pixels', 'positions averaged'
METHODS = (RANDOM, *OURS, *pretraining_peers.PEERS)
_VIEW = PRESETS[PRESET].views[0]
STUDY = {  # BYOL with one thing changed
    AVERAGED: _VIEW,
    'crops from 30 %': replace(_VIEW, scale=(0.3, 1.0)),
    'crops from 50 %': replace(_VIEW, scale=(0.5, 1.0)),
    'half the jitter': replace(_VIEW, brightness=_VIEW.brightness / 2, contrast=_VIEW.contrast / 2),
    'no jitter': replace(_VIEW, jitter=0.0),
    'blur and solarize': replace(_VIEW, blur=0.3, solarize=0.2),
}
NUM_LABELLED, CURVE = 10_000, 10  # images that the probes learn from; points of the curve
FINE_TUNING: Dict[str, Any] = dict(batch_size=50, weight_decay=0.05, warmup_epochs=2)
LEARNING_RATES, EPOCHS = (1e-3, 4e-3), {600: 60, 6_000: 15}  # by labelled images: 1 % and 10 %
HELD_OUT = 5_000  # the last training images, on which the learning rate is chosen


def network(num_classes: int = 0, averaged: bool = False) -> nn.Module:
    """A ResNet-18 of one block per stage for small images that are aligned.

    The first convolution keeps their size, the last stage is left out, and its 4 × 4 positions are not averaged: where
    something is says much of what it is, here. timm's residual branches begin at zero, so that a network of few blocks
    begins as a subsampling: not here.
    """
    channels = dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 64), stem_type='deep', stem_width=8)
    model = timm.create_model('resnet18', in_chans=1, num_classes=0, zero_init_last=False, **channels)
    model.conv1[0].stride = (1, 1)
    model.layer4 = nn.Identity()
    if not averaged:
        model.global_pool, model.num_features = nn.Flatten(1), 64 * 4 * 4
    if num_classes:
        model.fc = nn.Linear(model.num_features, num_classes)
    return model


def options(method: str, steps: int, seed: int, **more: Any) -> PretrainConfig:
    """How to pretrain, for our methods and others."""
    where = dict(channels_last=True, workers=0, seed=seed, cpu=True)
    about = dict(num_train_steps=steps, batch_size=BATCH, preset=PRESET)
    return PretrainConfig(method=method, input_size=SIZE, **NORM, **about, **where, **more)


def probed(encoder: Any, train: TensorDataset, test: TensorDataset) -> Dict[str, float]:
    """Accuracy of both probes in per cent."""
    found = accuracies(('knn', 'linear'), encoder, train, test, view=PlainView(SIZE, **NORM), workers=0)
    return {name: round(value, 2) for name, value in found.items()}


def train(method: str, model: nn.Module, images: TensorDataset, probe: Any, steps: int, seed: int) -> Dict[str, Any]:
    """Pretrain a network in place; there is a curve of our methods alone."""
    begin, cpu = time.perf_counter(), time.process_time()
    curve: List[Dict[str, float]] = []
    if method not in pretraining_peers.PEERS:
        interval = max(1, steps * BATCH // len(images) // CURVE)
        config = options(OURS.get(method, 'byol'), steps, seed, probes=('knn',), probe_interval=interval)
        view = RandomView(STUDY.get(method, _VIEW), SIZE, **NORM)
        with tempfile.TemporaryDirectory() as output:
            pretrain(model, images, output, config, probe=probe, view1=view)
            rows = read_log(Path(output) / 'log.csv')
        curve = [dict(step=int(row['step']) + 1, knn=float(row['knn'])) for row in rows if row['knn']]
        about = dict(curve=curve, std=float([row['std'] for row in rows if row['std']][-1]))
    else:
        kind = pretraining_peers.PEERS[method].method
        view, heads = RandomView(_VIEW, SIZE, **NORM), PRESETS[PRESET].task_args[kind]
        pretraining_peers.train(method, model, images, options(kind, steps, seed), view, heads)
        about = {}
    seconds = dict(seconds=round(time.perf_counter() - begin), cpu_seconds=round(time.process_time() - cpu))
    return dict(about, **seconds)


def fine_tuned(model: nn.Module, args: argparse.Namespace, seed: int) -> Dict[str, float]:
    """Test accuracy with few labels; of two learning rates the better on images held out."""
    images, labels = load_images(args.data, 'train', args.num_train)
    test, held_out = load_images(args.data, 't10k', 10_000), (images[-HELD_OUT:], labels[-HELD_OUT:])
    found = {}
    for count, epochs in EPOCHS.items():
        tried = []
        for rate in LEARNING_RATES:
            torch.manual_seed(seed)
            classifier = network(num_classes=10)
            classifier.load_state_dict(model.state_dict(), strict=False)
            recipe = dict(FINE_TUNING, lr=rate)
            common.train(classifier, (images[:count], labels[:count]), None, recipe, epochs, seed)
            tried.append(tuple(common.accuracy(classifier, *part) for part in (held_out, test)))
        found[f'{count:,} labels'] = round(max(tried)[1], 2)
    return found


def run(method: str, seed: int, args: argparse.Namespace) -> Dict[str, Any]:
    """Pretrain, probe and fine-tune one network."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, labels = load_images(args.data, 'train', args.num_train, normalised=False)
    labelled = TensorDataset(images[:NUM_LABELLED], labels[:NUM_LABELLED])
    test = TensorDataset(*load_images(args.data, 't10k', 10_000, normalised=False))
    model = network(averaged=method == AVERAGED)
    about: Dict[str, Any] = dict(method=method, seed=seed, params=sum(p.numel() for p in model.parameters()))
    if method == RANDOM:
        about[RAW] = probed(lambda x: x.flatten(1), labelled, test)
    else:
        images = TensorDataset(images)
        about.update(steps=args.steps, **train(method, model, images, (labelled, test), args.steps, seed))
    about.update(probed(model, labelled, test))
    if args.fine_tune and (method == RANDOM or method in OURS):
        about.update(fine_tuned(copy.deepcopy(model), args, seed))
    return about


def table(runs: List[Dict[str, Any]]) -> str:
    """Results as a table of Markdown: means over seeds, and those of each seed."""
    few = list(dict.fromkeys(name for one in runs for name in one if name.endswith('labels')))
    lines = ['| features | steps | minutes | 20-NN, % | linear, % |' + ''.join(f' {name}, % |' for name in few)]
    lines.append('|---' * (5 + len(few)) + '|')
    rows = {RAW: [one[RAW] for one in runs if RAW in one][:1]}
    for one in runs:
        rows.setdefault(one['method'], []).append(one)
    for name, found in rows.items():
        if found:
            figures = [_figures([one[key] for one in found if key in one]) for key in ('knn', 'linear', *few)]
            minutes = [one['cpu_seconds'] / 60 for one in found if 'cpu_seconds' in one]
            minutes = f'{sum(minutes) / len(minutes):.1f}' if minutes else ''
            lines.append(f'| {name} | {found[0].get("steps", 0):,} | {minutes} | {" | ".join(figures)} |')
    return '\n'.join(lines)


def _figures(values: List[float]) -> str:
    """Mean of several seeds, and the values; nothing of none."""
    if len(values) < 2:
        return ''.join(f'{value:.1f}' for value in values)
    return f'{sum(values) / len(values):.1f} ({", ".join(f"{value:.1f}" for value in values)})'


def draw(runs: List[Dict[str, Any]], file: Path) -> None:
    """Accuracy of 20 nearest neighbours over steps."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for one in (one for one in runs if one.get('curve')):
        axes.plot(*zip(*((p['step'], p['knn']) for p in one['curve']), strict=True), marker='.', label=one['method'])
    for one in (one for one in runs if one['method'] == RANDOM):
        axes.axhline(one['knn'], color='0.7', linestyle=':', label='random network')
        axes.axhline(one[RAW]['knn'], color='0.5', linestyle='--', label=RAW)
    axes.set(xlabel='step', ylabel='20-NN accuracy, %')
    axes.legend()
    figure.savefig(file)


def arguments() -> argparse.Namespace:
    """Parse the command line; makes the folder."""
    parser = argparse.ArgumentParser('python -m benchmarks.learning.pretraining', description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder with the four Fashion-MNIST .gz files')
    parser.add_argument('--steps', type=int, default=8_000, help='of 64 images (%(default)s)')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS, help='all by default')
    parser.add_argument('--study', action='store_true', help='BYOL with one thing changed at a time, instead')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='one run for each (0)')
    parser.add_argument('--no-fine-tune', dest='fine_tune', action='store_false', help='frozen features alone')
    parser.add_argument('--num-train', type=int, default=60_000, help='images to train with (%(default)s)')
    parser.add_argument('--jobs', type=int, default=2, help='runs at once, one thread each (%(default)s)')
    parser.add_argument('--name', default='pretraining', help='of the JSON file and the picture (%(default)s)')
    parser.add_argument('--out', type=Path, default=Path('output/learning'), help='folder for them')
    args = parser.parse_args()
    args.methods = list(STUDY) if args.study else args.methods
    for name in ('steps', 'jobs'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be positive, got {getattr(args, name)}')
    if args.num_train < NUM_LABELLED + HELD_OUT:
        parser.error(f'--num-train must be {NUM_LABELLED + HELD_OUT:,} or more, got {args.num_train}')
    try:
        load_images(args.data, 't10k', 1)  # missing files are named before the first run
    except FileNotFoundError as e:
        parser.error(str(e))
    pretraining_peers.check_installed(args.methods)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == '__main__':
    args = arguments()
    tasks = [(method, seed, args) for seed in args.seeds for method in args.methods]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        runs = list(pool.map(run, *zip(*tasks, strict=True)))
    about = dict(
        preset=PRESET, view=asdict(_VIEW), batch_size=BATCH, num_train=args.num_train, num_labelled=NUM_LABELLED
    )
    where = dict(environment(), threads=1, jobs=args.jobs)
    result = dict(environment=where, **about, fine_tuning=dict(FINE_TUNING, epochs=EPOCHS), runs=runs)
    file = args.out / f'{args.name}.json'
    file.write_text(json.dumps(result, indent=1) + '\n')
    draw(runs, file.with_suffix('.png'))
    print(f'{table(runs)}\n{file}')
