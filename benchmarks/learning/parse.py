"""Does GLOM parse? Segments of models trained for an equal time against the true ones of a world with known trees.

Each model is trained twice: without labels (images decoded from noisy, half masked copies, by a linear layer on the
last features) and with labels (a 1 × 1 head for each level, to features whose cosine says whether two columns lie in
the same segment; parts are read from the middle features, objects from the last). Segments are clusters of the columns'
features, for the true number of segments and background, and islands, for the threshold that is best on validation
scenes. Which features are read without labels is chosen on validation scenes, too.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import timm
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.feature_extraction.image import grid_to_graph
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

import timm_extra  # noqa: F401
from timm_extra.models.glom.islands import island_labels
from timm_extra.models.glom.parsing import (
    choose_level_and_threshold,
    containment,
    foreground_adjusted_rand_index,
    mean_iou,
    segment_counts,
)

from ..environment import environment
from . import timed, trees

PATCH = 4
SIDE = trees.SIZE // PATCH  # columns in a row
NUM_TRAIN, NUM_VALID, NUM_TEST = 4096, 32, 100
VALID_SEED, TEST_SEED, TRAIN_SEED = 1, 2, 1000  # of scenes; that of a run is added to the last
NOISE, HEAD = 0.3, 16
RECIPE: Dict[str, Any] = dict(batch_size=32, lr=1e-3, weight_decay=0.01, clip_grad=1.0, warmup=0.05)
SHAPE = dict(img_size=trees.SIZE, patch_size=PATCH, num_classes=0)
MODELS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    'glom': ('glom_tiny', dict(embed_dim=96, num_levels=3, iters=6, **SHAPE)),
    'vit': ('vit_tiny_patch16_224', dict(embed_dim=96, depth=3, num_heads=3, **SHAPE)),
    'ceit': (
        'ceit_tiny',
        dict(embed_dim=96, depth=3, num_heads=3, conv_stem=False, use_lca=False, **SHAPE),
    ),
}
METHODS = ('chance', 'random-glom', *MODELS)
Labels = Dict[str, torch.Tensor]  # (B, h, w) for each level


class Parser(nn.Module):
    """A model, a linear decoder of its last features, and a head for each level of the world."""

    def __init__(self, name: str):
        super().__init__()
        entry, arguments = MODELS[name]
        self.model = timm.create_model(entry, **arguments)
        self.decoder = nn.Linear(arguments['embed_dim'], 3 * PATCH**2)
        self.heads = nn.ModuleList(nn.Linear(arguments['embed_dim'], HEAD) for _ in trees.LEVELS)
        self.scale = nn.Parameter(torch.tensor([[5.0, -2.0]] * len(trees.LEVELS)))  # cosine to logit

    def features(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Images to features (B, N, D) of all levels or blocks."""
        return self.model.forward_intermediates(x, output_fmt='NLC', intermediates_only=True)

    def embed(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Images to what the heads make of them, (B, N, HEAD) for each level of the world, normalised."""
        found = self.features(x)
        read = (found[len(found) // 2], found[-1])
        return [normalize(head(one), dim=-1) for head, one in zip(self.heads, read, strict=True)]


def patches(x: torch.Tensor) -> torch.Tensor:
    """Images (B, C, SIZE, SIZE) to pixels of columns (B, N, C·PATCH²)."""
    return nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2)


def loss_without_labels(parser: Parser, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of images decoded from copies with noise, in which half of the patches are 0."""
    keep = (
        (torch.rand(len(images), 1, SIDE, SIDE) < 0.5).float().repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    )
    decoded = parser.decoder(parser.features((images + NOISE * torch.randn_like(images)) * keep)[-1])
    return (decoded - patches(images)).square().mean()


def loss_with_labels(parser: Parser, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of whether pairs of columns lie in one segment; both answers weigh the same."""
    losses = []
    for level, (scale, vectors) in enumerate(zip(parser.scale, parser.embed(images), strict=True)):
        label = labels[:, level, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(1)
        same = (label[:, :, None] == label[:, None]).float()
        logits = scale[0] * vectors @ vectors.transpose(1, 2) + scale[1]
        share = same.mean()
        weight = torch.where(same > 0, 0.5 / share, 0.5 / (1 - share))
        losses.append(binary_cross_entropy_with_logits(logits, same, weight))
    return torch.stack(losses).mean()


def normalised(images: np.ndarray) -> torch.Tensor:
    """Images in about −1 to 2.3."""
    return (torch.from_numpy(images) - 0.3) / 0.3


def train(parser: Parser, loss: Callable[..., torch.Tensor], minutes: float, seed: int) -> Dict[str, Any]:
    """Train by a loss for a time."""
    drawn = trees.scenes(NUM_TRAIN, TRAIN_SEED + seed)
    images, labels = normalised(drawn.images), torch.from_numpy(drawn.labels).long()

    def step(number: int, passed: float) -> Dict[str, torch.Tensor]:
        chosen = torch.randint(NUM_TRAIN, (RECIPE['batch_size'],))
        return dict(loss=loss(parser, images[chosen], labels[chosen]))

    return timed.train(parser, step, RECIPE, minutes)


def cluster(name: str, vectors: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Clusters (B, SIDE, SIDE) of columns (B, N, D), as many as there are true segments and background."""
    found = []
    for points, label in zip(vectors.double().numpy(), true, strict=True):
        number = len(label.unique())
        if name == 'k-means':
            method = KMeans(number, n_init=2, random_state=0)
        else:
            method = AgglomerativeClustering(number, connectivity=grid_to_graph(SIDE, SIDE))
        found.append(method.fit_predict(points))
    return torch.from_numpy(np.stack(found)).long().reshape(-1, SIDE, SIDE)


def islands(state: torch.Tensor, valid: torch.Tensor, true: torch.Tensor) -> Tuple[torch.Tensor, Dict[str, Any]]:
    """Islands (B, SIDE, SIDE) of features (B, N, L, D) at the best level and threshold of validation scenes."""
    best = choose_level_and_threshold(valid, (SIDE, SIDE), true)
    return island_labels(state, (SIDE, SIDE), best.threshold)[:, best.level], dict(
        read=best.level, threshold=best.threshold
    )


def measure(method: str, segments: Labels, true: Labels, **about: Any) -> List[Dict[str, Any]]:
    """Rows of the table, one for each level of the world."""
    nested = round(float(containment(segments['parts'], segments['objects']).mean()), 4)
    rows = []
    for level, found in segments.items():
        scores = foreground_adjusted_rand_index(found, true[level]), mean_iou(found, true[level])
        ari, iou = (round(float(score.nanmean()), 4) for score in scores)
        predicted, number = (round(float(n.double().mean()), 2) for n in segment_counts(found, true[level]))
        rows.append(dict(method=method, level=level, ari=ari, miou=iou, predicted=predicted, true=number))
        rows[-1].update(containment=nested, **about.get(level, {}))
    return rows


def by_level(drawn: trees.Scenes) -> Labels:
    """True segments for each level."""
    return {name: torch.from_numpy(drawn.labels[:, i]).long() for i, name in enumerate(trees.LEVELS)}


def chance(true: Labels, seed: int) -> List[Dict[str, Any]]:
    """Rows of random segments of columns, and of true ones at the size of their grid: the bounds of the others.

    The pixels of a column share its segment, so chance is above 0 for segments that are about as small as columns.
    """
    random = np.random.default_rng(seed)
    at_random, at_best = {}, {}
    for level, labels in true.items():
        numbers = [len(label.unique()) for label in labels]
        drawn = np.stack([random.integers(number, size=(SIDE, SIDE)) for number in numbers])
        at_random[level] = torch.from_numpy(drawn)
        at_best[level] = labels[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
    return measure('chance', at_random, true) + measure('true segments of columns', at_best, true)


@torch.inference_mode()
def evaluate(name: str, parser: Parser, labelled: bool) -> List[Dict[str, Any]]:
    """Rows of k-means, agglomerative clustering and islands on test scenes."""
    parser.eval()
    splits = [trees.scenes(NUM_VALID, VALID_SEED), trees.scenes(NUM_TEST, TEST_SEED)]
    valid_true, true = (by_level(split) for split in splits)
    read = parser.embed if labelled else parser.features
    valid, test = (torch.stack(read(normalised(split.images)), 2) for split in splits)  # (B, N, L, D)
    rows = []
    for method in ('k-means', 'agglomerative', 'islands'):
        segments, about = {}, {}
        for i, level in enumerate(trees.LEVELS):
            # A head is for one level of the world; without labels any features may serve it.
            allowed = [i] if labelled else list(range(valid.shape[2]))
            if method == 'islands':
                segments[level], about[level] = islands(test[:, :, allowed], valid[:, :, allowed], valid_true[level])
                continue
            scores = [
                float(
                    foreground_adjusted_rand_index(
                        cluster(method, valid[:, :, one], valid_true[level]), valid_true[level]
                    ).nanmean()
                )
                for one in allowed
            ]
            best = allowed[int(np.argmax(scores))]
            segments[level] = cluster(method, test[:, :, best], true[level])
            about[level] = dict(read=best)
        rows += measure(f'{name}, {method}', segments, true, **about)
    return rows


def run(methods: Sequence[str], seeds: Sequence[int], minutes: float) -> Dict[str, Any]:
    """Train and measure."""
    runs: List[Dict[str, Any]] = []
    for seed in seeds:
        for name in methods:
            if name == 'chance':
                rows = chance(by_level(trees.scenes(NUM_TEST, TEST_SEED)), seed)
                runs += [dict(model=name, labels=labelled, seed=seed, rows=rows) for labelled in (False, True)]
                continue
            for labelled in (False, True):
                torch.manual_seed(seed)
                trained = name in MODELS
                if not trained and labelled:
                    continue
                parser = Parser(name if trained else 'glom')
                about: Dict[str, Any] = dict(params=sum(p.numel() for p in parser.model.parameters()))
                if trained:
                    about.update(train(parser, loss_with_labels if labelled else loss_without_labels, minutes, seed))
                runs.append(
                    dict(model=name, labels=labelled, seed=seed, **about, rows=evaluate(name, parser, labelled))
                )
    about = dict(models={name: MODELS[name] for name in methods if name in MODELS}, recipe=RECIPE, minutes=minutes)
    return dict(environment=environment(), **about, seeds=list(seeds), num_test=NUM_TEST, runs=runs)


def table(result: Dict[str, Any], labelled: bool) -> str:
    """Means over seeds as a table of Markdown."""
    rows: Dict[Tuple[str, str], List[Dict[str, Any]]] = {}
    for one in result['runs']:
        for row in one['rows'] if one['labels'] == labelled else ():
            rows.setdefault((row['method'], row['level']), []).append(row)
    lines = ['| method | level | ARI, foreground | mIoU | segments | true | containment |', '|---' * 7 + '|']
    for (method, level), found in rows.items():
        ari, iou, predicted, true, nested = (
            np.mean([row[key] for row in found]) for key in ('ari', 'miou', 'predicted', 'true', 'containment')
        )
        lines.append(f'| {method} | {level} | {ari:.3f} | {iou:.3f} | {predicted:.1f} | {true:.1f} | {nested:.3f} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.learning.parse', description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10, help='of each training on an idle machine (%(default)s)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], help='of weights and data')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS), help='rows of the tables')
    parser.add_argument('--out', type=Path, default=Path('output/learning'), help='folder for what comes out')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    result = run(args.methods, args.seeds, args.minutes)
    (args.out / 'parse.json').write_text(json.dumps(result, indent=1) + '\n')
    for labelled in (False, True):
        print(f'{"With" if labelled else "Without"} labels\n\n{table(result, labelled)}\n')
    print(f'{args.out}/parse.json')


if __name__ == '__main__':
    main()
