"""The comparison of pretraining: every method has the same batches, and is measured alike."""

import argparse
import gzip

import numpy as np
import pytest
import torch

from benchmarks.learning import pretraining, pretraining_peers
from timm_extra.pretrain import views


@pytest.fixture
def args(tmp_path, monkeypatch):
    """A folder of 200 random images of each split, and few of them for each part."""
    random = np.random.default_rng(0)
    for split in ('train', 't10k'):
        for kind, array in (
            ('images-idx3', random.integers(0, 256, (200, 28, 28))),
            ('labels-idx1', np.arange(200) % 10),
        ):
            shape = b''.join(n.to_bytes(4, 'big') for n in array.shape)
            content = bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()
            (tmp_path / f'{split}-{kind}-ubyte.gz').write_bytes(gzip.compress(content))
    for name, value in dict(NUM_LABELLED=100, HELD_OUT=50, EPOCHS={50: 1}, LEARNING_RATES=(1e-3,), BATCH=16).items():
        monkeypatch.setattr(pretraining, name, value)
    threads = torch.get_num_threads()
    yield argparse.Namespace(data=tmp_path, num_train=200, steps=3, fine_tune=True)
    torch.set_num_threads(threads)


@pytest.fixture
def seen(monkeypatch):
    """Views that were made for training, in order."""
    made, forward = [], views.RandomView.forward

    def recorded(self, images, keys=None):
        made.append(forward(self, images, keys))
        return made[-1].clone()

    monkeypatch.setattr(views.RandomView, 'forward', recorded)
    return made


def peers():
    lightly = pytest.mark.skipif(
        pretraining_peers.importlib.util.find_spec('lightly') is None, reason='lightly is no dependency of the tests'
    )
    return [pytest.param(name, marks=lightly if 'lightly' in name else ()) for name in pretraining_peers.PEERS]


@pytest.mark.parametrize('name', peers())
def test_other_packages_train_the_same_network_on_the_same_views(name, args, seen):
    """So do ours: batches, views and initial weights are equal."""
    ours = next(ours for ours, kind in pretraining.OURS.items() if kind == pretraining_peers.PEERS[name].method)
    found, made = {}, {}
    for method in (ours, name):
        found[method] = pretraining.run(method, 0, args)
        made[method] = torch.stack(seen)
        seen.clear()
    assert made[ours].shape == (6, 16, 1, 28, 28) and torch.equal(made[ours], made[name])
    assert found[name]['steps'] == 3 and 0 <= found[name]['knn'] <= 100
    assert found[ours]['curve'][-1] == dict(step=3, knn=pytest.approx(found[ours]['knn'], abs=0.01))
    assert '50 labels' in found[ours] and '50 labels' not in found[name]


def test_a_peer_changes_the_network_and_its_target_follows(args):
    torch.manual_seed(0)
    model = pretraining.network()
    before = [p.clone() for p in model.parameters()]
    heads = pretraining.PRESETS[pretraining.PRESET].task_args['byol']
    peer = pretraining_peers.BYOLPytorch(model, 28, heads, 0.5, 3)
    optimizer = torch.optim.SGD([p for p in peer.parameters() if p.requires_grad], 0.1)
    images = torch.randn(2, 16, 1, 28, 28)
    peer(images).backward()
    target = [p.clone() for p in peer.learner.target_encoder.parameters()]
    optimizer.step()
    peer.after_step(0)
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    moved = zip(target, peer.learner.target_encoder.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in moved)


def test_rows_of_the_study_change_one_thing(args, seen):
    for row, view in pretraining.STUDY.items():
        changed = view != pretraining.PRESETS[pretraining.PRESET].views[0]
        assert changed != (row == pretraining.AVERAGED), row
    found = pretraining.run(pretraining.AVERAGED, 0, args)
    assert found['params'] == pretraining.run(pretraining.RANDOM, 0, args)['params']
    averaged, first = torch.stack(seen), len(seen)
    pretraining.run('no jitter', 0, args)
    assert not torch.equal(averaged, torch.stack(seen[first:]))
    features = [pretraining.network(averaged=averaged)(torch.zeros(1, 1, 28, 28)).shape for averaged in (False, True)]
    assert features == [(1, 1024), (1, 64)]


def test_the_table_has_raw_pixels_and_means_over_seeds(args):
    random = pretraining.run(pretraining.RANDOM, 0, args)
    done = [
        dict(method='BYOL', steps=3000, cpu_seconds=60, linear=80, **{'knn': knn, '50 labels': 7}) for knn in (70, 80)
    ]
    lines = pretraining.table([random, *done]).splitlines()
    assert lines[0] == '| features | steps | minutes | 20-NN, % | linear, % | 50 labels, % |'
    raw = random[pretraining.RAW]
    assert lines[2] == f'| raw pixels | 0 |  | {raw["knn"]:.1f} | {raw["linear"]:.1f} |  |'
    figures = ' | '.join(f'{random[key]:.1f}' for key in ('knn', 'linear', '50 labels'))
    assert lines[3] == f'| random | 0 |  | {figures} |'
    assert lines[4:] == ['| BYOL | 3,000 | 1.0 | 75.0 (70.0, 80.0) | 80.0 (80.0, 80.0) | 7.0 (7.0, 7.0) |']


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(pretraining_peers.BYOLPytorch, 'package', 'no_such_package')
    pretraining_peers.check_installed(['BYOL', 'random'])
    with pytest.raises(SystemExit, match=r'^byol-pytorch needs a package: pip install no-such-package$'):
        pretraining_peers.check_installed(['BYOL', 'byol-pytorch'])
