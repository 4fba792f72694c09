"""The comparison of parses: its clusters, bounds and losses."""

import pytest
import torch

from benchmarks.learning import parse, trees

DRAWN = trees.scenes(4, seed=3)
TRUE = parse.by_level(DRAWN)


def columns(level):
    return TRUE[level][:, parse.PATCH // 2 :: parse.PATCH, parse.PATCH // 2 :: parse.PATCH]


def test_bounds():
    rows = {(row['method'], row['level']): row for row in parse.chance(TRUE, seed=0)}
    for level in trees.LEVELS:
        # Above 0 because the pixels of a column share its segment.
        assert -0.02 < rows['chance', level]['ari'] < dict(parts=0.2, objects=0.1)[level]
        assert 0.5 < rows['true segments of columns', level]['ari'] < 1
    assert rows['true segments of columns', 'parts']['containment'] == 1


@pytest.mark.parametrize('name', ['k-means', 'agglomerative'])
def test_clusters_of_features_that_say_the_object(name):
    vectors = torch.nn.functional.one_hot(columns('objects').flatten(1), trees.OBJECTS + 1).float()
    found = parse.cluster(name, vectors, columns('objects'))
    scores = parse.foreground_adjusted_rand_index(found, columns('objects'))
    # A segment that others cut in two is two regions for clusters of connected columns.
    assert scores.min() > (0.999 if name == 'k-means' else 0.6)


def test_patches_are_the_pixels_of_columns():
    images = torch.from_numpy(DRAWN.images)
    found = parse.patches(images).reshape(4, parse.SIDE, parse.SIDE, 3, parse.PATCH, parse.PATCH)
    assert torch.equal(found[:, 2, 5], images[:, :, 8:12, 20:24])


@pytest.mark.parametrize('name', list(parse.MODELS))
def test_losses_reach_every_weight_between_them(name):
    torch.manual_seed(0)
    parser = parse.Parser(name)
    images = parse.normalised(DRAWN.images)
    for loss in (parse.loss_without_labels, parse.loss_with_labels):
        loss(parser, images, torch.from_numpy(DRAWN.labels).long()).backward()
    still = [key for key, p in parser.named_parameters() if p.grad is None or not p.grad.any()]
    assert all('cls_token' in key or key.startswith(('model.norm', 'model.fc_norm')) for key in still), still


def test_sizes_are_about_equal():
    sizes = [sum(p.numel() for p in parse.Parser(name).model.parameters()) for name in parse.MODELS]
    assert max(sizes) / min(sizes) < 1.15


def test_rows_say_what_was_read(monkeypatch):
    monkeypatch.setattr(parse, 'NUM_VALID', 2)
    monkeypatch.setattr(parse, 'NUM_TEST', 3)
    result = parse.run(['chance', 'random-glom'], [0], minutes=0)
    rows = [row for one in result['runs'] if one['model'] == 'random-glom' for row in one['rows']]
    assert [row['level'] for row in rows] == 3 * list(trees.LEVELS)
    assert all(0 <= row['read'] < 3 for row in rows) and all(0 < row['containment'] <= 1 for row in rows)
    assert 'random-glom, islands | objects' in parse.table(result, False)
    assert 'random-glom' not in parse.table(result, True)
