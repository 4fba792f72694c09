"""End-point error and loss, where flow is unknown too."""

import numpy as np
import pytest
import torch

from timm_extra.flow import end_point_error, flow_loss

UNKNOWN = (float('nan'), float('inf'), 2e9, -1e10)


def test_the_error_is_the_mean_distance_of_end_points():
    flow, target = torch.randn(2, 3, 2, 5, 7, dtype=torch.float64)
    valid = torch.rand(3, 5, 7) < 0.5
    distance = np.hypot(*(flow - target).numpy().transpose(1, 0, 2, 3))
    for function in (end_point_error, flow_loss):
        assert function(flow, target) == pytest.approx(distance.mean(), rel=1e-12)
        assert function(flow, target, valid) == pytest.approx(distance[valid.numpy()].mean(), rel=1e-12)
        assert function(flow[0], target[0]) == pytest.approx(distance[0].mean(), rel=1e-12)
    assert end_point_error(torch.zeros(1, 2, 1, 1), torch.tensor([3.0, -4.0]).view(1, 2, 1, 1)) == 5


@pytest.mark.parametrize('value', UNKNOWN)
def test_unknown_targets_leave_no_trace_in_values_and_gradients(value):
    target = torch.randn(1, 2, 4, 4)
    flow = torch.randn(1, 2, 4, 4, requires_grad=True)
    known = torch.ones(1, 4, 4, dtype=torch.bool)
    known[0, 1, 2] = False
    damaged = target.clone()
    damaged[0, 1, 1, 2] = value
    expected = flow_loss(flow, target, known)
    (gradient,) = torch.autograd.grad(expected, flow)
    loss = flow_loss(flow, damaged)
    assert loss == expected and end_point_error(flow, damaged) == expected
    assert torch.equal(torch.autograd.grad(loss, flow)[0], gradient)
    assert (gradient[0, :, 1, 2] == 0).all() and gradient.isfinite().all()


def test_gradients_are_those_of_the_formula():
    flow = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda flow: flow_loss(flow, target), flow)


def test_a_model_that_is_right_and_a_batch_without_known_pixels_have_gradients_of_zero():
    for target in (torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), float('nan'))):
        flow = torch.ones(1, 2, 2, 2, requires_grad=True)
        loss = flow_loss(flow, target)
        loss.backward()
        assert loss == 0 and torch.equal(flow.grad, torch.zeros_like(flow))
    assert end_point_error(flow, target).isnan()


def test_half_precision_is_summed_in_float32():
    flow = torch.full((1, 2, 300, 300), 3.0, dtype=torch.bfloat16)
    error = end_point_error(flow, torch.zeros(1, 2, 300, 300))
    assert error.dtype == torch.float32 and error == pytest.approx(18**0.5, rel=1e-5)


@pytest.mark.parametrize('function', [end_point_error, flow_loss])
@pytest.mark.parametrize(
    'flow, target, valid, said',
    [
        ((1, 3, 4, 4), (1, 3, 4, 4), None, r'flow must be \(…, 2, H, W\), got \(1, 3, 4, 4\)'),
        ((1, 2, 4, 4), (1, 2, 4, 5), None, r'the target must be \(1, 2, 4, 4\) as the flow, got \(1, 2, 4, 5\)'),
        ((1, 2, 4, 4), (2, 4, 4), None, r'the target must be'),
        ((1, 2, 4, 4), (1, 2, 4, 4), (4, 4), r'`valid` must be \(1, 4, 4\), got \(4, 4\)'),
    ],
)
def test_shapes_that_do_not_fit_are_refused(function, flow, target, valid, said):
    with pytest.raises(ValueError, match=said):
        function(torch.zeros(flow), torch.zeros(target), None if valid is None else torch.ones(valid))
