"""The Perceiver's two kinds of blocks, in the styles of the implementations that have them."""

from dataclasses import dataclass
from typing import Final, Optional, Type

import torch
from timm.layers import DropPath, GELUTanh, GluMlp, Mlp
from torch import nn

from timm_extra.layers import Attention, checkpoint

from .cross_attention import CrossAttention, Inputs


@dataclass(frozen=True)
class Style:
    """What differs between implementations; each field is a deviation that was measured.

    Attributes:
        act_layer: Activation of the feed-forward: DeepMind's GELU is the tanh approximation.
        same_padding: Stem's convolution and pooling are padded as SAME, by the size; transformers pads 3 and 0.
        qkv_bias: Projections of queries, keys and values have a bias.
        glu: The feed-forward is a GEGLU; `mlp_ratio` counts its gated half.
        head_norm: Normalise between pooling and classifier.
        attn_proj_drop: `proj_drop_rate` applies after attention too, not in the feed-forward alone.
        decoder_residual: Forces the decoder's query residual on or off; None leaves it to the argument.
    """

    act_layer: Type[nn.Module] = GELUTanh
    same_padding: bool = True
    qkv_bias: bool = True
    glu: bool = False
    head_norm: bool = False
    attn_proj_drop: bool = True
    decoder_residual: Optional[bool] = None


STYLES = {
    None: Style(),
    'hf': Style(act_layer=nn.GELU, same_padding=False, decoder_residual=True),
    'lucidrains': Style(
        act_layer=nn.GELU, qkv_bias=False, glu=True, head_norm=True, attn_proj_drop=False, decoder_residual=False
    ),
}


def _mlp(dim: int, ratio: float, style: Style, drop: float, **dd) -> nn.Module:
    hidden = int(dim * ratio)
    if style.glu:
        return GluMlp(dim, 2 * hidden, act_layer=style.act_layer, drop=(0.0, drop), **dd)
    return Mlp(dim, hidden, act_layer=style.act_layer, drop=(0.0, drop), **dd)


class SelfAttentionBlock(nn.Module):
    """Transformer block on latents.

    Args:
        dim: Channels D of the latents.
        num_heads: Attention heads.
        head_dim: Channels per head; `dim // num_heads` when None.
        mlp_ratio: Hidden channels of the feed-forward over `dim`.
        style: Implementation to follow.
        attn_drop: Dropout rate on the attention weights.
        proj_drop: Dropout rate after the projections.
        drop_path: Stochastic depth rate of both halves.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: Optional[int],
        mlp_ratio: float,
        style: Style,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        attn_proj_drop = proj_drop if style.attn_proj_drop else 0.0
        self.attn = Attention(dim, num_heads, head_dim, style.qkv_bias, attn_drop, attn_proj_drop, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = _mlp(dim, mlp_ratio, style, proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Latents (B, M, D) to latents (B, M, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CrossAttentionBlock(nn.Module):
    """Transformer block whose queries attend to inputs.

    Args:
        dim: Channels D of the queries.
        kv_dim: Channels C of the inputs.
        num_heads: Attention heads.
        head_dim: Channels per head; `kv_dim // num_heads` when None.
        mlp_ratio: Hidden channels of the feed-forward over `dim`; 0 for no feed-forward.
        style: Implementation to follow.
        residual: Add the queries to what they gather.
        route: Route of the cross-attention, chosen by cost when None.
        attn_drop: Dropout rate on the attention weights.
        proj_drop: Dropout rate after the projections.
        drop_path: Stochastic depth rate of both halves.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    residual: Final[bool]

    def __init__(
        self,
        dim: int,
        kv_dim: int,
        num_heads: int,
        head_dim: Optional[int],
        mlp_ratio: float,
        style: Style,
        residual: bool = True,
        route: Optional[str] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.residual = residual
        self.norm1 = nn.LayerNorm(dim, **dd)
        attn_proj_drop = proj_drop if style.attn_proj_drop else 0.0
        self.attn = CrossAttention(
            dim, kv_dim, num_heads, head_dim, style.qkv_bias, route, attn_drop, attn_proj_drop, **dd
        )
        self.norm2 = nn.LayerNorm(dim, **dd) if mlp_ratio else nn.Identity()
        self.mlp = _mlp(dim, mlp_ratio, style, proj_drop, **dd) if mlp_ratio else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 and residual else nn.Identity()

    def forward(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Queries (B or 1, M, D) to (B, M, D)."""
        y = self.drop_path(self.attn(self.norm1(x), inputs))
        x = x + y if self.residual else y
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class LatentTransformer(nn.Sequential):
    """Self-attends of latents, one after the other.

    Args:
        *attends: `SelfAttentionBlock`s.
    """

    def __init__(self, *attends: nn.Module):
        super().__init__(*attends)
        self.grad_checkpointing = False

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, M, D) to latents (B, M, D)."""
        for attend in self:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                z = checkpoint(attend, z)
            else:
                z = attend(z)
        return z
