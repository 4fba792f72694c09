import torch

from timm_extra.layers import LeFF, checkpoint


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
