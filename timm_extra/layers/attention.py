"""Multi-head self-attention, of all tokens or of one."""

from typing import Final, Optional

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, use_fused_attn
from torch import nn

from timm_extra_kernels import class_attention

from .shortcuts import may_shortcut


class Attention(nn.Module):
    """Self-attention with one fused qkv projection, with the queries of all tokens or of one of them.

    With `query` neither scores nor output projections of the other tokens are computed: for layer-wise class-token
    attention, and for the last block of a classifier that reads the class token.

    Args:
        dim: Channels C of the tokens.
        num_heads: Number of heads.
        head_dim: Channels per head; `dim // num_heads` when None.
        qkv_bias: Give the qkv projection a bias.
        attn_drop: Dropout rate on the attention weights.
        proj_drop: Dropout rate after the output projection.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `num_heads` is not positive, or `dim` is not divisible by it and no `head_dim` is given.
    """

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        head_dim: Optional[int] = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if num_heads < 1:
            raise ValueError(f'num_heads must be at least 1, got {num_heads}')
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f'dim ({dim}) must be divisible by num_heads ({num_heads}) unless head_dim is given')
            head_dim = dim // num_heads
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.attn_dim = num_heads * head_dim
        self.scale = head_dim**-0.5
        self.fused_attn = use_fused_attn()

        self.qkv = nn.Linear(dim, self.attn_dim * 3, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(self.attn_dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, query: Optional[int] = None) -> torch.Tensor:
        """Attend over the tokens.

        Args:
            x: Tokens (B, N, C): keys and values.
            query: Index of the one token whose query is used; all when None.

        Returns:
            (B, N, C), or (B, 1, C) when `query` is given.
        """
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, H, N, D)
        if query is not None:
            q = q[:, :, query].unsqueeze(2)  # (B, H, 1, D)

        if self.fused_attn:
            dropout_p = self.attn_drop.p if self.training else 0.0
            if query is None:
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
            else:
                x = single_query_attention(q, k, v, dropout_p)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, N, N), or (B, H, 1, N)
            x = self.attn_drop(attn.softmax(dim=-1)) @ v

        x = x.transpose(1, 2).flatten(2)  # (B, N or 1, H·D)
        return self.proj_drop(self.proj(x))


@register_notrace_function  # a name with an underscore would be traced all the same
def single_query_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> torch.Tensor:
    """Attention of one query per head (B, H, 1, D) over keys and values (B, H, N, D), to (B, H, 1, D)."""
    if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript compiles only what such an `if` alone guards
        if dropout_p == 0.0 and may_shortcut():
            return class_attention(q, k, v, scale=q.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
