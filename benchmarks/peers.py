"""Attention of other libraries, at the width that each takes: what the operations that are attention stand beside.

A peer that is not installed is named so in its row; one that refuses says why, and neither makes a run fail.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from timm_extra_kernels._cases import Route

Mask = Optional[torch.Tensor]


@dataclass(frozen=True)
class Peer:
    """A library's attention.

    Attributes:
        words: What it is.
        call: Takes q (B, H, M, D), k and v (B, H, N, D), a mask (B, N) or None, and the scale.
        package: Import name of what it needs beside PyTorch.
        above: Widths D up to this one are not its own: it hands them to PyTorch.
        most: The largest D that it takes.
        step: D is padded with zeros to a multiple of it.
        masks: Whether it takes a mask.
    """

    words: str
    call: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Mask, float], torch.Tensor]
    package: str = ''
    above: int = 0
    most: int = 256
    step: int = 8
    masks: bool = True

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask, scale: float) -> torch.Tensor:
        """Attention (B, H, M, D) at one padded width of all; ValueError for what the library does not take."""
        D = max(q.shape[-1], v.shape[-1])
        if not self.above < D <= self.most:
            raise ValueError(f'takes heads of {self.above + 1} to {self.most} channels, not {D}')
        if mask is not None and not self.masks:
            raise ValueError('takes no mask')
        width = D + -D % self.step
        padded = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
        return self.call(*padded, mask, scale)[..., : v.shape[-1]]

    def route(self, attention: Callable[..., Any]) -> Route:
        """It in the place of an operation, whose arguments `attention` makes into those of `attend`."""
        return Route(self.words, lambda *args: self.attend(*attention(*args)))


def _library(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask, scale: float):
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None], scale=scale)


@functools.cache
def _compiled() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask, scale: float) -> torch.Tensor:
    def masked(score: torch.Tensor, b: Any, h: Any, m: Any, n: Any) -> torch.Tensor:
        return torch.where(mask[b, n], score, -float('inf'))

    return _compiled()(q, k, v, score_mod=None if mask is None else masked, scale=scale)


def _flash(package: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask, scale: float) -> torch.Tensor:
    """FlashAttention 2 and 3 have heads behind tokens; 3 has returned the log-sum-exp too."""
    attend = importlib.import_module(package).flash_attn_func
    out = attend(*(t.transpose(1, 2) for t in (q, k, v)), softmax_scale=scale)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def _ffpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask, scale: float) -> torch.Tensor:
    attend = importlib.import_module('ffpa_attn').ffpa_attn_func
    return attend(q, k, v, attn_mask=None if mask is None else mask[:, None, None], scale=scale)


PEERS = {
    'ffpa': Peer('ffpa-attn, made for wide heads', _ffpa, 'ffpa_attn', above=256, most=1024, step=64),
    'flash': Peer(
        "FlashAttention in PyTorch's attention",
        functools.partial(_library, SDPBackend.FLASH_ATTENTION),
        masks=False,
    ),
    'flash-attn': Peer(
        'flash-attn, FlashAttention 2', functools.partial(_flash, 'flash_attn'), 'flash_attn', masks=False
    ),
    'flash-attn-3': Peer(
        'FlashAttention 3',
        functools.partial(_flash, 'flash_attn_interface'),
        'flash_attn_interface',
        masks=False,
    ),
    'cudnn': Peer("cuDNN in PyTorch's attention", functools.partial(_library, SDPBackend.CUDNN_ATTENTION)),
    'flex': Peer('FlexAttention under torch.compile', _flex, most=1024, step=16),
}
