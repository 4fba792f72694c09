"""Inputs on which `latent_cross_attention` is tested, compiled and measured."""

from typing import Optional

import torch

from .._cases import Case, randn


def definition(
    q: torch.Tensor, x: torch.Tensor, scale: float, eps: Optional[float], mask: Optional[torch.Tensor]
) -> torch.Tensor:
    """softmax(scale · q x̂ᵀ) x̂ with every matrix in full; zeros where nothing is attended to."""
    if eps is not None:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], None, None, eps)
    scores = q @ x.unsqueeze(1).mT * scale  # (B, H, M, N)
    if mask is None:
        return scores.softmax(-1) @ x.unsqueeze(1)
    lowest = torch.finfo(scores.dtype).min  # finite: an item without any inputs is not NaN
    p = scores.masked_fill(~mask[:, None, None], lowest).softmax(-1)
    return (p * mask.any(1)[:, None, None, None]) @ x.unsqueeze(1)


def inputs(case: Case, dtype: torch.dtype, device: torch.device):
    """Arguments of the operator."""
    sizes = case.sizes
    B, N, C = (sizes[name] for name in 'BNC')
    q = randn((sizes.get('Q', B), sizes.get('H', 1), sizes['M'], C), dtype, device)
    x = randn((B, N, C), dtype, device)
    mask = None
    if sizes.get('mask'):
        mask = randn((B, N), torch.float32, device) > -0.5
    return q, x, C**-0.5, sizes.get('eps', 1e-5), mask


def backward_args(grad, args, outs):
    """Arguments of the backward operator, for the gradients of both tensors."""
    q, x, scale, eps, mask = args
    return grad, q, x, *outs, scale, eps, mask, True


CASES = [
    Case('two pieces', dict(B=2, M=5, C=68, N=50)),
    Case('one channel, query and key', dict(B=1, M=1, C=1, N=1, eps=None)),
    Case('odd, shared queries', dict(B=3, Q=1, H=2, M=9, C=33, N=67)),
    Case('masked', dict(B=2, H=3, M=7, C=24, N=83, mask=True)),
    Case('as it is', dict(B=2, M=17, C=48, N=31, eps=None)),
    Case('slices', dict(B=1, M=3, C=261, N=41, mask=True)),
]
SIZES = dict(B=(1, 3), H=(1, 3), M=(1, 40), C=(2, 80), N=(1, 90))
COMPILED = [
    Case('perceiver 512', dict(B=64, M=512, C=512, N=50176)),
    Case('perceiver 261', dict(B=64, M=512, C=261, N=50176)),
    Case('perceiver 322', dict(B=64, M=512, C=322, N=50176)),
    Case('learned 260', dict(B=64, M=512, C=260, N=50176, eps=None)),
    Case('masked 261', dict(B=64, Q=1, M=512, C=261, N=50176, mask=True)),
    Case('decoder 1024', dict(B=64, M=1, C=1024, N=512)),
]
