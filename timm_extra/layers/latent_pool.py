"""Attention pooling by learned queries: of a set transformer, of a classifier's head, of a perceiver resampler."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Final, Optional

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import (
    Mlp,
    SwiGLU,
    get_norm_layer,
    register_notrace_module,
    trunc_normal_,
    use_fused_attn,
)
from torch import nn

from timm_extra_kernels import latent_cross_attention

from .checkpoint import checkpoint
from .linear import is_linear
from .shortcuts import may_shortcut, shared

MLP_LAYERS = {'mlp': Mlp, 'swiglu': SwiGLU}
NORM_LAYERS = ('layernorm', 'rmsnorm')
POOL_TYPES = ('avg', 'token', '')
# A score of float32 on a GPU takes PyTorch, which moves 32 bytes for it: the time of so many multiplications there
MOVED = 320


@dataclass(frozen=True, kw_only=True)
class LatentPoolConfig:
    """Options of `LatentPool`; the defaults are one layer with one latent.

    Attributes:
        num_latents: Learned queries M.
        depth: Layers: each is cross-attention and an MLP.
        latent_dim: Channels D of the latents and of the output; those of the tokens when None.
        num_heads: Attention heads.
        num_kv_heads: Heads of keys and values, each shared by as many heads of queries; `num_heads` when None.
        head_dim: Channels per head; `latent_dim // num_heads`, and at least 1, when None.
        mlp_ratio: Hidden channels of the MLP over `latent_dim`; 0 for no MLP.
        mlp_layer: 'mlp' (GELU) or 'swiglu'.
        norm_layer: 'layernorm' or 'rmsnorm'.
        bias: Give all linear layers a bias.
        attend_latents: The latents are keys and values too, beside the tokens.
        pool_type: 'avg' (mean of the latents), 'token' (the first), or '' (all latents).

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    num_latents: int = 1
    depth: int = 1
    latent_dim: Optional[int] = None
    num_heads: int = 8
    num_kv_heads: Optional[int] = None
    head_dim: Optional[int] = None
    mlp_ratio: float = 4.0
    mlp_layer: str = 'mlp'
    norm_layer: str = 'layernorm'
    bias: bool = True
    attend_latents: bool = False
    pool_type: str = 'avg'

    def __post_init__(self):
        for name in ('num_latents', 'depth', 'latent_dim', 'num_heads', 'num_kv_heads', 'head_dim'):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):  # True is no number of anything
                raise ValueError(f'`{name}` must be a positive integer, got {value!r}')
        ratio = self.mlp_ratio
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not (math.isfinite(ratio) and ratio >= 0):
            raise ValueError(f'`mlp_ratio` must be a finite number, 0 or more, got {ratio!r}')
        for name, known in (('mlp_layer', MLP_LAYERS), ('norm_layer', NORM_LAYERS), ('pool_type', POOL_TYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f'`{name}` must be one of {", ".join(map(repr, known))}, got {getattr(self, name)!r}')
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f'`num_heads` must be a multiple of `num_kv_heads`, got {self.num_heads} and {self.num_kv_heads}'
            )


@register_notrace_module  # the route depends on shapes
class LatentAttention(nn.Module):
    """Attention of latents to tokens that are normalised already, with heads of keys and values for several of queries.

    Two routes compute the same. Where few latents attend to many tokens, the projections of keys and values are folded
    into queries and output, and neither exists (`latent_cross_attention`); else, and past projections that are not
    plain `nn.Linear` layers (adapters, hooks), in `torch.func`, TorchScript and tracing, they are projected and
    PyTorch's scaled dot-product attention takes them.

    Args:
        dim: Channels D of the latents and of the output.
        context_dim: Channels C of the tokens.
        num_heads: Heads H of queries.
        num_kv_heads: Heads of keys and values, a divisor of H.
        head_dim: Channels per head.
        bias: Give the projections a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, num_heads * head_dim, bias=bias, **dd)
        self.k = nn.Linear(context_dim, num_kv_heads * head_dim, bias=bias, **dd)
        self.v = nn.Linear(context_dim, num_kv_heads * head_dim, bias=bias, **dd)
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=bias, **dd)

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Attend.

        Args:
            x: Latents (B or 1, M, D).
            context: Tokens (B, N, C).
            mask: Boolean (B, N), True where a token takes part. An item without any attends to nothing: the weighted
                sum of its values is zero. Tokens that take no part must be finite all the same: not every route keeps
                0 · NaN out (`LatentPool` sets them to zero).

        Returns:
            (B, M, D).
        """
        q = self.q(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B or 1, H, M, d)
        if not torch.jit.is_scripting() and self._folds(q, context):
            out = self._folded(q, context, mask)
        else:
            out = self._projected(q, context, mask)
        if mask is not None:
            out = out.masked_fill(~mask.any(dim=1)[:, None, None, None], 0.0)
        return self.proj(out.transpose(1, 2).flatten(2))

    @torch.jit.ignore
    def _folds(self, q: torch.Tensor, context: torch.Tensor) -> bool:
        """Whether folding is exact and takes fewer multiplications."""
        if not self.fused_attn or not is_linear(self.k) or not is_linear(self.v) or not may_shortcut(self.k, self.v):
            return False
        if torch.compiler.is_exporting():  # sizes that are left open are not to be compared
            return False
        B, N, C = context.shape
        if B == 0 or N == 0:  # nothing to save, and nothing for a kernel
            return False
        H, M, d = q.shape[1:]
        projected = 2 * N * (C * self.k.out_features + M * H * d)
        half = q.dtype in (torch.float16, torch.bfloat16)
        moved = MOVED * (16 if half else 1) if context.device.type == 'cuda' else 0
        return M * H * (N * (2 * C + moved) + 2 * d * C) < projected

    @torch.jit.ignore
    def _folded(self, q: torch.Tensor, context: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        G, H, M = self.num_kv_heads, *q.shape[1:3]
        wk, wv = (linear.weight.to(q.dtype).view(G, -1, context.shape[2]) for linear in (self.k, self.v))  # (G, d, C)
        if self.k.bias is not None:
            # the same for all keys of a query, it cancels in the softmax; kept in the graph, with its gradient of zero
            q = q + (self.k.bias * 0.0).view(G, 1, 1, -1).expand(-1, H // G, -1, -1).flatten(0, 1).to(q.dtype)
        folded = (q.reshape(q.shape[0], G, -1, q.shape[3]) @ wk).reshape(q.shape[0], H, M, -1)  # (B or 1, H, M, C)
        out = latent_cross_attention(folded, context.to(folded.dtype), scale=self.scale, eps=None, mask=mask)
        out = out.reshape(out.shape[0], G, -1, out.shape[3]) @ wv.mT  # (B, G, H / G · M, d)
        if self.v.bias is not None:
            out = out + self.v.bias.to(out.dtype).view(G, 1, -1)
        return out.reshape(out.shape[0], H, M, -1)

    def _projected(self, q: torch.Tensor, context: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        k = self.k(context).unflatten(2, (self.num_kv_heads, self.head_dim)).transpose(1, 2)  # (B, G, N, d)
        v = self.v(context).unflatten(2, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        if self.num_kv_heads != self.num_heads:
            groups = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        q = q.expand(context.shape[0], -1, -1, -1)
        attn_mask: Optional[torch.Tensor] = None
        if mask is not None:  # where nothing is attended to, a softmax over everything keeps the gradients finite
            attn_mask = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        if self.fused_attn:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        attn = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, M, N)
        if attn_mask is not None:
            attn = attn.masked_fill(~attn_mask, -float('inf'))
        return attn.softmax(dim=-1) @ v


class LatentPoolBlock(nn.Module):
    """Cross-attention from latents to tokens and an MLP, both with a norm before and a residual around.

    Args:
        dim: Channels C of the tokens.
        config: Options.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `attend_latents` with latents of another width than the tokens.
    """

    def __init__(self, dim: int, config: LatentPoolConfig, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        latent_dim = config.latent_dim or dim
        if config.attend_latents and latent_dim != dim:
            raise ValueError(
                f'`attend_latents` needs latents of the width of the tokens, got `latent_dim={latent_dim}` for {dim}'
            )
        norm_layer = get_norm_layer(config.norm_layer)
        heads = config.num_heads
        head_dim = config.head_dim or max(1, latent_dim // heads)
        self.attend_latents = config.attend_latents
        self.norm1 = norm_layer(latent_dim, **dd)
        self.norm_context = norm_layer(dim, **dd)
        self.attn = LatentAttention(latent_dim, dim, heads, config.num_kv_heads or heads, head_dim, config.bias, **dd)
        hidden = int(latent_dim * config.mlp_ratio)
        self.norm2 = norm_layer(latent_dim, **dd) if hidden else nn.Identity()
        self.mlp = MLP_LAYERS[config.mlp_layer](latent_dim, hidden, bias=config.bias, **dd) if hidden else None

    def forward(self, latents: torch.Tensor, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Update latents (B or 1, M, D) by tokens (B, N, C), of which a mask (B, N) may leave some out."""
        normed, context = self.norm1(latents), self.norm_context(x)
        if self.attend_latents:
            context = torch.cat([context, normed.expand(x.shape[0], -1, -1)], dim=1)  # (B, N + M, C)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(x.shape[0], latents.shape[1])], dim=1)
        latents = latents + self.attn(normed, context, mask)  # (B, M, D)
        if self.mlp is not None:
            latents = latents + self.mlp(self.norm2(latents))
        return latents


class LatentPool(nn.Module):
    """Pool tokens by learned queries that attend to them.

    One layer with one latent is attention pooling by multihead attention (`Set Transformer`, section 3.2,
    https://arxiv.org/abs/1810.00825) with norms before instead of behind, the attentive probe of `V-JEPA`
    (https://arxiv.org/abs/2404.08471, appendix); several layers whose latents attend to themselves too are the
    resampler of `Flamingo` (https://arxiv.org/abs/2204.14198, appendix A.1.1) as Idefics2 has it, whose weights
    `timm_extra.models.latent_pool.from_idefics2` loads.

    Unlike `timm.layers.AttentionPoolLatent` it normalises the tokens, has several layers, a mask, wide tokens for
    narrow latents and shared heads of keys and values, and projects neither keys nor values where that is less work.

    Args:
        dim: Channels C of the tokens.
        config: Options.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: The options do not go with `dim`.
    """

    def __init__(self, dim: int, config: Optional[LatentPoolConfig] = None, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        config = config or LatentPoolConfig()
        self.config = config
        self.pool_type = config.pool_type
        self.num_features = config.latent_dim or dim
        self.grad_checkpointing = False
        self.latents = nn.Parameter(torch.zeros(config.num_latents, self.num_features, **dd))
        self.blocks = nn.ModuleList(LatentPoolBlock(dim, config, **dd) for _ in range(config.depth))
        self.norm = get_norm_layer(config.norm_layer)(self.num_features, **dd)
        if self.latents.device.type != 'meta':
            self.init_weights(needs_reset=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters.

        Args:
            needs_reset: Reset layers that initialise themselves on construction too; needed after `to_empty()`.
        """
        trunc_normal_(self.latents, std=0.02)
        for module in self.modules():
            _init_weights(module, needs_reset)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the layers' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Pool.

        Args:
            x: Tokens (B, N, C).
            mask: Boolean (B, N), True where a token takes part. Others have no influence.

        Returns:
            (B, D), or all latents (B, M, D) with `pool_type=''`.

        Raises:
            ValueError: The tokens have no batch, or the mask is not boolean or of another shape.
        """
        if not torch.jit.is_scripting():
            _check(x, mask)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # 0 · NaN would not be 0
        latents = self.latents.unsqueeze(0).to(x.dtype)
        if torch.jit.is_scripting():
            latents = latents.expand(x.shape[0], -1, -1)
        else:
            latents = shared(latents, x.shape[0], self.blocks)  # (B or 1, M, D)
        for blk in self.blocks:
            if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
                latents = checkpoint(blk, latents, x, mask)
            else:
                latents = blk(latents, x, mask)
        latents = self.norm(latents)
        if self.pool_type == 'avg':
            return latents.mean(dim=1)
        return latents[:, 0] if self.pool_type == 'token' else latents


@torch.jit.ignore
def _check(x: torch.Tensor, mask: Optional[torch.Tensor]) -> None:
    """Refuse what is not tokens with their mask.

    Raises:
        ValueError: The tokens have no batch, or the mask is not boolean or of another shape.
    """
    if isinstance(x, torch.fx.Proxy):  # has no shape to look at
        return
    if x.ndim != 3:
        raise ValueError(f'a latent pool takes tokens (B, N, C), got {tuple(x.shape)}')
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f'the mask must be boolean, got {mask.dtype}')
    # sizes that an export leaves open are not to be compared
    if mask.ndim != 2 or (not torch.compiler.is_exporting() and mask.shape != x.shape[:2]):
        raise ValueError(f'the mask must be (B, N) as the tokens {tuple(x.shape)}, got {tuple(mask.shape)}')


def _init_weights(module: nn.Module, needs_reset: bool) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, 'reset_parameters'):
        module.reset_parameters()
