"""The attentive probe: a pool of learned queries and a linear classifier on frozen tokens."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

from timm_extra.layers import LatentPoolConfig
from timm_extra.pretrain.attentive import (
    POOL,
    WEIGHT_DECAYS,
    TokenEncoder,
    Tokens,
    TokenTensor,
    Training,
    attentive,
    attentive_accuracy,
    token_encoder,
)
from timm_extra.pretrain.held_out import held_out
from timm_extra.pretrain.probe import accuracies, linear
from timm_extra.pretrain.tasks import Encoder
from timm_extra.pretrain.views import PlainView
from timm_extra.training.log import read_log

sys.path.insert(0, str(Path(__file__).parent))
from train import images, run

SHORT = Training(epochs=3, config=LatentPoolConfig(num_heads=2, mlp_ratio=0.0))
VIEW = PlainView((1, 4, 4))


def marked(n, seed, tokens=12, dim=16, classes=4):
    """One token of many says the class, and its first channel which it is; the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    x, labels = torch.randn(n, tokens, dim, generator=generator), torch.arange(n) % classes
    x[..., 0] = 0
    place = torch.randint(tokens, (n,), generator=generator)
    x[torch.arange(n), place] = names[labels] * 0.8 + 0.3 * torch.randn(n, dim, generator=generator)
    x[torch.arange(n), place, 0] = 4
    return x, labels


def test_it_finds_the_token_that_says_the_class():
    (x, y), (t, u) = marked(600, 0), marked(400, 1)
    found = float((attentive(x, y, t, training=Training(epochs=10)) == u).float().mean())
    pooled = float((linear(x.mean(1), y, t.mean(1)) == u).float().mean())
    assert found > 0.95 and found > pooled + 0.1


def test_the_seed_alone_decides():
    (x, y), (t, _) = marked(200, 0), marked(300, 1)
    with torch.no_grad():
        first = attentive(x, y, t, weight_decay=0.1, training=SHORT)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(attentive(x, y, t, weight_decay=0.1, training=SHORT), first)
    other = attentive(x, y, t, weight_decay=0.1, training=replace(SHORT, seed=1))
    assert not torch.equal(other, first)
    torch.set_rng_state(state)
    attentive(x, y, t, weight_decay=0.1, training=SHORT)
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_images_choose_the_weight_decay():
    (x, y), (t, _) = marked(200, 0), marked(300, 1)
    training = replace(SHORT, epochs=8, lr=1e-2)
    kept, held = held_out(len(x))
    right = {}
    for decay in WEIGHT_DECAYS:
        classes = attentive(x[kept], y[kept], x[held], weight_decay=decay, training=training)
        right[decay] = int((classes == y[held]).sum())
    best = max(decay for decay in right if right[decay] == max(right.values()))
    assert torch.equal(attentive(x, y, t, training=training), attentive(x, y, t, weight_decay=best, training=training))


def test_one_image_is_enough():
    x, y = marked(1, 0)
    assert attentive(x, y, x, training=SHORT).tolist() == [0]


def squares(n=48):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 4, 4, generator=generator) * 0.2
    x[::2, ..., :2] += 0.7
    x[1::2, ..., 2:] += 0.7
    return TensorDataset(x, torch.arange(n) % 2)


def rows(x):
    return x.squeeze(1)  # (B, 4 tokens, 4 channels)


def test_tokens_that_do_not_fit_are_computed_again():
    dataset, calls = squares(), []

    def counted(x):
        calls.append(len(x))
        return rows(x)

    kept = Tokens(counted, dataset, VIEW, batch_size=20, workers=0, limit=48 * 16 * 4)
    assert kept.kept is not None and sum(calls) == 20 + 48
    again = Tokens(counted, dataset, VIEW, batch_size=20, workers=0, limit=48 * 16 * 4 - 1)
    assert again.kept is None and sum(calls) == 20 + 48 + 20
    assert kept.shape == again.shape == (4, 4) and torch.equal(kept.labels, again.labels)
    indices = [torch.tensor([5, 3]), torch.tensor([40])]
    for (x, y), (t, u) in zip(kept.batches(indices), again.batches(indices), strict=True):
        torch.testing.assert_close(x, t)
        assert torch.equal(y, u)
    assert attentive_accuracy(kept, kept, SHORT) == attentive_accuracy(again, again, SHORT)


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet', 'test_ceit', 'test_mambaout'])
def test_the_model_stays_as_it_was(name):
    model = timm.create_model(name, in_chans=1, num_classes=3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layers, encoder = str(model), token_encoder(Encoder(model))
    x = torch.rand(2, 1, 160, 160)
    tokens = encoder.eval()(x)
    assert tokens.ndim == 3 and tokens.shape[2] == model.num_features and tokens.shape[1] > 1
    assert all(p is q for p, q in zip(encoder.parameters(), model.parameters(), strict=False))
    assert str(model) == layers and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.num_classes == 3


def test_accuracies_of_all_probes():
    model = timm.create_model('test_vit', in_chans=1, img_size=32, patch_size=8, num_classes=0)
    dataset, view = squares(), PlainView((1, 32, 32))
    found = accuracies(('attentive', 'knn', 'linear'), Encoder(model), dataset, dataset, view=view, workers=0)
    assert list(found) == ['attentive', 'knn', 'linear'] and min(found.values()) > 90
    assert accuracies(['attentive'], rows, dataset, dataset, view=VIEW, workers=0)['attentive'] > 90


def test_what_has_no_tokens_is_refused_before_anything_is_trained(tmp_path):
    dataset = squares()
    with pytest.raises(ValueError, match=r'needs tokens \(B, N, C\), got features \(20, 16\)'):
        Tokens(nn.Flatten(), dataset, VIEW, batch_size=20, workers=0)
    with pytest.raises(ValueError, match=r'needs tokens \(B, N, C\), got features \(3, 2\)'):
        TokenTensor(torch.zeros(3, 2), torch.zeros(3))
    model = timm.create_model('test_resnet')
    with pytest.raises(ValueError, match="pools the tokens of a model, not `hidden_layer='layer4'`"):
        accuracies(['attentive'], Encoder(model, 'layer4'), dataset, dataset, view=VIEW)
    with pytest.raises(ValueError, match='CrossVit gives a list of features'):
        TokenEncoder(timm.create_model('crossvit_tiny_240'))
    with pytest.raises(ValueError, match='pools the tokens of a model, not `hidden_layer=-2`'):
        run(tmp_path / 'out', probe=(images(), images()), probes=('attentive',), hidden_layer=-2)
    assert not (tmp_path / 'out').exists()


def test_pretraining_measures_it(tmp_path):
    done = run(tmp_path / 'a', probe=(images(), images()), probes=('attentive',), num_train_steps=8)
    assert set(done.accuracies) == {'attentive'} and done.accuracies['attentive'] > 25
    logged = [row['attentive'] for row in read_log(tmp_path / 'a' / 'log.csv') if row['attentive']]
    assert float(logged[-1]) == done.accuracies['attentive']
    assert POOL.mlp_ratio == 0
