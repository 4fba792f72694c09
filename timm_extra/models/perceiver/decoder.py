"""Decoding a grid of outputs: queries of all positions attend to the latents, band after band."""

import math
from functools import partial
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath, LayerNorm
from torch import nn
from torch.utils.checkpoint import checkpoint

from timm_extra.layers.linear import is_linear
from timm_extra.layers.shortcuts import may_shortcut
from timm_extra_kernels import grid_query_attention

from .blocks import CrossAttentionBlock
from .cross_attention import CrossAttention, Inputs, tokens_alone
from .fourier import grid_tokens

QUERIES = ('learned', 'grid', 'inputs')
BAND = 1 << 13  # positions that are decoded at once: what follows attention stays in cache, or is at least small
# What the separable form's passes over the scores cost beside its products, in multiplications for each score: on a CPU
# it wins with one head of any width, and loses with eight of 64 channels at 512 and 1024 latents
SCORE_PASSES = 100


def decode(
    block: CrossAttentionBlock, queries: Inputs, z: torch.Tensor, head: Sequence[nn.Module], checkpointing: bool
) -> torch.Tensor:
    """Decode every query: block, then head.

    Queries of content and position features per axis are never built where that is cheaper (`grid_query_attention`),
    and no more than a band of the grid is between attention and outputs at a time. Where a module is watched
    (`may_shortcut`), or drops paths of whole items, the block is called with all queries.

    Args:
        block: The decoder.
        queries: Content (B or 1, c, *grid) and position features per axis, or queries (B or 1, N, C).
        z: Latents (B, M, D).
        head: What makes outputs of decoded queries (B, N, C), one after the other.
        checkpointing: Compute bands again in the backward pass instead of keeping their activations.

    Returns:
        (B, N, K) for K outputs of the head.
    """
    dropped = block.training and isinstance(block.drop_path, DropPath)
    whole = dropped or not may_shortcut(block, *head, operators=False)
    separable = not whole and _separable(block, queries, z)
    outputs = _Folded(block, z).outputs if separable else partial(_outputs, block, z)
    content = queries.content if queries.axes else queries.content.transpose(1, 2)  # (B or 1, C, N)
    sizes, batch = content.shape[2:], z.shape[0]
    if whole:
        content = content.expand(batch, *content.shape[1:])
    axis, bands = _bands(sizes, whole)
    outs: List[torch.Tensor] = []
    every: Optional[torch.Tensor] = None
    for begin, end in bands:
        part = content.narrow(axis + 2, begin, end - begin)
        axes = [t[begin:end] if i == axis else t for i, t in enumerate(queries.axes)]
        if checkpointing and torch.is_grad_enabled():
            out = checkpoint(outputs, part, axes, head, use_reentrant=False)
        else:
            out = outputs(part, axes, head)
        out = out.view(batch, *part.shape[2:], out.shape[2])
        if end - begin == sizes[axis]:
            return out.flatten(1, -2)
        if torch.is_grad_enabled():
            outs.append(out)
        else:  # small tensors that stay between the large ones of bands would leave holes that these do not fit into
            if every is None:
                every = out.new_empty(batch, *sizes, out.shape[-1])
            every.narrow(axis + 1, begin, end - begin).copy_(out)
    return (torch.cat(outs, axis + 1) if every is None else every).flatten(1, -2)


def _outputs(
    block: CrossAttentionBlock,
    z: torch.Tensor,
    content: torch.Tensor,
    axes: List[torch.Tensor],
    head: Sequence[nn.Module],
) -> torch.Tensor:
    """Outputs (B, N, K) of a band whose queries are built."""
    tokens = grid_tokens(content, axes) if axes else content.transpose(1, 2)
    return _through(head, block(tokens, tokens_alone(z)))


class _Folded:
    """Latents as keys of the grid's queries and as values of the block's width, with weights folded into them.

    Args:
        block: The decoder.
        z: Latents (B, M, D).
    """

    def __init__(self, block: CrossAttentionBlock, z: torch.Tensor):
        self.block = block
        attn, norm = block.attn, block.norm1
        H = attn.num_heads
        k, v = attn._keys_values(tokens_alone(z))  # (B, H, M, d)
        wq, shift = attn.q.weight, attn.q.bias  # (H·d, C)
        if norm.bias is not None:
            by_norm = (wq * norm.bias).sum(1)
            shift = by_norm if shift is None else shift + by_norm
        if norm.weight is not None:
            wq = wq * norm.weight
        self.k = k @ wq.to(k.dtype).view(H, -1, wq.shape[1])  # (B, H, M, C)
        self.bias: Optional[torch.Tensor] = None
        if shift is not None:
            self.bias = (k @ shift.to(k.dtype).view(H, -1, 1)).squeeze(-1) * attn.scale  # (B, H, M)
        self.with_proj = _fold_proj(attn, z.shape[1])
        self.v = v @ attn.proj.weight.to(v.dtype).t() if self.with_proj else v  # of the one head

    def outputs(self, content: torch.Tensor, axes: Sequence[torch.Tensor], head: Sequence[nn.Module]) -> torch.Tensor:
        """Outputs (B, N, K) of a band."""
        block, attn = self.block, self.block.attn
        scale, eps = attn.scale, block.norm1.eps
        y = grid_query_attention(self.k, self.v, content, axes, bias=self.bias, scale=scale, eps=eps)  # (B, H, N, D)
        y = y.transpose(1, 2).flatten(2)  # (B, N, H·D)
        if not self.with_proj:
            y = attn.proj(y)
        elif attn.proj.bias is not None:
            y = y + attn.proj.bias.to(y.dtype)
        y = attn.proj_drop(y)
        if block.residual:
            y = y + grid_tokens(content, list(axes))
        return _through(head, y if block.mlp is None else y + block.mlp(block.norm2(y)))


def _through(modules: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for module in modules:
        x = module(x)
    return x


def _fold_proj(attn: CrossAttention, num_latents: int) -> bool:
    """Whether values take the output projection in, by the number of multiplications for each query."""
    dim, width = attn.proj.weight.shape
    return attn.num_heads == 1 and num_latents * dim <= num_latents * width + width * dim


def _separable(block: CrossAttentionBlock, queries: Inputs, z: torch.Tensor) -> bool:
    """Whether the separable form is exact here, and takes fewer multiplications."""
    attn = block.attn
    if not queries.axes or not attn.fused_attn or not may_shortcut(block):
        return False
    if not is_linear(attn.q) or not is_linear(attn.proj) or type(block.norm1) not in (nn.LayerNorm, LayerNorm):
        return False
    if attn.training and attn.attn_drop.p > 0.0:
        return False
    if attn.route is not None:
        return attn.route == 'separable'
    if z.device.type == 'cuda':
        return False  # neither the kernels nor PyTorch's passes through memory were measured against built queries
    width, channels = attn.q.weight.shape
    by_score = attn.num_heads * (queries.content.shape[1] + SCORE_PASSES)
    return by_score <= width + width * channels / z.shape[1]


def _bands(sizes: Sequence[int], whole: bool) -> Tuple[int, Iterator[Tuple[int, int]]]:
    """The longest axis of a grid, and ranges along it that hold no more positions than a band, or one line."""
    if whole or torch.compiler.is_compiling():  # sizes that are left open have no number of bands
        return 0, iter([(0, sizes[0])])
    axis = max(range(len(sizes)), key=lambda i: sizes[i])
    step = max(1, BAND * sizes[axis] // max(math.prod(sizes), 1))
    return axis, ((begin, min(begin + step, sizes[axis])) for begin in range(0, sizes[axis], step))
