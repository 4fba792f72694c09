"""What pretraining without labels teaches a small network about Fashion-MNIST, by 20 nearest neighbours."""

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, Tuple

import timm
import torch
from torch.utils.data import TensorDataset

from benchmarks.environment import environment
from benchmarks.learning import read_idx
from timm_extra.plot import new_figure
from timm_extra.pretrain import PretrainConfig, pretrain
from timm_extra.pretrain.log import read_log
from timm_extra.pretrain.probe import accuracies
from timm_extra.pretrain.views import PlainView, RandomView, Recipe

SIZE = (1, 56, 56)
NORM = dict(mean=(0.286,), std=(0.353,))
VIEW = Recipe(scale=(0.5, 1.0), blur=0.0, contrast=0.2, brightness=0.2)
MODEL = ('resnet18', dict(layers=(1, 1, 1, 1), channels=(32, 64, 128, 256), in_chans=1, num_classes=0))
RECIPE: Dict[str, Any] = dict(opt='adamw', lr=1e-3, weight_decay=1e-2, warmup_epochs=1)
HEADS = {
    'byol': dict(projection_hidden_size=1024, decay=0.98),
    'simsiam': dict(projection_size=1024, prediction_hidden_size=256),
}


def load(folder: Path, num_train: int, num_test: int) -> Tuple[TensorDataset, TensorDataset]:
    """The first images of Fashion-MNIST as uint8 (N, 1, 28, 28), with classes."""
    sets = []
    for prefix, count in (('train', num_train), ('t10k', num_test)):
        x = read_idx(folder / f'{prefix}-images-idx3-ubyte.gz')[:count, None]
        sets.append(TensorDataset(x, read_idx(folder / f'{prefix}-labels-idx1-ubyte.gz')[:count].long()))
    return sets[0], sets[1]


def run(method: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Pretrain a network and probe it before, after every few epochs and at the end."""
    torch.set_num_threads(args.threads)
    train, test = load(args.data, args.num_train, args.num_test)
    torch.manual_seed(args.seed)
    model = timm.create_model(MODEL[0], **MODEL[1])
    plain = PlainView(SIZE, **NORM)

    def probes(encoder) -> Dict[str, float]:
        return accuracies(('knn', 'linear'), encoder, train, test, view=plain, workers=0)

    before = probes(model)
    begin, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as output:
        view = RandomView(VIEW, SIZE, **NORM)
        config = PretrainConfig(
            method=method,
            epochs=args.epochs,
            batch_size=args.batch_size,
            input_size=SIZE,
            **NORM,
            task_args=HEADS[method],
            probe_interval=args.probe_interval,
            channels_last=True,
            workers=0,
            seed=args.seed,
            cpu=True,
            **RECIPE,
        )
        done = pretrain(model, train, output, config, probe=(train, test), view1=view, view2=view)
        rows = read_log(Path(output) / 'log.csv')
    return dict(
        method=method,
        random=before,
        pretrained=probes(done.model),
        raw=probes(lambda x: x.flatten(1)),
        curve=[dict(step=int(r['step']), knn=float(r['knn'])) for r in rows if r['knn']],
        loss=[dict(step=int(r['step']), loss=float(r['loss']), std=float(r['std'])) for r in rows if r['loss']],
        seconds=round(time.perf_counter() - begin),
        cpu_seconds=round(time.process_time() - cpu),
        steps=done.steps,
    )


def draw(runs, file: Path) -> None:
    """Accuracy over steps."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for number, one in enumerate(runs):
        points = [(0, one['random']['knn'])] + [(p['step'] + 1, p['knn']) for p in one['curve']]
        axes.plot(*zip(*points, strict=True), marker='.', label=one['method'], color=f'C{number}')
    axes.axhline(runs[0]['raw']['knn'], color='0.5', linestyle='--', label='raw pixels')
    axes.set(xlabel='step', ylabel='20-NN accuracy, %')
    axes.legend()
    figure.savefig(file)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True, help='folder of the IDX files')
    parser.add_argument('--methods', nargs='+', default=['byol', 'simsiam'], choices=['byol', 'simsiam'])
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--num-train', type=int, default=10_000)
    parser.add_argument('--num-test', type=int, default=2_000)
    parser.add_argument('--probe-interval', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1, help='of each run (%(default)s)')
    parser.add_argument('--jobs', type=int, default=2, help='runs side by side (%(default)s)')
    parser.add_argument('--out', type=Path, help='JSON to write')
    parser.add_argument('--plot', type=Path, help='picture to write')
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        runs = list(pool.map(run, args.methods, [args] * len(args.methods)))
    for one in runs:
        print(json.dumps({k: v for k, v in one.items() if k != 'loss'}))
    if args.out:
        about = dict(environment('cpu'), epochs=args.epochs, batch_size=args.batch_size, seed=args.seed)
        args.out.write_text(json.dumps(dict(about, threads=args.threads, runs=runs), indent=1) + '\n')
    if args.plot:
        draw(runs, args.plot)


if __name__ == '__main__':
    main()
