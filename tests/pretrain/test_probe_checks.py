"""What probes refuse, all in the same words."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from timm_extra.layers import LatentPoolConfig
from timm_extra.pretrain.attentive import Tokens, Training, attentive
from timm_extra.pretrain.probe import accuracies, choose_weight_decay, knn, linear
from timm_extra.pretrain.views import PlainView

sys.path.insert(0, str(Path(__file__).parent))
from train import images, run

SHORT = Training(epochs=2)
VIEW = PlainView((1, 4, 4))
LABELS = torch.arange(24) % 3


def nearest(x, y, t):
    return knn(x, y, t, k=3)


def attended(x, y, t):
    return attentive(x, y, t, weight_decay=0.1, training=SHORT)


PROBES = [(nearest, (8,)), (linear, (8,)), (attended, (4, 8))]


def drawn(shape, n=24):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize('probe, shape', PROBES)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_features_that_are_not_finite_are_refused(probe, shape, value):
    x, t = drawn(shape), drawn(shape, 5)
    x[[7, 9]] = value
    with pytest.raises(ValueError, match='2 of 24 training images have features not finite, first image 7'):
        probe(x, LABELS, t)
    t[4, ..., 0] = value
    with pytest.raises(ValueError, match='1 of 5 test images have features not finite, first image 4'):
        probe(drawn(shape), LABELS, t)


@pytest.mark.parametrize('probe, shape', PROBES)
def test_types_that_all_probes_take(probe, shape):
    x, t = drawn(shape).half(), drawn(shape, 5).half()
    expected = probe(x.float(), LABELS, t.float())
    assert torch.equal(probe(x, LABELS.int(), t), expected)
    assert torch.equal(probe(x.float().requires_grad_(), LABELS.to(torch.uint8), t.float().requires_grad_()), expected)
    with torch.inference_mode():
        inference = x.float() * 1
    assert torch.equal(probe(inference, LABELS, t), expected)
    assert probe(x.bfloat16(), LABELS, t.bfloat16()).shape == probe(x.double(), LABELS, t.double()).shape == (5,)
    assert probe(x, LABELS, t[:0]).shape == (0,)


@pytest.mark.parametrize('probe, shape', PROBES)
@pytest.mark.parametrize(
    'count, labels, message',
    [
        (24, LABELS[:20], r'a class of each of 24 training images, got \(20,\)'),
        (24, LABELS.float(), 'classes must be integers, got torch.float32'),
        (24, LABELS - 1, 'classes must not be negative, got -1'),
        (0, LABELS[:0], 'a probe needs training images, got none'),
    ],
)
def test_labels_that_are_no_classes_are_refused(probe, shape, count, labels, message):
    with pytest.raises(ValueError, match=message):
        probe(drawn(shape)[:count], labels, drawn(shape, 5))


@pytest.mark.parametrize('probe, shape', PROBES)
def test_only_classes_that_occur_are_predicted(probe, shape):
    found = probe(drawn(shape), LABELS * 100, drawn(shape, 400))
    assert set(found.tolist()) <= {0, 100, 200}
    if probe is attended:  # the first steps say nothing of the number that a class has
        assert torch.equal(found, probe(drawn(shape), LABELS, drawn(shape, 400)) * 100)


def test_weight_decays_and_trainings_out_of_range_are_refused():
    x = drawn((8,))
    with pytest.raises(ValueError, match='`weight_decays` is empty'):
        choose_weight_decay(x, LABELS, weight_decays=())
    for refused in (
        lambda: linear(x, LABELS, x, weight_decay=-1.0),
        lambda: choose_weight_decay(x, LABELS, weight_decays=(0.1, -1.0)),
        lambda: attentive(x[:, None], LABELS, x[:, None], weight_decay=-1.0),
    ):
        with pytest.raises(ValueError, match=r'`weight_decay` must be finite and not negative, got -1\.0'):
            refused()
    for options, message in (
        (dict(epochs=0), '`epochs` must be a positive integer, got 0'),
        (dict(lr=-1), '`lr` must be positive and finite, got -1'),
        (dict(config=LatentPoolConfig(pool_type='')), "must be 'avg' or 'token', got ''"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(**options)


def diverged(x):
    rows = x.squeeze(1).clone()
    rows[rows.amax((1, 2)) > 0.4] = float('nan')
    return rows


@pytest.mark.parametrize('limit', [1 << 20, 0])
def test_tokens_of_a_data_set_are_checked_too(limit):
    x = torch.zeros(24, 1, 4, 4)
    x[17] = 1
    with pytest.raises(ValueError, match='have features not finite, first image 17'):
        tokens = Tokens(diverged, TensorDataset(x, LABELS), VIEW, batch_size=5, workers=0, limit=limit)
        list(tokens.batches([torch.tensor([3, 17])]))
    with pytest.raises(ValueError, match='1 of 24 training images have features not finite, first image 17'):
        dataset = TensorDataset(x, LABELS)
        accuracies(['knn'], lambda x: diverged(x).flatten(1), dataset, dataset, view=VIEW, workers=0)


def test_a_pretraining_whose_features_diverge_stops_and_keeps_no_best(tmp_path, monkeypatch):
    from timm_extra.pretrain import tasks

    encode = tasks.Encoder.forward
    monkeypatch.setattr(tasks.Encoder, 'forward', lambda self, x: encode(self, x) / self.training)
    with pytest.raises(ValueError, match='training images have features not finite'):
        run(tmp_path / 'out', probe=(images(), images()), probes=('knn',), num_train_steps=4)
    assert not list((tmp_path / 'out' / 'best').glob('*.safetensors'))
