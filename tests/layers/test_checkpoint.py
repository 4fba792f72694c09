import torch
from torch import nn

from timm_extra.layers import checkpoint
from timm_extra.layers.checkpoint import _frozen_running_stats
from timm_extra.models.ceit import LeFF


def test_batches_are_counted_once():
    x = torch.randn(4, 12, 6, requires_grad=True)
    results = []
    for run in (lambda m: m(x, (3, 4)), lambda m: checkpoint(m, x, (3, 4))):
        torch.manual_seed(0)
        leff = LeFF(6, 20)
        out = run(leff)
        grads = torch.autograd.grad(out.square().sum(), [x, *leff.parameters()])
        assert leff.bn1.momentum == 0.1
        assert leff.bn1.num_batches_tracked == 1
        results.append((out, grads, list(leff.buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_cumulative_averages_and_synchronised_norms_stay():
    """SyncBatchNorm refuses to run without its counter, and runs on GPUs only: its state is what is shown here."""
    for bn in (nn.BatchNorm2d(3, momentum=None), nn.SyncBatchNorm(3)):
        momentum, counter = bn.momentum, bn.num_batches_tracked
        with _frozen_running_stats(bn):
            assert bn.num_batches_tracked is not None
            bn.num_batches_tracked.add_(1)
            assert bn.momentum == 0.0
        assert bn.momentum == momentum
        assert bn.num_batches_tracked is counter
        assert counter == 0


def test_statistics_are_restored_after_an_error():
    bn = nn.BatchNorm2d(3)
    try:
        with _frozen_running_stats(bn):
            raise KeyError
    except KeyError:
        assert bn.momentum == 0.1
