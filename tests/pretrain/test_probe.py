"""Probes against plain loops and scikit-learn."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import TensorDataset

from timm_extra.pretrain.probe import WEIGHT_DECAYS, accuracies, choose_weight_decay, features, knn, linear
from timm_extra.pretrain.views import PlainView

VIEW = PlainView((1, 4, 4))


def clouds(n, seed, classes=4, dim=12):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + 0.9 * torch.randn(n, dim, generator=generator), labels


@pytest.mark.parametrize('center', [True, False])
def test_neighbours_vote_with_their_weights(center):
    (x, y), (t, _) = clouds(60, 0), clouds(25, 1)
    x, t = x + 1, t + 1
    found = knn(x, y, t, k=7, temperature=0.07, center=center)
    mean = x.mean(0) if center else 0
    for i, row in enumerate(t - mean):
        cosines = [
            (float(torch.cosine_similarity(row, other, dim=0)), int(label))
            for other, label in zip(x - mean, y, strict=True)
        ]
        votes = [0.0] * 4
        for cosine, label in sorted(cosines, reverse=True)[:7]:
            votes[label] += math.exp(cosine / 0.07)
        assert int(found[i]) == max(range(4), key=votes.__getitem__)


def test_the_linear_probe_is_logistic_regression():
    (x, y), (t, _) = clouds(200, 0), clouds(100, 1)
    mean, std = x.mean(0), x.std(0)
    # scikit-learn sums the losses: C = 1 / (n · weight decay)
    theirs = LogisticRegression(C=1 / (200 * 1e-2), tol=1e-8, max_iter=2000).fit((x - mean) / std, y)
    assert (linear(x, y, t, weight_decay=1e-2).numpy() == theirs.predict((t - mean) / std)).all()


def test_neighbours_are_those_of_features_wherever_their_mean_is():
    (x, y), (t, _) = (
        (features.double(), labels) for features, labels in (clouds(60, 0, classes=6), clouds(200, 1, classes=6))
    )
    assert torch.equal(knn(x, y, t, k=5), knn(x + 100, y, t + 100, k=5))
    assert not torch.equal(knn(x, y, t, k=5), knn(x + 100, y, t + 100, k=5, center=False))


def test_held_out_images_choose_the_weight_decay():
    """Against scikit-learn on the same split, where many dimensions hold nothing but noise."""
    (x, y), (t, _) = clouds(200, 0, classes=8, dim=6), clouds(400, 1, classes=8, dim=6)
    noise = torch.Generator().manual_seed(7)
    x, t = (torch.cat([z, torch.randn(len(z), 60, generator=noise)], 1) for z in (x, t))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    held, kept = order[:20], order[20:]
    mean, std = x[kept].mean(0), x[kept].std(0)
    scores = {}
    for decay in WEIGHT_DECAYS:
        theirs = LogisticRegression(C=1 / (len(kept) * decay), tol=1e-6, max_iter=5000)
        theirs.fit((x[kept] - mean) / std, y[kept])
        scores[decay] = theirs.score((x[held] - mean) / std, y[held])
    assert min(scores.values()) < max(scores.values())
    best = max(decay for decay, score in scores.items() if score == max(scores.values()))
    assert choose_weight_decay(x, y) == best == choose_weight_decay(x, y)
    assert torch.equal(linear(x, y, t), linear(x, y, t, weight_decay=best))


def test_a_weight_decay_is_chosen_from_few_images_too():
    x, y = clouds(3, 0)
    assert choose_weight_decay(x[:1], y[:1]) == max(WEIGHT_DECAYS)
    assert linear(x[:1], y[:1], x).tolist() == [0, 0, 0]
    assert choose_weight_decay(x, y, weight_decays=[1e-3]) == 1e-3
    assert linear(x, y, x).tolist() == [0, 1, 2]


def test_features_leave_the_model_as_it_was():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.rand(10, 1, 4, 4)
    dataset = TensorDataset(images, torch.arange(10) % 3)
    x, y = features(net, dataset, VIEW, batch_size=4, workers=0)
    assert x.shape == (10, 3) and y.tolist() == [i % 3 for i in range(10)]
    assert [m.training for m in net] == [True, False, True, True]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    torch.testing.assert_close(x, net.eval()(images).detach(), atol=1e-5, rtol=1e-5)


def test_accuracies():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 1, 4, 4, generator=generator) * 0.2
    images[::2, ..., :2] += 0.7
    images[1::2, ..., 2:] += 0.7
    dataset = TensorDataset(images, torch.arange(40) % 2)
    found = accuracies(('knn', 'linear'), lambda x: x.flatten(1), dataset, dataset, view=VIEW, workers=0)
    assert found == dict(knn=100, linear=100)


def test_probes_name_bad_arguments():
    dataset = TensorDataset(torch.rand(3, 1, 4, 4))
    with pytest.raises(ValueError, match='image 0 has no class, a number, but None'):
        features(nn.Flatten(), dataset, VIEW, workers=0)
    with pytest.raises(ValueError, match='k must be between 1 and 3'):
        knn(torch.rand(3, 2), torch.zeros(3).long(), torch.rand(1, 2), k=4)
    with pytest.raises(ValueError, match="one of knn, linear, attentive, got 'svm'"):
        accuracies(['svm'], nn.Flatten(), dataset, dataset, view=VIEW)
