"""Layer-wise class-token attention (LCA) of CeiT."""

from typing import Optional

import torch
from timm.layers import Mlp
from torch import nn

from timm_extra.layers.attention import Attention


class LayerwiseClassAttention(nn.Module):
    """The last layer's class token attends to the class tokens of all layers (LCA).

    Source: arXiv:2103.11816 section 3.3; residuals on the last token and the layer embedding as in the official code.

    Args:
        dim: Channels C of the tokens.
        depth: Number of layers L whose class tokens come in.
        num_heads: Attention heads.
        head_dim: Channels per head; `dim // num_heads` when None.
        mlp_ratio: Hidden channels of the feed-forward over `dim`.
        qkv_bias: Give the qkv projection a bias.
        proj_drop: Dropout rate after the projections.
        attn_drop: Dropout rate on the attention weights.
        act_layer: Activation class.
        norm_layer: Normalisation class.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        head_dim: Optional[int] = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        act_layer=nn.GELU,
        norm_layer=nn.LayerNorm,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.layer_embed = nn.Parameter(torch.zeros(1, depth, dim, **dd))
        self.norm1 = norm_layer(dim, **dd)
        self.attn = Attention(dim, num_heads, head_dim, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class tokens of all layers (B, L, C) to one token (B, 1, C)."""
        x = x + self.layer_embed
        x = x[:, -1:] + self.attn(self.norm1(x), query=-1)
        return x + self.mlp(self.norm2(x))
