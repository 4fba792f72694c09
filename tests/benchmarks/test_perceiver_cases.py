"""The Perceiver's benchmark cases: equal networks are compared, and a slightly different one is noticed."""

import pytest
import torch

from benchmarks.cases.perceiver import CASES, _built
from benchmarks.runner import run_case
from tests.reference import perceiver as reference

BY_NAME = {case.name: case for case in CASES}
INFERENCE, STEP = 'perceiver/io_small/inference', 'perceiver/io_small/training-step'


@pytest.mark.parametrize('name', [INFERENCE, STEP, 'perceiver/small/inference', 'perceiver/small/training-step'])
def test_equal_networks_agree(name):
    (row,) = run_case(BY_NAME[name], 'cpu', 1, quick=True)
    assert row['correct'] is True


@pytest.mark.parametrize(
    'name, weight',
    [
        (INFERENCE, 'cross_attends.0.attn.k.weight'),
        (INFERENCE, 'blocks.0.5.mlp.fc1.weight'),
        (STEP, 'cross_attends.0.attn.q.weight'),
        (STEP, 'decoder.attn.k.weight'),
    ],
)
def test_a_weight_that_differs_by_a_hundredth_is_noticed(name, weight, monkeypatch):
    converted = reference.with_weights_of

    def changed(*args, **kwargs):
        model = converted(*args, **kwargs)
        with torch.no_grad():
            model.get_parameter(weight).mul_(1.01)
        return model

    monkeypatch.setattr(reference, 'with_weights_of', changed)
    _built.cache_clear()
    (row,) = run_case(BY_NAME[name], 'cpu', 1, quick=True)
    _built.cache_clear()
    assert row['correct'] is False
    assert 'timm-extra: differs' in row['error']
