import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score

from timm_extra.models.glom.islands import adjusted_rand_index, island_counts, island_labels, neighbour_cosine

GRIDS = [(1, 2), (5, 1), (2, 2), (3, 7)]
quickly = settings(max_examples=60, deadline=None, derandomize=True)


def neighbours(grid):
    """Pairs of columns side by side or above one another."""
    index = np.arange(grid[0] * grid[1]).reshape(grid)
    right = zip(index[:, :-1].flat, index[:, 1:].flat, strict=True)
    return [*right, *zip(index[:-1].flat, index[1:].flat, strict=True)]


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def expected_labels(state, grid, threshold):
    """Islands of one level (N, D), by scipy."""
    joined = [(i, j) for i, j in neighbours(grid) if cosine(state[i], state[j]) > threshold]
    rows, columns = zip(*joined, strict=True) if joined else ((), ())
    graph = coo_array((np.ones(len(joined)), (rows, columns)), shape=(len(state), len(state)))
    found = connected_components(graph, directed=False)[1]
    first = np.unique(found, return_index=True)[1]  # number by first column
    return np.argsort(np.argsort(first))[found].reshape(grid)


def of_colours(colours):
    """A state (N, 1, D) whose columns agree exactly where the colours (H, W) are equal."""
    colours = torch.as_tensor(colours)
    return torch.eye(int(colours.max()) + 1)[colours.flatten()][:, None]


def snake(size):
    """A corridor of ones that fills a square, back and forth."""
    colours = np.zeros((size, size), int)
    colours[::2] = 1
    colours[1::4, -1] = colours[3::4, 0] = 1
    return colours


def spiral(size):
    """A corridor of ones, from the rim to the middle."""
    colours = np.zeros((size, size), int)
    y, x, dy, dx = 0, 0, 0, 1
    for length in [size - 1, *(n for k in range(size - 1, 0, -2) for n in (k, k))]:
        for _ in range(length):
            colours[y, x] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    return colours


@pytest.mark.parametrize('grid', GRIDS)
def test_neighbour_cosine_is_the_mean_over_pairs(grid):
    state = torch.randn(2, grid[0] * grid[1], 3, 5)
    found = neighbour_cosine(state, grid)
    assert found.shape == (2, 3)
    for b in range(2):
        for level in range(3):
            pairs = [cosine(state[b, i, level], state[b, j, level]) for i, j in neighbours(grid)]
            assert float(found[b, level]) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_neighbour_cosine_of_vectors_that_are_equal_opposite_or_zero():
    v = torch.tensor([1.0, -2.0, 3.0])
    state = torch.stack([torch.stack([v, v, 0 * v]), torch.stack([3 * v, -v, v])])  # (N, L, D)
    torch.testing.assert_close(neighbour_cosine(state, (1, 2)), torch.tensor([1.0, -1.0, 0.0]))


def test_leading_dimensions_are_independent():
    state = torch.randn(4, 2, 6, 3, 2)
    for function in (neighbour_cosine, island_labels, island_counts):
        whole = function(state, (2, 3))
        assert whole.shape[:3] == (4, 2, 3)
        torch.testing.assert_close(whole[2, 1], function(state[2, 1], (2, 3)), rtol=0, atol=1e-6)
        assert function(state[:, :0], (2, 3)).shape[:3] == (4, 0, 3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    state = (300 * torch.randn(12, 2, 8)).to(dtype)  # squares beyond the range of float16
    assert neighbour_cosine(state, (3, 4)).dtype == torch.float32
    torch.testing.assert_close(neighbour_cosine(state, (3, 4)), neighbour_cosine(state.float(), (3, 4)))
    assert torch.equal(island_labels(state, (3, 4), 0.2), island_labels(state.float(), (3, 4), 0.2))


def test_gradients_flow_through_the_cosine():
    state = torch.randn(6, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: neighbour_cosine(s, (2, 3)), state)


@quickly
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_islands_are_connected_components_of_colours(H, W, count, seed):
    colours = np.random.default_rng(seed).integers(0, count, (H, W))
    state = of_colours(colours)
    labels = island_labels(state, (H, W), 0.5)
    expected = expected_labels(state[:, 0], (H, W), 0.5)
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels[0], expected)
    assert island_counts(state, (H, W), 0.5).tolist() == [expected.max() + 1]


@quickly
@given(st.integers(1, 7), st.integers(1, 7), st.floats(-1, 1), st.integers(0, 2**32 - 1))
def test_islands_are_connected_components_of_similar_vectors(H, W, threshold, seed):
    state = torch.randn(H * W, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = island_labels(state, (H, W), threshold)
    for level in range(2):
        np.testing.assert_array_equal(labels[level], expected_labels(state[:, level], (H, W), threshold))


@pytest.mark.parametrize('maze', [snake, spiral])
@pytest.mark.parametrize('size', [5, 9, 21])
@pytest.mark.parametrize('turns', range(4))
def test_long_islands_stay_whole(maze, size, turns):
    colours = np.rot90(maze(size), turns).copy()
    state = of_colours(colours)
    labels = island_labels(state, (size, size))[0]
    np.testing.assert_array_equal(labels, expected_labels(state[:, 0], (size, size), 0.9))
    assert len(labels[torch.from_numpy(colours) == 1].unique()) == 1


def test_long_islands_take_few_rounds():
    def seconds(colours):
        state = of_colours(colours)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            island_labels(state, colours.shape)
            times.append(time.perf_counter() - start)
        return min(times)

    # label by label it would take thousands of rounds
    assert seconds(snake(101)) < 30 * seconds(np.ones((101, 101), int))


def test_the_threshold_is_exclusive():
    state = of_colours([[0, 1]])
    assert island_counts(state, (1, 2), 0).tolist() == [2]
    assert island_counts(state, (1, 2), -0.01).tolist() == [1]
    same = torch.randn(1, 1, 7).expand(6, 1, 7)
    assert island_counts(same, (2, 3), 0.999).tolist() == [1]
    assert island_counts(same, (2, 3), 1).tolist() == [6]


@pytest.mark.parametrize('function', [neighbour_cosine, island_labels, island_counts])
def test_shapes_that_do_not_fit_are_named(function):
    with pytest.raises(ValueError, match=r'rows and columns of 12 columns, got \(3, 5\)'):
        function(torch.randn(12, 2, 4), (3, 5))
    with pytest.raises(ValueError, match=r'got \(-3, -4\)'):
        function(torch.randn(12, 2, 4), (-3, -4))
    with pytest.raises(ValueError, match=r'got torch.float32 \(12, 4\)'):
        function(torch.randn(12, 4), (3, 4))
    with pytest.raises(ValueError, match=r'got torch.int64 \(12, 2, 4\)'):
        function(torch.ones(12, 2, 4, dtype=torch.long), (3, 4))


@pytest.mark.parametrize('threshold', [-1.1, 1.5, float('nan')])
def test_thresholds_that_are_no_cosine_are_named(threshold):
    with pytest.raises(ValueError, match=f'threshold must be between -1 and 1, got {threshold}'):
        island_labels(torch.randn(4, 1, 3), (2, 2), threshold)


def test_one_column_is_an_island_without_neighbours():
    state = torch.randn(1, 3, 4)
    assert island_counts(state, (1, 1)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r'no neighbours, got grid \(1, 1\)'):
        neighbour_cosine(state, (1, 1))


@quickly
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_adjusted_rand_index_is_that_of_scikit_learn(H, W, islands, segments, seed):
    generator = np.random.default_rng(seed)
    labels, masks = generator.integers(0, islands, (3, H, W)), generator.integers(-2, segments, (3, H, W))
    found = adjusted_rand_index(torch.from_numpy(labels), torch.from_numpy(masks))
    assert found.dtype == torch.float64
    expected = [adjusted_rand_score(mask.ravel(), label.ravel()) for label, mask in zip(labels, masks, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    'labels, masks', [([[0, 0]], [[3, 3]]), ([[0, 1]], [[5, 2]]), ([[0, 0]], [[0, 1]]), ([[0]], [[7]])]
)
def test_adjusted_rand_index_of_degenerate_partitions(labels, masks):
    expected = adjusted_rand_score(np.ravel(masks), np.ravel(labels))
    assert adjusted_rand_index(torch.tensor(labels), torch.tensor(masks)).item() == expected


def test_adjusted_rand_index_tells_large_numbers_apart():
    labels = torch.tensor([[0, 1], [2, 3]])
    assert adjusted_rand_index(labels, labels + 2**40).item() == 1
    assert adjusted_rand_index(labels[:1] > 0, labels[:1]).item() == 1  # bool is a mask, too


def test_masks_are_read_at_the_middle_of_patches():
    labels = torch.tensor([[0, 0, 1], [2, 2, 1]])
    masks = labels.repeat_interleave(5, 0).repeat_interleave(7, 1)
    assert adjusted_rand_index(labels, masks).item() == 1
    masks[:2] = 9  # the rim of patches
    masks[:, :3] = 9
    assert adjusted_rand_index(labels, masks).item() == 1
    masks[2, 3] = 8  # the middle of the first one
    assert adjusted_rand_index(labels, masks).item() < 1
    coarse = torch.tensor([[0, 1]])
    fine = torch.tensor([[0, 0, 1, 1]] * 4)
    assert adjusted_rand_index(fine, coarse).item() == 1


def test_a_mask_serves_all_levels():
    labels, masks = torch.randint(3, (2, 4, 5, 6)), torch.randint(3, (2, 1, 5, 6))
    found = adjusted_rand_index(labels, masks)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found[1, 2], adjusted_rand_index(labels[1, 2], masks[1, 0]))
    assert adjusted_rand_index(labels, masks[0, 0]).shape == (2, 4)


def test_what_is_no_partition_is_named():
    labels = torch.zeros(2, 3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r'masks must be integers, got torch.float32'):
        adjusted_rand_index(labels, labels.float())
    with pytest.raises(ValueError, match=r'labels must be integers, got torch.float64'):
        adjusted_rand_index(labels.double(), labels)
    with pytest.raises(ValueError, match=r'masks must have shape \(..., H, W\), got \(4,\)'):
        adjusted_rand_index(labels, labels[0, 0])
    with pytest.raises(ValueError, match=r'do not fit: \(2,\) and \(3,\)'):
        adjusted_rand_index(labels, labels[:1].repeat(3, 1, 1))
