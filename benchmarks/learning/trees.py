"""A world with known trees: scenes of objects, objects of parts, with the true segments of each level.

A part is a textured ellipse. An object is one of six arrangements of five ellipses under a random affine map, so that
an ellipse alone does not say which neighbours it belongs with, and only hints at the kind of its object: this ambiguity
is the subject of Culp, Sabour and Hinton, "Testing GLOM's ability to infer wholes from ambiguous parts"
(arXiv:2211.16564). Colours and textures are drawn for each part independently, so only the arrangement joins parts to
objects. Nearer objects cover farther ones.
"""

import argparse
import math
from pathlib import Path
from typing import List, NamedTuple, Tuple

import numpy as np

SIZE = 48
OBJECTS = 4  # at most
PARTS = 5  # of an object
LEVELS = ('parts', 'objects')
BATCH = 64  # scenes drawn at once
NOISE = 0.03
Ellipse = Tuple[float, float, float, float, float]  # centre x and y, half axes, angle
PETALS = [72 * i * math.pi / 180 for i in range(5)]
KINDS: List[List[Ellipse]] = [
    [(0.6 * math.cos(angle), 0.6 * math.sin(angle), 0.46, 0.36, angle) for angle in PETALS],  # flower
    [
        *[(0, 0, 0.36, 0.36, 0), (-0.7, 0, 0.34, 0.42, 0), (0.7, 0, 0.34, 0.42, 0)],
        *[(0, -0.7, 0.42, 0.34, 0), (0, 0.7, 0.42, 0.34, 0)],  # cross
    ],
    [
        *[(-0.5, -0.3, 0.42, 0.32, 0), (0.5, -0.3, 0.42, 0.32, 0), (0, 0.1, 0.22, 0.42, 0)],
        *[(0, 0.75, 0.8, 0.26, 0), (0, -0.8, 0.8, 0.2, 0)],  # face
    ],
    [
        *[(-0.4, 0.7, 0.22, 0.42, 0), (0.4, 0.7, 0.22, 0.42, 0), (-0.05, -0.05, 0.75, 0.55, 0)],
        *[(0.8, -0.5, 0.4, 0.3, 0.5), (-0.85, -0.4, 0.32, 0.2, 0.8)],  # sheep
    ],
    [(0, y, 0.85, 0.2, 0) for y in (-0.84, -0.42, 0.0, 0.42, 0.84)],  # ladder
    [
        *[(0, -0.75, 0.36, 0.34, 0), (-0.4, -0.08, 0.38, 0.34, 0), (0.4, -0.08, 0.38, 0.34, 0)],
        *[(-0.5, 0.65, 0.48, 0.36, 0), (0.5, 0.65, 0.48, 0.36, 0)],  # pyramid
    ],
]


class Scenes(NamedTuple):
    """Scenes and their trees: `part - 1` divided by `PARTS`, rounded down, is `object - 1`."""

    images: np.ndarray  # (N, 3, SIZE, SIZE), float32, 0 to 1
    labels: np.ndarray  # (N, 2, SIZE, SIZE), uint8: parts and objects, 0 = background
    kinds: np.ndarray  # (N, OBJECTS), int64: arrangement of each object, far to near, −1 where there is none


def scenes(number: int, seed: int) -> Scenes:
    """Draw scenes; the same number and seed give the same scenes, bit for bit.

    Args:
        number: Scenes, at least 1.
        seed: At least 0.

    Returns:
        Scenes whose foreground is at least half of the pixels; others are drawn again.

    Raises:
        ValueError: The number or the seed is too small.
    """
    if number < 1:
        raise ValueError(f'number must be at least 1, got {number}')
    if seed < 0:
        raise ValueError(f'seed must be at least 0, got {seed}')
    random = np.random.default_rng(seed)
    drawn, found = [], 0
    while found < number:
        quadratics, kinds = _poses(random)
        values, labels = _segments(quadratics)
        full = (labels[:, 0] != 0).mean((1, 2)) >= 0.5
        images = _paint(values[full], labels[full], random)
        drawn.append((images, labels[full], kinds[full]))
        found += int(full.sum())
    return Scenes(*(np.concatenate(part)[:number] for part in zip(*drawn, strict=True)))


def _poses(random: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
    """Ellipses (BATCH, OBJECTS × PARTS, 6): coefficients of x², xy, y², x, y, 1 of a form that is 1 on the rim."""
    kinds = random.integers(len(KINDS), size=(BATCH, OBJECTS))
    corners = np.array([(-0.48, -0.48), (0.48, -0.48), (-0.48, 0.48), (0.48, 0.48)])
    corners = corners[random.permuted(np.broadcast_to(np.arange(OBJECTS), (BATCH, OBJECTS)), axis=1)]
    centres = corners + random.uniform(-0.1, 0.1, corners.shape)
    scale = random.uniform(0.52, 0.66, (BATCH, OBJECTS, 1, 1))
    stretch = np.exp(random.uniform(-0.15, 0.15, (BATCH, OBJECTS)))
    mirror = random.choice([-1.0, 1.0], (BATCH, OBJECTS))
    shape = np.zeros((BATCH, OBJECTS, 2, 2))
    shape[..., 0, 0], shape[..., 1, 1] = mirror * stretch, 1 / stretch
    shape[..., 0, 1] = random.uniform(-0.2, 0.2, (BATCH, OBJECTS))
    affine = scale * _rotations(random.uniform(0, 2 * math.pi, (BATCH, OBJECTS))) @ shape
    ellipses = np.array(KINDS, dtype=np.float64)[kinds]  # (BATCH, OBJECTS, PARTS, 5)
    middles = np.einsum('bocd,bopd->bopc', affine, ellipses[..., :2]) + centres[:, :, None]
    axes = affine[:, :, None] @ _rotations(ellipses[..., 4]) * ellipses[..., None, 2:4]
    inverse = np.linalg.inv(axes)
    form = inverse.swapaxes(-1, -2) @ inverse  # (BATCH, OBJECTS, PARTS, 2, 2)
    linear = -2 * np.einsum('...cd,...d->...c', form, middles)
    constant = -np.einsum('...c,...c->...', linear, middles) / 2
    absent = (np.arange(OBJECTS) == 0) & (random.random((BATCH, 1)) < 0.4)  # three objects instead of four
    constant[absent] = 1e6
    parts = [form[..., 0, 0], 2 * form[..., 0, 1], form[..., 1, 1], linear[..., 0], linear[..., 1], constant]
    return np.stack(parts, -1).reshape(BATCH, -1, 6).astype(np.float32), np.where(absent, -1, kinds)


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Angles (...) to rotations (..., 2, 2)."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _grid() -> Tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels (SIZE × SIZE,), −1 to 1, row by row."""
    line = (2 * np.arange(SIZE, dtype=np.float32) + 1) / SIZE - 1
    return np.tile(line, SIZE), np.repeat(line, SIZE)


def _segments(quadratics: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The nearest ellipse's form at each pixel (B, SIZE², 0 = background), and labels (B, 2, SIZE, SIZE)."""
    x, y = _grid()
    values = quadratics @ np.stack([x * x, x * y, y * y, x, y, np.ones_like(x)])  # (B, ellipses, SIZE²)
    ellipses = values.shape[1]
    nearest = ellipses - (values[:, ::-1] < 1).argmax(1)  # the last drawn is nearest
    value = np.take_along_axis(values, nearest[:, None] - 1, 1)[:, 0]
    parts = np.where(value < 1, nearest, 0)
    labels = np.stack([parts, (parts + PARTS - 1) // PARTS], 1).astype(np.uint8)
    return np.where(parts > 0, value, 0), labels.reshape(-1, 2, SIZE, SIZE)


def _paint(values: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images (B, 3, SIZE, SIZE): a colour and stripes for each part, darker towards its rim, and noise."""
    B = len(values)
    x, y = _grid()
    parts = labels[:, 0].reshape(B, -1).astype(np.int64)
    colours = random.uniform(0.35, 1, (B, OBJECTS * PARTS + 1, 3)).astype(np.float32)
    dull = random.integers(3, size=colours.shape[:2])
    np.put_along_axis(colours, dull[..., None], np.float32(0.15), -1)  # saturated
    colours[:, 0] = random.uniform(0, 0.12, (B, 1))  # background is dark
    waves = random.uniform(-1, 1, (B, OBJECTS * PARTS + 1, 3)).astype(np.float32)
    waves = np.take_along_axis(waves, parts[..., None], 1)
    stripes = np.sin(30 * (waves[..., 0] * x + waves[..., 1] * y) + 6 * waves[..., 2])
    light = (1 - 0.45 * values * values) * (1 + 0.12 * stripes)
    images = np.take_along_axis(colours, parts[..., None], 1) * light[..., None]
    images += NOISE * random.standard_normal(images.shape, dtype=np.float32)
    return np.ascontiguousarray(images.clip(0, 1).transpose(0, 2, 1)).reshape(B, 3, SIZE, SIZE).astype(np.float32)


def draw_sheet(path: Path, drawn: Scenes) -> None:
    """Save a picture of scenes: a row of images, and a row of segments for each level."""
    from PIL import Image

    colours = np.random.default_rng(1).integers(60, 256, (OBJECTS * PARTS + 1, 3)).astype(np.uint8)
    objects = np.array([(0, 0, 0), (230, 60, 60), (70, 190, 80), (70, 110, 240), (240, 200, 60)], np.uint8)
    colours[0] = 0
    rows = [(255 * drawn.images).astype(np.uint8).transpose(0, 2, 3, 1)]
    rows += [colours[drawn.labels[:, 0]], objects[drawn.labels[:, 1]]]
    rows = [np.pad(row, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255) for row in rows]
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows])
    Image.fromarray(sheet.repeat(3, 0).repeat(3, 1)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.learning.trees', description=__doc__.splitlines()[0])
    parser.add_argument('--sheet', type=Path, required=True, help='PNG to write: images, parts and objects')
    parser.add_argument('--number', type=int, default=8, help='of scenes (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the scenes (%(default)s)')
    args = parser.parse_args()
    draw_sheet(args.sheet, scenes(args.number, args.seed))


if __name__ == '__main__':
    main()
