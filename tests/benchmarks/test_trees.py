"""The world with known trees."""

import numpy as np
import pytest

from benchmarks.learning import trees

DRAWN = trees.scenes(100, seed=5)


def test_same_seed_same_scenes():
    again, other = trees.scenes(100, seed=5), trees.scenes(100, seed=6)
    for a, b, c in zip(DRAWN, again, other, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_shapes_and_ranges():
    assert DRAWN.images.shape == (100, 3, trees.SIZE, trees.SIZE) and DRAWN.images.dtype == np.float32
    assert DRAWN.images.min() >= 0 and DRAWN.images.max() <= 1
    assert DRAWN.labels.shape == (100, len(trees.LEVELS), trees.SIZE, trees.SIZE) and DRAWN.labels.dtype == np.uint8
    assert DRAWN.labels.max((0, 2, 3)).tolist() == [trees.OBJECTS * trees.PARTS, trees.OBJECTS]


def test_at_least_half_is_foreground():
    assert (DRAWN.labels[:, 0] != 0).mean((1, 2)).min() >= 0.5


def test_levels_are_a_tree():
    parts, objects = DRAWN.labels.astype(np.int64).transpose(1, 0, 2, 3)
    assert np.array_equal(parts == 0, objects == 0)
    assert np.array_equal((parts - 1) // trees.PARTS, objects - 1)


def test_absent_objects_have_no_pixels():
    present = np.stack([(DRAWN.labels[:, 1] == i + 1).any((1, 2)) for i in range(trees.OBJECTS)], 1)
    absent = DRAWN.kinds < 0
    assert absent.any() and not present[absent].any()
    assert present[~absent].mean() > 0.99
    assert set(DRAWN.kinds[~absent].tolist()) == set(range(len(trees.KINDS)))


def test_near_objects_cover_far_ones():
    """Without the objects in front, the far ones have more pixels."""
    quadratics, kinds = trees._poses(np.random.default_rng(0))
    whole = (trees._segments(quadratics[:, : trees.PARTS])[1][:, 1] == 1).sum((1, 2))
    seen = (trees._segments(quadratics)[1][:, 1] == 1).sum((1, 2))
    there = kinds[:, 0] >= 0
    assert (seen <= whole).all() and (seen < whole)[there].mean() > 0.5


def test_colour_does_not_say_the_object():
    """Parts of one object are as far apart in colour as parts of different objects."""
    near, far = [], []
    for image, (parts, _) in zip(DRAWN.images, DRAWN.labels, strict=True):
        shown = [part for part in np.unique(parts) if part and (parts == part).sum() > 20]
        means = np.stack([image[:, parts == part].mean(1) for part in shown])
        apart = np.linalg.norm(means[:, None] - means, axis=-1)
        owner = np.array([(part - 1) // trees.PARTS for part in shown])
        same = owner[:, None] == owner
        near += apart[same & ~np.eye(len(shown), dtype=bool)].tolist()
        far += apart[~same].tolist()
    assert abs(np.mean(near) / np.mean(far) - 1) < 0.05


def test_sheet(tmp_path):
    from PIL import Image

    trees.draw_sheet(tmp_path / 'sheet.png', trees.scenes(2, seed=0))
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    assert sheet.shape == (3 * 3 * (trees.SIZE + 1), 3 * 2 * (trees.SIZE + 1), 3) and sheet.std() > 30


@pytest.mark.parametrize(
    'number, seed, message',
    [(0, 0, 'number must be at least 1, got 0'), (1, -1, 'seed must be at least 0, got -1')],
)
def test_refusals(number, seed, message):
    with pytest.raises(ValueError, match=message):
        trees.scenes(number, seed)
