"""Every kernel of every operation against its naive form in float64, forward and all gradients."""

import pytest
import torch
from gates import ALL, DTYPES, EACH, check, kernel_dtype, leaf, limit, mapped, results
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from timm_extra_kernels._cases import Case

pytestmark = pytest.mark.slow


def taken(spec, dtype, device):
    """Whether the kernels take a dtype on that device."""
    return limit(spec, 'forward', spec.inputs(spec.cases[0], dtype, device)) is None


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('spec, case', ALL)
def test_kernels_are_right(spec, case, dtype, device, launches, guarded):
    check(spec, case, dtype, device, guarded)
    for direction in ('_fwd_', '_bwd_'):
        assert any(direction in name for name in launches) == taken(spec, dtype, device)


@pytest.mark.parametrize('spec', EACH)
def test_any_sizes(spec, device, launches, guarded):
    # a failing example is shown as it was drawn: making it smaller takes minutes here
    @settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries({name: st.integers(*bounds) for name, bounds in spec.sizes.items()}))
    def run(sizes):
        check(spec, Case('drawn', sizes), kernel_dtype(spec, device), device, guarded)

    run()
    assert launches


@pytest.mark.parametrize('spec, case', ALL)
def test_two_runs_are_bit_equal(spec, case, device, launches):
    args = spec.inputs(case, kernel_dtype(spec, device), device)
    first, second = (results(spec.operator, mapped(leaf, args)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert launches
