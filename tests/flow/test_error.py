"""End-point error and loss, where flow is unknown too."""

import numpy as np
import pytest
import torch

from timm_extra.flow import end_point_error, flow_loss, known_flow

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


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('left_out', ['target', 'valid', ''])
def test_a_prediction_that_is_no_number_counts_where_pixels_do(value, left_out):
    """A model that has gone wrong shows in the loss, unless what it gives there is of no interest."""
    flow, target, valid = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.ones(1, 3, 4)
    if left_out == 'target':
        target[0, 0, 1, 2] = float('nan')
    if left_out == 'valid':
        valid[0, 1, 2] = 0
    found = []
    for fill in (0.0, value):
        changed = flow.clone()
        changed[0, :, 1, 2] = fill
        changed.requires_grad_()
        loss = flow_loss(changed, target, valid)
        found.append((loss, end_point_error(changed, target, valid), *torch.autograd.grad(loss, changed)))
    (loss, error, gradient), (damaged_loss, damaged_error, damaged_gradient) = found
    if left_out:
        assert damaged_loss == loss and damaged_error == error and torch.equal(damaged_gradient, gradient)
        assert gradient.isfinite().all() and not gradient[0, :, 1, 2].any()
    else:
        assert not damaged_loss.isfinite() and not damaged_error.isfinite()
        assert torch.equal(damaged_loss.isnan(), torch.tensor(value != value))


def test_arrays_are_flow_too():
    flow, target = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
    valid = np.arange(15).reshape(3, 5) % 2 == 0
    expected = end_point_error(*map(torch.from_numpy, (flow, target, valid)))
    for layout in (np.asarray, np.asfortranarray, lambda a: a.astype('>f8'), lambda a: a[:, ::-1][:, ::-1]):
        for function in (end_point_error, flow_loss):
            assert function(layout(flow), layout(target), valid) == pytest.approx(float(expected), rel=1e-12)
    assert end_point_error((10 * flow).astype(np.int16), torch.zeros(2, 3, 5)).dtype == torch.float32


@pytest.mark.parametrize(
    'flow, said',
    [
        ([[1.0]], 'flow must be a tensor or a NumPy array, got list'),
        (None, 'flow must be a tensor or a NumPy array, got NoneType'),
        (torch.zeros(2, 3, 3, dtype=torch.bool), 'flow must be of real numbers, got torch.bool'),
        (np.zeros((2, 3, 3), dtype=complex), 'flow must be of real numbers, got complex128'),
        (np.zeros((2, 3, 3), dtype=object), 'flow must be of real numbers, got object'),
        (torch.zeros(2, 3), 'flow must be (…, 2, H, W), got (2, 3)'),
    ],
)
def test_what_is_no_flow_is_named(flow, said):
    for function in (known_flow, lambda flow: end_point_error(flow, torch.zeros(2, 3, 3))):
        with pytest.raises(ValueError) as caught:
            function(flow)
        assert str(caught.value) == said
    with pytest.raises(ValueError, match='the target must be a tensor or a NumPy array, got str'):
        flow_loss(torch.zeros(2, 3, 3), 'a.flo')
