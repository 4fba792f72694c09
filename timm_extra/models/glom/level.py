"""A level of GLOM."""

from typing import NamedTuple, Optional

import torch
from timm.layers import DropPath, Mlp
from torch import nn

from .consensus import ConsensusAttention

BETA = 12.0  # inverse temperature that consensus begins with
NORM_EPS = 1e-6


class Constant(NamedTuple):
    """What is the same in all iterations.

    Attributes:
        patch_input: What the bottom-up net of the patches gives to the lowest level (B, N, D).
        pos_embed: Positions (1, N, D).
        self_mask: As in `ConsensusAttention`.
        far_mask: As in `ConsensusAttention`.
    """

    patch_input: torch.Tensor
    pos_embed: torch.Tensor
    self_mask: Optional[torch.Tensor]
    far_mask: Optional[torch.Tensor]


class Level(nn.Module):
    """One level of all columns: how a state there follows from the states of the iteration before.

    The new state is the mean of the old one, the output of the bottom-up net for the level below, the output of the
    top-down net for the level above and its position, and the consensus of the columns.

    The lowest level has no bottom-up net: its input from the patches is the same in all iterations.

    Args:
        dim: Features D of a state.
        mlp_ratio: Hidden features of both nets over `dim`.
        bottom: There is no level below.
        top: There is no level above.
        normalize: Bring every state to mean 0 and variance 1, and learn the inverse temperature of consensus.
        learned_mean: Learn the weights of the mean.
        attn_drop: Dropout rate on consensus weights.
        proj_drop: Dropout rate within and after both nets.
        drop_path: Stochastic depth rate of both nets.
        act_layer: Activation class.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        bottom: bool,
        top: bool,
        normalize: bool,
        learned_mean: bool,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
        act_layer,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        hidden = int(dim * mlp_ratio)
        self.bottom_up = None if bottom else Mlp(dim, hidden, act_layer=act_layer, drop=proj_drop, **dd)
        self.top_down = None if top else Mlp(dim, hidden, act_layer=act_layer, drop=proj_drop, **dd)
        self.consensus = ConsensusAttention(BETA if normalize else None, attn_drop, **dd)
        self.contributions = 3 if top else 4
        self.weights = nn.Parameter(torch.ones(self.contributions, **dd)) if learned_mean else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False, **dd) if normalize else nn.Identity()

    def reset_parameters(self) -> None:
        """Set the weights of the mean to be equal."""
        if self.weights is not None:
            nn.init.ones_(self.weights)

    def forward(
        self,
        x: torch.Tensor,
        below: torch.Tensor,
        above: Optional[torch.Tensor],
        constant: Constant,
    ) -> torch.Tensor:
        """The state after an iteration. Batches B may be 1 where a state is the same for all images.

        Args:
            x: State of this level (B, N, D).
            below: State of the level below (B, N, D); at the bottom the input from the patches.
            above: State of the level above (B, N, D); None for the top.
            constant: What all iterations share.

        Returns:
            (B, N, D).
        """
        if self.bottom_up is not None:
            below = self.bottom_up(below)
        parts = [x, self.drop_path(below), self.consensus(x, constant.self_mask, constant.far_mask)]
        if self.top_down is not None and above is not None:
            parts.append(self.drop_path(self.top_down(above + constant.pos_embed)))
        if self.weights is not None:
            parts = [part * self.weights[i] for i, part in enumerate(parts)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return self.norm(total / self.contributions)
