"""Cross-attention from few latents to very many inputs, by the cheapest exact route."""

import math
from typing import Callable, Final, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, _assert, register_notrace_function, register_notrace_module, use_fused_attn
from torch import nn

from timm_extra.layers.linear import is_linear
from timm_extra.layers.shortcuts import may_shortcut
from timm_extra_kernels import fourier_cross_attention, latent_cross_attention
from timm_extra_kernels._dispatch import runs_kernels
from timm_extra_kernels.fourier_cross_attention import most_channels
from timm_extra_kernels.fourier_cross_attention.operands import slots
from timm_extra_kernels.latent_cross_attention import FORWARD

from .fourier import grid_tokens

ROUTES = ('separable', 'folded', 'plain')
# What the separable route's further passes over the scores cost, in multiplications: it wins from about 35 channels on,
# as measured on a CPU with 1 to 64 items, 16 to 512 queries and 1 to 8 heads
SEPARABLE_PASSES = 60
# On GPUs, counted: operations of the kernel on a score beyond its products, and how many multiplications of 16 bits the
# matrix units do in the time of one in float32 (NVIDIA A100 and H100: 16 and 15, AMD MI300X: 8)
SEPARABLE_OPERATIONS = 7
MATRIX_UNITS = 16
# Where PyTorch does it there, in float32: the multiplications for which there is time while the 40 and 32 bytes of each
# score move through memory, 10 for a byte on an NVIDIA H100
SEPARABLE_MOVED, FOLDED_MOVED = 400, 320
OPEN_SIZE = 4096  # what a size that an export leaves open counts as


class Inputs(NamedTuple):
    """What queries attend to.

    Attributes:
        content: Inputs (B, N, C), or with `axes` the content (B, c, *spatial) of tokens on a grid.
        axes: Position features (Sᵢ, Fᵢ) per spatial axis, C = c + ΣFᵢ; empty for inputs (B, N, C).
        mask: Boolean (B, N), True where an input takes part; None if all do.
    """

    content: torch.Tensor
    axes: List[torch.Tensor]
    mask: Optional[torch.Tensor]


class StreamedInputs(NamedTuple):
    """Inputs of one item that are read part by part while they are attended to.

    Attributes:
        content: Empty, with the dtype and device of the inputs and a batch of 1.
        attend: Folded queries (1, H, M, C), the scale of the scores and the epsilon of the norm to the weighted sums
            of normalised inputs (1, H, M, C).
        mask: None: all take part.
    """

    content: torch.Tensor
    attend: Callable[[torch.Tensor, float, float], torch.Tensor]
    mask: Optional[torch.Tensor] = None


@register_notrace_function  # a traced graph cannot hold the class
def tokens_alone(tokens: torch.Tensor) -> Inputs:
    """Tokens (B, N, C) as `Inputs`, all of which take part."""
    no_axes: List[torch.Tensor] = []
    return Inputs(tokens, no_axes, None)


def flat_mask(mask: Optional[torch.Tensor], batch: int, grid: List[int]) -> Optional[torch.Tensor]:
    """A mask of inputs (B, *grid) as (B, N)."""
    if mask is None:
        return None
    _assert(mask.dtype == torch.bool, f'Mask must be boolean, True where an input takes part, got {mask.dtype}.')
    expected = grid.copy()
    expected.insert(0, batch)
    _assert(list(mask.shape) == expected, f'Mask must be {expected}, as the inputs are, got {list(mask.shape)}.')
    return mask.flatten(1)


def _counted(size: int) -> int:
    """A size that costs are compared for. One that an export leaves open would be bound to what the comparison says."""
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import has_static_value  # which imports sympy

        return size if has_static_value(size) else OPEN_SIZE
    return size


def _separable_per_score(channels: int, dtype: torch.dtype, device: torch.device) -> float:
    """What a score of the separable route costs, in multiplications of the dtype."""
    if device.type != 'cuda':
        return 2 * (channels + 1) + SEPARABLE_PASSES
    if dtype == torch.float64 or channels > most_channels(dtype) or not runs_kernels(device):
        return _in_float32(2 * (channels + 1) + SEPARABLE_MOVED, dtype)
    layout = slots(channels, dtype)  # of a position, in the kernel's products
    products = layout.width * (3 if layout.fine else 2)
    return products + SEPARABLE_OPERATIONS * (1 if dtype == torch.float32 else MATRIX_UNITS)


def _folded_per_score(channels: int, dtype: torch.dtype, device: torch.device) -> float:
    """The same of the folded route."""
    if device.type != 'cuda' or (_is_half(dtype) and channels <= FORWARD and runs_kernels(device)):
        return 2 * channels
    return _in_float32(2 * channels + FOLDED_MOVED, dtype)


def _in_float32(multiplications: float, dtype: torch.dtype) -> float:
    """Multiplications of float32, or float64 for itself, in those of the dtype."""
    return multiplications * (MATRIX_UNITS if _is_half(dtype) else 1)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)


@register_notrace_module  # the route depends on shapes
class CrossAttention(nn.Module):
    """Attention of queries to layer-normalised inputs.

    Three routes compute the same:

    - plain: keys and values are projected, then PyTorch's scaled dot-product attention;
    - folded: the projections of keys and values, with the affine of the norm, are folded into queries and output, so
      that the normalised inputs serve as both (`latent_cross_attention`);
    - separable: folded, and tokens on a grid with position features per axis are never built
      (`fourier_cross_attention`).

    The route is chosen by the number of multiplications, which in exports for inputs of any size are those of large
    ones. Attention dropout in training takes the plain route, with which alone it can be exact; so do projections that
    are not plain `nn.Linear` layers (adapters, quantisation, hooks), transforms of `torch.func`, TorchScript and
    tracing. After `timm.layers.set_fused_attn(False)` every call forms the weights of the attention, which pass through
    `attn_drop`: hooks there see them.

    Args:
        dim: Channels of the queries and of the output.
        kv_dim: Channels C of the inputs.
        num_heads: Attention heads.
        head_dim: Channels per head; `kv_dim // num_heads` when None.
        qkv_bias: Give the projections of queries, keys and values a bias.
        route: 'separable', 'folded' or 'plain' to ask for one; chosen by cost when None.
        attn_drop: Dropout rate on the attention weights.
        proj_drop: Dropout rate after the output projection.
        norm_layer: Normalisation class of the inputs.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `num_heads` is not positive or does not divide `kv_dim`, or `route` is unknown.
    """

    num_heads: Final[int]
    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        kv_dim: int,
        num_heads: int = 1,
        head_dim: Optional[int] = None,
        qkv_bias: bool = True,
        route: Optional[str] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer=nn.LayerNorm,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if num_heads < 1:
            raise ValueError(f'num_heads of the cross-attention must be at least 1, got {num_heads}')
        if head_dim is None:
            if kv_dim % num_heads:
                raise ValueError(
                    f'kv_dim ({kv_dim}) must be divisible by the cross-attention heads ({num_heads}) '
                    'unless their width is given'
                )
            head_dim = kv_dim // num_heads
        if route is not None and route not in ROUTES:
            raise ValueError(f'the route of the cross-attention must be one of {ROUTES} or None, got {route!r}')
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.route = route
        self.fused_attn = use_fused_attn()

        attn_dim = num_heads * head_dim
        self.norm_kv = norm_layer(kv_dim, **dd)
        self.q = nn.Linear(dim, attn_dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(kv_dim, attn_dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(kv_dim, attn_dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(attn_dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Attend.

        Args:
            x: Queries (B or 1, M, dim).
            inputs: What they attend to. An item whose mask is False everywhere attends to nothing: the weighted sum of
                its values is zero.

        Returns:
            (B, M, dim).
        """
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B or 1, H, M, D)
        if torch.jit.is_scripting():
            out = self._plain(q, inputs)
        elif isinstance(inputs, StreamedInputs):
            out = self._streamed(q, inputs)
        else:
            route = self.choose_route(q.shape[2], inputs, q.dtype)
            out = self._plain(q, inputs) if route == 'plain' else self._folded(q, inputs, route == 'separable')
        mask = inputs.mask
        if mask is not None:
            out = out.masked_fill(~mask.any(dim=1)[:, None, None, None], 0.0)
        out = out.transpose(1, 2).flatten(2)  # (B, M, H·D)
        return self.proj_drop(self.proj(out))

    @torch.jit.ignore
    def choose_route(self, num_queries: int, inputs: Inputs, dtype: torch.dtype = torch.float32) -> str:
        """The route a call takes: what was asked for where it is exact, else the one with fewest multiplications.

        Args:
            num_queries: Queries M.
            inputs: As in `forward`.
            dtype: Dtype of the queries.

        Returns:
            'separable', 'folded' or 'plain'.
        """
        if not self._foldable():
            return 'plain'
        content, axes, _ = inputs
        if self.route is not None and (self.route != 'separable' or axes):
            return self.route
        H, M, d, C = self.num_heads, _counted(num_queries), self.q.out_features, self.k.in_features
        sizes = [_counted(size) for size in (content.shape[2:] if axes else content.shape[1:2])]
        N = math.prod(sizes)
        plain = 2 * N * d * (C + M)
        folding = 2 * M * d * C
        folded = M * N * H * _folded_per_score(C, dtype, content.device) + folding
        if axes:
            tables = sum(size * t.shape[1] for size, t in zip(sizes, axes, strict=True))
            per_score = _separable_per_score(content.shape[1], dtype, content.device)
            cost = M * N * H * per_score + 2 * M * H * tables + folding
            if cost <= folded and cost <= plain:
                return 'separable'
        return 'folded' if folded < plain else 'plain'

    def _foldable(self) -> bool:
        if not self.fused_attn or (self.training and self.attn_drop.p > 0.0):
            return False
        if not may_shortcut(self.norm_kv, self.k, self.v):
            return False
        if type(self.norm_kv) not in (nn.LayerNorm, LayerNorm):
            return False
        return is_linear(self.k) and is_linear(self.v)

    @torch.jit.ignore
    def _folded(self, q: torch.Tensor, inputs: Inputs, separable: bool) -> torch.Tensor:
        """Queries (B or 1, H, M, D) to the weighted sums of values (B, H, M, D), without keys and values."""
        content, axes, mask = inputs

        def attend(q: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
            if separable:
                kept = None if mask is None else mask.view(mask.shape[0], *content.shape[2:])
                return fourier_cross_attention(q, content, axes, mask=kept, scale=scale, eps=eps)
            tokens = grid_tokens(content, axes) if axes else content
            return latent_cross_attention(q, tokens, mask=mask, scale=scale, eps=eps)

        return self._with_folded_weights(q, attend)

    @torch.jit.ignore
    def _streamed(self, q: torch.Tensor, inputs: StreamedInputs) -> torch.Tensor:
        if not self._foldable():
            raise ValueError(
                'inputs can be streamed only past projections of keys and values that are plain linear layers without '
                'hooks and adapters, without attention dropout, and with set_fused_attn(True)'
            )
        return self._with_folded_weights(q, inputs.attend)

    def _with_folded_weights(
        self, q: torch.Tensor, attend: Callable[[torch.Tensor, float, float], torch.Tensor]
    ) -> torch.Tensor:
        """What `attend` makes of normalised inputs, with the projections of keys and values folded around it."""
        H = self.num_heads
        wk, wv = self.k.weight, self.v.weight  # (H·D, C)
        if self.k.bias is not None:
            # the same for all keys of a query, it cancels in the softmax; kept in the graph, with its gradient of zero
            q = q + (self.k.bias * 0.0).view(H, 1, -1)
        bias = self.v.bias
        if self.norm_kv.bias is not None:
            shift = (wv * self.norm_kv.bias).sum(1)
            bias = shift if bias is None else bias + shift
        if self.norm_kv.weight is not None:
            wk, wv = wk * self.norm_kv.weight, wv * self.norm_kv.weight
        wk, wv = wk.to(q.dtype), wv.to(q.dtype)  # norms may be kept in float32
        q = q @ wk.view(H, -1, wk.shape[1])  # (B or 1, H, M, C)
        out = attend(q, self.scale, self.norm_kv.eps)
        out = out @ wv.view(H, -1, wv.shape[1]).transpose(1, 2)  # (B, H, M, D)
        return out if bias is None else out + bias.to(out.dtype).view(H, 1, -1)

    def _keys_values(self, inputs: Inputs) -> Tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, N, D) each."""
        x = self.norm_kv(grid_tokens(inputs.content, inputs.axes) if len(inputs.axes) > 0 else inputs.content)
        k = self.k(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        v = self.v(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return k, v

    def _plain(self, q: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        k, v = self._keys_values(inputs)
        q = q.expand(inputs.content.shape[0], -1, -1, -1)  # ONNX by TorchScript would hold the size of k
        mask = inputs.mask
        attn_mask: Optional[torch.Tensor] = None
        if mask is not None:  # where nothing is attended to, a softmax over everything keeps the gradients finite
            attn_mask = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=p)
        attn = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, M, N)
        if attn_mask is not None:
            attn = attn.masked_fill(~attn_mask, -float('inf'))
        return self.attn_drop(attn.softmax(dim=-1)) @ v

    @torch.jit.ignore
    def attention_weights(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """The weights that `forward` never forms, for looking at: memory grows with M · N.

        Args:
            x: As in `forward`.
            inputs: As in `forward`.

        Returns:
            (B, H, M, N), summing to 1 over N, or zeros where nothing is attended to.
        """
        _assert(x.ndim == 3, f'Queries must be (B or 1, M, dim), got {tuple(x.shape)}.')
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) * self.scale
        scores = q @ self._keys_values(inputs)[0].mT  # (B, H, M, N)
        if inputs.mask is None:
            return scores.softmax(-1)
        scores = scores.masked_fill(~inputs.mask[:, None, None], -float('inf'))
        return scores.softmax(-1).nan_to_num(0.0)
