"""What pretraining without labels teaches a small network about Fashion-MNIST, by 20 nearest neighbours."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import timm
from torch.utils.data import TensorDataset

from timm_extra.plot import new_figure
from timm_extra.pretrain import PretrainConfig, pretrain
from timm_extra.pretrain.probe import accuracies
from timm_extra.pretrain.views import PlainView, RandomView, Recipe
from timm_extra.training.log import read_log

from .common import MEAN, STD, arguments, load_images, run_all

SIZE, NUM_TEST = (1, 56, 56), 2_000
NORM = dict(mean=(MEAN,), std=(STD,))
VIEW = Recipe(scale=(0.5, 1.0), blur=0.0, contrast=0.2, brightness=0.2)
MODEL = ('resnet18', dict(layers=(1, 1, 1, 1), channels=(32, 64, 128, 256), in_chans=1, num_classes=0))
RECIPE: Dict[str, Any] = dict(batch_size=128, opt='adamw', lr=1e-3, weight_decay=1e-2, warmup_epochs=1)
HEADS = {
    'byol': dict(projection_hidden_size=1024, decay=0.98),
    'simsiam': dict(projection_size=1024, prediction_hidden_size=256),
}


def run(method: str, seed: int, args: argparse.Namespace) -> Dict[str, Any]:
    """Pretrain a network and probe it before, after every second epoch and at the end."""
    train = TensorDataset(*load_images(args.data, 'train', args.num_train, normalised=False))
    test = TensorDataset(*load_images(args.data, 't10k', NUM_TEST, normalised=False))
    model = timm.create_model(MODEL[0], **MODEL[1])
    plain = PlainView(SIZE, **NORM)

    def probes(encoder) -> Dict[str, float]:
        return accuracies(('knn', 'linear'), encoder, train, test, view=plain, workers=0)

    before = probes(model)
    begin, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as output:
        view = RandomView(VIEW, SIZE, **NORM)
        about = dict(method=method, epochs=args.epochs, input_size=SIZE, task_args=HEADS[method], probe_interval=2)
        where = dict(channels_last=True, workers=0, seed=seed, cpu=True)
        config = PretrainConfig(**about, **where, **NORM, **RECIPE)
        done = pretrain(model, train, output, config, probe=(train, test), view1=view, view2=view)
        rows = read_log(Path(output) / 'log.csv')
    return dict(
        random=before,
        pretrained=probes(done.model),
        raw=probes(lambda x: x.flatten(1)),
        curve=[dict(step=int(r['step']), knn=float(r['knn'])) for r in rows if r['knn']],
        loss=[dict(step=int(r['step']), loss=float(r['loss']), std=float(r['std'])) for r in rows if r['loss']],
        seconds=round(time.perf_counter() - begin),
        cpu_seconds=round(time.process_time() - cpu),
        steps=done.steps,
    )


def draw(runs: List[Dict[str, Any]], file: Path) -> None:
    """Accuracy over steps."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for number, one in enumerate(runs):
        points = [(0, one['random']['knn'])] + [(p['step'] + 1, p['knn']) for p in one['curve']]
        axes.plot(*zip(*points, strict=True), marker='.', label=one['kind'], color=f'C{number}')
    axes.axhline(runs[0]['raw']['knn'], color='0.5', linestyle='--', label='raw pixels')
    axes.set(xlabel='step', ylabel='20-NN accuracy, %')
    axes.legend()
    figure.savefig(file)


if __name__ == '__main__':
    args = arguments('pretraining', __doc__, epochs=20, num_train=10_000)
    draw(run_all('pretraining', run, list(HEADS), args, recipe=RECIPE)['runs'], args.out / 'pretraining.png')
