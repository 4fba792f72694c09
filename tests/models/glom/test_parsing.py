"""Measures of a parse against scikit-learn and by hand."""

import sys

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from timm_extra.models.glom.parsing import (
    choose_level_and_threshold,
    containment,
    foreground_adjusted_rand_index,
    mean_iou,
    segment_counts,
)


def random_labels(*shape, high=4, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_foreground_ari_is_scikit_learns_on_the_foreground():
    predicted, true = random_labels(20, 5, 7), random_labels(20, 5, 7, seed=1)
    true[:10] = torch.where(
        torch.rand(10, 5, 7, generator=torch.Generator().manual_seed(2)) < 0.8, predicted[:10] + 1, true[:10]
    )
    expected = [adjusted_rand_score(b[b != 0], a[b != 0]) for a, b in zip(predicted, true, strict=True)]
    found = foreground_adjusted_rand_index(predicted, true)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_background_does_not_count():
    true = torch.tensor([[[0, 0, 1], [0, 2, 2]]])
    a, b = torch.tensor([[[5, 6, 7], [8, 9, 9]]]), torch.tensor([[[7, 7, 7], [7, 9, 9]]])
    for measure in (foreground_adjusted_rand_index, mean_iou):
        assert measure(a, true).item() == measure(b, true).item() == 1


def test_random_labels_score_about_zero():
    score = foreground_adjusted_rand_index(random_labels(200, 16, 16), random_labels(200, 16, 16, seed=1))
    assert abs(score.mean()) < 0.01


def test_mean_iou_by_hand():
    true = torch.tensor([[[1, 1, 1, 2, 2, 3]]])
    predicted = torch.tensor([[[4, 4, 5, 5, 5, 5]]])  # 4 with 1: 2/3; 5 with 2: 2/4, with 3: 1/4; one stays unmatched
    assert mean_iou(predicted, true).item() == pytest.approx((2 / 3 + 1 / 2) / 3, abs=1e-12)


def test_containment_by_hand():
    lower = torch.tensor([[[0, 0, 0, 1, 1, 2]]])
    assert containment(lower, torch.tensor([[[7, 7, 7, 8, 8, 8]]])).item() == 1
    assert containment(lower, torch.tensor([[[7, 7, 8, 8, 9, 9]]])).item() == pytest.approx(4 / 6, abs=1e-12)


def test_a_columns_label_stands_for_its_patch():
    predicted = random_labels(3, 2, 3)
    true = predicted.repeat_interleave(4, 1).repeat_interleave(4, 2) + 1
    assert foreground_adjusted_rand_index(predicted, true).tolist() == [1, 1, 1]
    assert mean_iou(predicted, true).tolist() == [1, 1, 1]


def test_segments_are_counted_on_the_foreground():
    found = segment_counts(torch.tensor([[[1, 2, 3]], [[1, 1, 1]]]), torch.tensor([[[0, 4, 4]], [[0, 0, 0]]]))
    assert [x.tolist() for x in found] == [[2, 0], [1, 0]]


def test_without_foreground_scores_are_nan():
    nothing = torch.zeros(1, 2, 2, dtype=torch.long)
    assert foreground_adjusted_rand_index(nothing, nothing).isnan().all()
    assert mean_iou(nothing, nothing).isnan().all()


def test_the_level_and_threshold_that_show_the_segments_are_chosen():
    true = torch.tensor([[[1, 1, 2, 2]]])
    angles = torch.tensor([[0.0, 0.5, 1.4, 1.9]])  # neighbours: cosine 0.88, 0.62, 0.88
    good = torch.stack([angles.cos(), angles.sin()], -1)  # (1, 4, 2)
    state = torch.stack([torch.ones_like(good), good], 2)  # level 0 is one island
    assert choose_level_and_threshold(state, (1, 4), true, (0.5, 0.8, 0.95)) == (1, 0.8, 1.0)


@pytest.mark.parametrize('measure', [foreground_adjusted_rand_index, mean_iou, containment, segment_counts])
@pytest.mark.parametrize(
    'bad, message',
    [
        (torch.zeros(1, 2, 2), 'must be integers, got torch.float32'),
        (torch.zeros(2, 2, dtype=torch.long), r'must have shape \(B, height, width\), got \(2, 2\)'),
        (torch.zeros(3, 2, 2, dtype=torch.long), 'the same batch, got 3 and 1'),
    ],
)
def test_bad_labels_are_refused(measure, bad, message):
    with pytest.raises(ValueError, match=message) as error:
        measure(bad, torch.ones(1, 2, 2, dtype=torch.long))
    assert '\n' not in str(error.value)


def test_a_choice_without_foreground_or_thresholds_is_refused():
    state, nothing = torch.ones(1, 4, 2, 3), torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match='foreground in at least one scene'):
        choose_level_and_threshold(state, (2, 2), nothing)
    with pytest.raises(ValueError, match='at least one cosine'):
        choose_level_and_threshold(state, (2, 2), nothing + 1, ())


def test_without_scipy_mean_iou_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    labels = torch.ones(1, 2, 2, dtype=torch.long)
    with pytest.raises(ModuleNotFoundError, match='`mean_iou` needs SciPy: pip install scipy'):
        mean_iou(labels, labels)
    assert foreground_adjusted_rand_index(labels, labels) == 1
