"""What the tests of all operations leave open of `class_attention`: refused arguments, empty and expanded tensors."""

import pytest
import torch

import timm_extra_kernels


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(q=torch.randn(2, 3, 2, 8)), r'q must be \(2, 3, 1, 8\) for k \(2, 3, 5, 8\), got \(2, 3, 2, 8\)'),
        (dict(q=torch.randn(3, 1, 8)), r'got \(3, 1, 8\)'),
        (dict(v=torch.randn(2, 3, 5, 7)), r'k and v must be \(B, H, L, D\), got \(2, 3, 5, 8\) and \(2, 3, 5, 7\)'),
        (dict(q=torch.ones(2, 3, 1, 8, dtype=torch.long)), 'q must be of a floating-point dtype, got torch.int64'),
        (dict(q=torch.randn(2, 3, 1, 8).half()), 'of one dtype, got torch.float16, torch.float32 and torch.float32'),
        (dict(v=torch.empty(2, 3, 5, 8, device='meta')), 'q is on cpu, v on meta'),
        (dict(k=torch.randn(2, 3, 0, 8), v=torch.randn(2, 3, 0, 8)), 'no tokens to attend to'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    given = dict(q=torch.randn(2, 3, 1, 8), k=torch.randn(2, 3, 5, 8), v=torch.randn(2, 3, 5, 8))
    with pytest.raises(ValueError, match=message):
        timm_extra_kernels.class_attention(**{**given, **change}, scale=1.0)


def test_no_items_nan_and_expanded_tensors():
    k = torch.randn(0, 3, 5, 8)
    assert timm_extra_kernels.class_attention(k[:, :, :1], k, k, scale=1.0).shape == (0, 3, 1, 8)
    q, k = torch.randn(1, 3, 1, 8).expand(2, 3, 1, 8), torch.randn(2, 1, 5, 8).expand(2, 3, 5, 8)
    expected = (q @ k.mT).softmax(-1) @ k
    torch.testing.assert_close(timm_extra_kernels.class_attention(q, k, k, scale=1.0), expected)
    k = k.clone()
    k[0, 0, 0, 0] = float('nan')
    out = timm_extra_kernels.class_attention(q, k, k, scale=1.0)
    assert out[0, 0].isnan().all() and out[1].isfinite().all()
