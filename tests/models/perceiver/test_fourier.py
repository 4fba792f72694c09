import math

import pytest
import torch

from timm_extra.models.perceiver import fourier as module
from timm_extra.models.perceiver.fourier import fourier_features, fourier_table, grid_tokens

CPU = torch.device('cpu')


def test_features_are_those_of_the_paper():
    features = fourier_features(torch.tensor([-1.0, 0.25], dtype=torch.float64), 3, 10.0)
    expected = [math.sin(math.pi * f * 0.25) for f in (1, 3, 5)] + [math.cos(math.pi * f * 0.25) for f in (1, 3, 5)]
    torch.testing.assert_close(features[1], torch.tensor([*expected, 0.25], dtype=torch.float64))
    assert features.shape == (2, 7)


@pytest.mark.parametrize('size', [1, 2, 224, 3584])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tables_are_exact_in_every_dtype(size, dtype):
    table = fourier_table(size, 64, 224.0, CPU, dtype)
    assert table.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = fourier_features(torch.linspace(-1, 1, size, dtype=torch.float64), 64, 224.0)
    assert (table.double() - exact).abs().max() <= (1e-12 if dtype == torch.float64 else 2**-24)  # positions round, too


def test_recent_tables_are_kept_and_no_others():
    first = fourier_table(17, 4, 9.0, CPU, torch.float32)
    assert fourier_table(17, 4, 9.0, CPU, torch.float32) is first
    assert fourier_table(17, 4, 8.0, CPU, torch.float32) is not first
    for size in range(1000, 1100):
        fourier_table(size, 1, 9.0, CPU, torch.float32)
    assert len(module._cache) <= module._CACHE_SIZE


def test_tables_made_under_a_tracer_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fourier_table(19, 4, 9.0, CPU, torch.float32)
    assert type(fourier_table(19, 4, 9.0, CPU, torch.float32)) is torch.Tensor


@pytest.mark.parametrize('sizes', [(5,), (4, 3), (2, 4, 3), (1, 1)])
def test_grid_tokens_have_each_axis_in_its_place(sizes):
    content = torch.randn(2, 3, *sizes)
    axes = [torch.randn(s, 2 + i) for i, s in enumerate(sizes)]
    tokens = grid_tokens(content, axes)
    assert tokens.shape == (2, math.prod(sizes), 3 + sum(t.shape[1] for t in axes))
    for n, index in enumerate(torch.cartesian_prod(*(torch.arange(s) for s in sizes)).view(-1, len(sizes)).tolist()):
        features = [t[i] for t, i in zip(axes, index, strict=True)]
        torch.testing.assert_close(tokens[1, n], torch.cat([content[(1, slice(None), *index)], *features]))
