"""Trainings that last a time, and what the scenes of the segmentation are."""

import pytest
import torch
from torch import nn

from benchmarks.learning import dense, segmentation, timed
from timm_extra.pretrain import MapEncoder

RECIPE = dict(lr=0.05, weight_decay=0.0, clip_grad=10.0, warmup=0.1)


def test_timed_training_learns_and_notes_its_curve():
    model = nn.Linear(1, 1)
    seen = []

    def step(number, passed):
        seen.append((number, passed))
        x = torch.linspace(-1, 1, 9).unsqueeze(1)
        loss = (model(x) - 3 * x).square().mean()
        return dict(loss=loss, double=2 * loss)

    result = timed.train(model, step, RECIPE, minutes=0.02)
    assert result['steps'] == len(seen) and [number for number, _ in seen] == list(range(len(seen)))
    assert all(0 <= passed < 1 for _, passed in seen)
    first, last = result['curve'][0], result['curve'][-1]
    assert last['loss'] < 0.1 * first['loss'] and last['time'] > 0.9
    assert last['double'] == pytest.approx(2 * last['loss'], abs=2e-3)


def test_a_scene_is_the_same_each_time_and_colour_says_nothing_of_the_class():
    images, labels = segmentation.scenes(0, 40)
    again, _ = segmentation.scenes(0, 40)
    assert torch.equal(images, again)
    assert set(labels.unique().tolist()) == set(range(len(segmentation.CLASSES)))
    colours = [images.permute(0, 2, 3, 1)[labels == kind] for kind in range(len(segmentation.CLASSES))]
    assert max(float((colour.mean() - images.mean()).abs()) for colour in colours) < 0.5 * float(images.std())


@pytest.mark.parametrize('name', segmentation.MODELS)
def test_models_of_segmentation_give_a_class_for_every_pixel(name):
    model = segmentation.MODELS[name]().eval()
    with torch.inference_mode():
        scores = model(torch.zeros(1, 3, segmentation.SIZE, segmentation.SIZE))
    assert scores.shape == (1, len(segmentation.CLASSES), segmentation.SIZE, segmentation.SIZE)


class Truth(nn.Module):
    """Scores of the right classes, or of every class but one taken for the background."""

    def __init__(self, missed: int = 0):
        super().__init__()
        self.missed, self.seed = missed, segmentation.TEST_SEED * 10**6

    def forward(self, x):
        _, labels = segmentation.scenes(self.seed, len(x))
        self.seed += len(x)
        labels[labels == self.missed] = 0
        return nn.functional.one_hot(labels, len(segmentation.CLASSES)).permute(0, 3, 1, 2).float()


def test_mean_iou(monkeypatch):
    monkeypatch.setattr(segmentation, 'NUM_TEST', 50)
    assert segmentation.mean_iou(Truth())['miou'] == 100
    found = segmentation.mean_iou(Truth(missed=2))
    assert found['iou'][segmentation.CLASSES[2]] == 0 and found['iou'][segmentation.CLASSES[1]] == 100
    assert found['iou']['background'] < 100


@pytest.mark.parametrize('method', ['BYOL', 'PixPro'])
def test_networks_of_dense_pretraining_train_and_are_measured(method, monkeypatch):
    monkeypatch.setattr(dense, 'NUM_IMAGES', 64)
    monkeypatch.setattr(dense, 'NUM_LABELLED', 8)
    monkeypatch.setattr(dense, 'NUM_TEST', 8)
    threads = torch.get_num_threads()
    try:
        found = dense.run(method, seed=0, minutes=0.02)
    finally:
        torch.set_num_threads(threads)
    assert found['steps'] > 1 and 0 < found['curve'][-1]['std'] < 1.5
    assert 0 < found['miou'] < 100 and found['chance'] < 20 < found['pixel_accuracy'] <= 100
    assert f'| 0 | {method} | {found["steps"]} |' in dense.table([found])


def test_the_network_of_dense_pretraining_has_maps_of_eight_by_eight():
    assert MapEncoder(dense.network(), -1, dense.INPUT['input_size']).map_shape == (128, 8, 8)
