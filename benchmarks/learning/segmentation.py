"""Semantic segmentation by a Perceiver IO with a query for each pixel, beside a small U-Net of equal time.

Scenes are generated: disks, squares, triangles and rings of any size, colour and texture, one over the other, on a
textured background and under noise. The class of a pixel is the shape it belongs to, so that colour says nothing.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Tuple

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from timm_extra.plot import new_figure
from timm_extra.plot.sheets import draw_image

from ..environment import environment
from . import timed
from .whiten import whiten

SIZE = 32
CLASSES = ('background', 'disk', 'square', 'triangle', 'ring')
COLOURS = ((235, 235, 235), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))
MODEL: Dict[str, Any] = dict(
    img_size=SIZE, stem='frames', num_frames=1, stem_chs=32, num_bands=8, max_resolution=16, query_type='inputs',
    num_latents=64, latent_dim=128, num_heads=4, cross_num_heads=2, num_blocks=1, block_depth=4, decoder_residual=True,
    num_classes=len(CLASSES),
)  # fmt: skip
RECIPE: Dict[str, Any] = dict(batch_size=16, lr=2e-3, weight_decay=0.01, clip_grad=1.0, warmup=0.03)
NUM_TEST, TEST_SEED, NUM_SHOWN = 400, 1, 6
NUM_WHITEN = 100  # scenes


def scene(seed: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """A scene (3, SIZE, SIZE) in about −1 to 1, and the class of each pixel (SIZE, SIZE)."""
    random = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=random)

    def surface() -> torch.Tensor:
        coarse = between(-0.35, 0.35, 1, 3, *[int(n) for n in torch.randint(3, 17, (2,), generator=random)])
        return between(-0.8, 0.8, 3, 1, 1) + interpolate(coarse, (SIZE, SIZE), mode='bilinear')[0]

    image, labels = surface(), torch.zeros(SIZE, SIZE, dtype=torch.long)
    y, x = torch.meshgrid(torch.arange(SIZE).float(), torch.arange(SIZE).float(), indexing='ij')
    for _ in range(int(torch.randint(2, 7, (), generator=random))):
        kind = int(torch.randint(1, len(CLASSES), (), generator=random))
        centre, radius = between(0.1 * SIZE, 0.9 * SIZE, 2), between(0.1 * SIZE, 0.25 * SIZE, ())
        inside = _shape(CLASSES[kind], x, y, *centre, radius, between(0, 2 * math.pi, ()))
        image, labels = torch.where(inside, surface(), image), labels.masked_fill(inside, kind)
    return image + 0.08 * torch.randn(image.shape, generator=random), labels


def _shape(kind: str, x, y, centre_x, centre_y, radius, angle) -> torch.Tensor:
    """Which pixels a shape covers."""
    dx, dy = x - centre_x, y - centre_y
    u, v = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    distance = torch.hypot(u, v)
    if kind == 'square':
        return torch.maximum(u.abs(), v.abs()) < 0.85 * radius
    if kind == 'triangle':
        third = 2 * math.pi / 3
        edges = [u * math.cos(i * third) + v * math.sin(i * third) for i in range(3)]
        return torch.stack(edges).amax(0) < 0.55 * radius
    return distance < radius if kind == 'disk' else (distance < radius) & (distance > 0.55 * radius)


def scenes(first: int, count: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Scenes of successive seeds (count, 3, SIZE, SIZE) and their classes (count, SIZE, SIZE)."""
    images, labels = zip(*(scene(seed) for seed in range(first, first + count)), strict=True)
    return torch.stack(images), torch.stack(labels)


class UNet(nn.Module):
    """The baseline: three resolutions, two convolutions at each on the way down and up."""

    def __init__(self, width: int = 24):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(_convolutions(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, classes, H, W)."""
        kept: List[torch.Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([interpolate(x, beside.shape[2:]), beside], dim=1))
        return self.head(x)


def _convolutions(chs: int, out_chs: int) -> nn.Sequential:
    layers: List[nn.Module] = []
    for given in (chs, out_chs):
        layers += [nn.Conv2d(given, out_chs, 3, padding=1, bias=False), nn.BatchNorm2d(out_chs), nn.ReLU()]
    return nn.Sequential(*layers)


def perceiver_io() -> nn.Module:
    """Ours, whose stem begins with uncorrelated filters."""
    model = timm.create_model('perceiver_io_small', **MODEL)
    whiten(model.stem.conv, scenes(0, NUM_WHITEN)[0], floor=1e-2)
    return model


MODELS = {'Perceiver IO': perceiver_io, 'U-Net': UNet}


def train(model: nn.Module, minutes: float, seed: int) -> Dict[str, Any]:
    """Train for a time; scenes are new in every step."""
    count = RECIPE['batch_size']

    def step(number: int, passed: float) -> Dict[str, torch.Tensor]:
        images, labels = scenes((seed + 1) * 10**7 + number * count, count)
        return dict(loss=cross_entropy(model(images), labels))

    return timed.train(model, step, RECIPE, minutes)


@torch.inference_mode()
def mean_iou(model: nn.Module) -> Dict[str, Any]:
    """Intersection over union of each class over all pixels of the test scenes in per cent, and their mean."""
    model.eval()
    counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
    for first in range(0, NUM_TEST, 50):
        images, labels = scenes(TEST_SEED * 10**6 + first, 50)
        found = model(images).argmax(1)
        cells = labels.flatten() * len(CLASSES) + found.flatten()
        counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts)
    both = counts.diagonal().double()
    iou = 100 * both / (counts.sum(0) + counts.sum(1) - both)
    return dict(
        miou=round(float(iou.mean()), 2), iou=dict(zip(CLASSES, [round(float(v), 2) for v in iou], strict=True))
    )


@torch.inference_mode()
def draw(models: Dict[str, nn.Module], path: Path) -> None:
    """A row for each of some test scenes: the image, its classes, and what models make of it."""
    images, labels = scenes(TEST_SEED * 10**6, NUM_SHOWN)
    columns = {'image': (0.5 + 0.4 * images).clamp(0, 1), 'classes': _coloured(labels)}
    columns.update({name: _coloured(model.eval()(images).argmax(1)) for name, model in models.items()})
    figure = new_figure(1.5 * len(columns), 1.5 * NUM_SHOWN + 0.3)
    axes = figure.subplots(NUM_SHOWN, len(columns))
    for column, (title, shown) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=9)
        for axis, image in zip(column, shown, strict=True):
            draw_image(axis, image)
    figure.savefig(path, dpi=100)


def _coloured(labels: torch.Tensor) -> torch.Tensor:
    """Classes (B, H, W) as colours (B, 3, H, W)."""
    return torch.tensor(COLOURS)[labels].permute(0, 3, 1, 2) / 255


def table(result: Dict[str, Any]) -> str:
    """Intersections over union as a table of Markdown."""
    lines = [f'| model | parameters | steps | mIoU, % | {" | ".join(CLASSES)} |', '|---' * (4 + len(CLASSES)) + '|']
    for one in result['runs']:
        parts = ' | '.join(f'{iou:.1f}' for iou in one['iou'].values())
        lines.append(f'| {one["model"]} | {one["params"]:,} | {one["steps"]:,} | {one["miou"]:.1f} | {parts} |')
    return '\n'.join(lines)


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Train and measure both."""
    runs, models = [], {}
    for name, make in MODELS.items():
        torch.manual_seed(args.seed)
        model = models[name] = make()
        params = sum(p.numel() for p in model.parameters())
        runs.append(dict(model=name, params=params, **train(model, args.minutes, args.seed), **mean_iou(model)))
    draw(models, args.out / 'segmentation.png')
    about = dict(arguments=MODEL, recipe=RECIPE, minutes=args.minutes, seed=args.seed, num_test=NUM_TEST)
    return dict(environment=environment(), **about, runs=runs)


if __name__ == '__main__':
    args = timed.arguments('segmentation', __doc__.splitlines()[0], minutes=6)
    result = run(args)
    (args.out / 'segmentation.json').write_text(json.dumps(result, indent=1) + '\n')
    print(f'{table(result)}\n{args.out}/segmentation.json')
