"""Perceiver IO: a Perceiver whose outputs are decoded by queries.

Paper: `Perceiver IO: A General Architecture for Structured Inputs & Outputs` by Andrew Jaegle et al.,
https://arxiv.org/abs/2107.14795

Official code: https://github.com/google-deepmind/deepmind-research/tree/master/perceiver (Apache-2.0).
"""

from typing import Any, Dict, List, Optional, Set, Union

import torch
from timm.layers import _assert, register_notrace_function
from torch import nn

from .blocks import CrossAttentionBlock, Style
from .cross_attention import tokens_alone
from .model import Perceiver


@register_notrace_function  # a name with an underscore would be traced all the same
def given_or_learned(queries: Optional[torch.Tensor], learned: Optional[torch.Tensor]) -> torch.Tensor:
    """Queries (B or 1, Q, query_dim) of the decoder."""
    if queries is not None:
        return queries.unsqueeze(0) if queries.ndim == 2 else queries
    _assert(learned is not None, 'This model has no learned queries (num_queries=0): pass queries.')
    assert learned is not None  # for TorchScript
    return learned.unsqueeze(0)


@register_notrace_function  # a name with an underscore would be traced all the same
def without_single(z: torch.Tensor, queries: Optional[torch.Tensor]) -> torch.Tensor:
    """Decoded (B, Q, C), without the axis of the one learned query."""
    return z.squeeze(1) if queries is None and z.shape[1] == 1 else z


class PerceiverIO(Perceiver):
    """Perceiver IO: one cross-attend to the inputs, and outputs decoded by queries that attend to the latents.

    Args:
        num_cross_attends: Blocks that begin with a cross-attend, the first ones.
        num_queries: Learned queries Q of the decoder; with 0 every call must bring its own.
        query_dim: Channels of the queries; `latent_dim` when None.
        decoder_residual: Add the queries to what the decoder gathers.
        decoder_mlp: Give the decoder a feed-forward.
        **kwargs: All other arguments of `Perceiver`; `global_pool` is 'token' (decoded queries, the default), or ''
            (all latents).

    Raises:
        ValueError: Arguments are out of range or exclude each other; the message names them.
    """

    def __init__(
        self,
        *,
        num_cross_attends: int = 1,
        num_queries: int = 1,
        query_dim: Optional[int] = None,
        decoder_residual: bool = True,
        decoder_mlp: bool = True,
        **kwargs: Any,
    ):
        if num_queries < 0:
            raise ValueError(f'num_queries must not be negative, got {num_queries}')
        self._decoder_args = (num_queries, query_dim, decoder_residual, decoder_mlp)  # `_add_decoder` is called within
        super().__init__(num_cross_attends=num_cross_attends, **kwargs)

    def _add_decoder(self, style: Style, options: Dict[str, Any]) -> None:
        num_queries, query_dim, residual, mlp = self._decoder_args
        self.head_hidden_size = self.num_features if query_dim is None else query_dim
        self.query = None
        if num_queries:
            self.query = nn.Parameter(self.latents.new_zeros(num_queries, self.head_hidden_size))
        if style.decoder_residual is not None:
            residual = style.decoder_residual
        if not mlp:
            options['mlp_ratio'] = 0.0
        self.decoder = CrossAttentionBlock(self.head_hidden_size, self.num_features, residual=residual, **options)

    def _own_pool(self) -> str:
        return 'avg' if self.decoder is None else 'token'

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters that are not decayed. DeepMind's recipe decays them too."""
        return {'query', *super().no_weight_decay()}

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Remove what the given intermediates do not need; as `Perceiver` does, and the decoder with the head."""
        if prune_head:
            self.decoder, self.query = None, None
            self.head_hidden_size = self.num_features
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def forward_head(
        self, z: torch.Tensor, pre_logits: bool = False, queries: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Latents (B, M, D) to logits, or to decoded features with `pre_logits`; shapes as in `forward`."""
        if self.decoder is not None and self.global_pool == 'token':
            decoded = self.decoder(given_or_learned(queries, self.query), tokens_alone(z))  # (B, Q, query_dim)
            z = without_single(decoded, queries)
        elif self.global_pool == 'avg':  # pruned
            z = z.mean(dim=1)
        z = self.head_drop(z)
        return z if pre_logits else self.head(z)

    def forward(
        self, x: torch.Tensor, mask: Optional[torch.Tensor] = None, queries: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Inputs to logits.

        Args:
            x: (B, in_chans, *img_size), for points and tokens (B, N, in_chans).
            mask: Boolean (B, *grid), True where an input takes part. An item without any attends to nothing.
            queries: (Q, query_dim) or (B, Q, query_dim) to decode by instead of the learned ones.

        Returns:
            (B, num_classes), or (B, Q, num_classes) with `queries` or several learned ones.
        """
        return self.forward_head(self.forward_features(x, mask), False, queries)
