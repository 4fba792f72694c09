"""Perceiver IO: outputs of any structure, decoded by queries that attend to the latents.

Paper: `Perceiver IO: A General Architecture for Structured Inputs & Outputs` by Andrew Jaegle et al.,
https://arxiv.org/abs/2107.14795
"""

import math
from typing import Any, Dict, Final, List, Optional, Sequence, Set, Tuple, Union

import torch
from timm.layers import _assert, is_exporting, register_notrace_function
from torch import nn

from timm_extra._timm import update_model_args
from timm_extra.layers.shortcuts import shared

from .blocks import CrossAttentionBlock, Style
from .cross_attention import Inputs, tokens_alone
from .decoder import QUERIES, decode
from .fourier import fourier_table, grid_tokens
from .perceiver_v1 import Perceiver
from .positions import checked_resolution, resample_positions
from .stems import GridStem
from .tile_source import TileSource

GRID_OF_ONE_SIZE = "query_type='grid' needs images of one size: query_type='inputs' takes NaFlex batches"


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
        query_type: Queries of the decoder: 'learned' vectors, one or several outputs for the whole input; 'grid', one
            for each position of the input (each pixel, whatever the stem makes of them), of its position alone;
            'inputs', one for each token, the token itself with its position, as in DeepMind's optical flow.
        num_queries: Learned queries Q of the decoder; with 0 every call must bring its own.
        query_dim: Channels of learned queries, or of learned positions on a grid; `latent_dim` when None.
        query_pos_embed: Positions of 'grid', 'fourier' (with `num_bands`) or 'learned'; these are for other sizes only
            with `dynamic_img_size`.
        query_max_resolution: Of these Fourier features, as `max_resolution`; when None that of the stem's, in pixels,
            or `img_size` where the stem has none.
        decoder_residual: Add the queries to what the decoder gathers.
        decoder_mlp: Give the decoder a feed-forward.
        out_scale: Factor of the outputs.
        **kwargs: All other arguments of `Perceiver`; `global_pool` is 'token' (decoded queries, the default), 'avg'
            (mean of the latents) or '' (all latents). There is no decoder without 'token'.

    Raises:
        ValueError: Arguments are out of range or exclude each other; the message names them.
    """

    query_type: Final[str]
    query_resolution: List[float]
    query_grid: List[int]

    pools = ('', 'avg', 'token')
    default_pool = 'token'

    def __init__(
        self,
        *,
        num_cross_attends: int = 1,
        query_type: str = 'learned',
        num_queries: int = 1,
        query_dim: Optional[int] = None,
        query_pos_embed: str = 'fourier',
        query_max_resolution: Union[float, Sequence[float], None] = None,
        decoder_residual: bool = True,
        decoder_mlp: bool = True,
        out_scale: float = 1.0,
        **kwargs: Any,
    ):
        if num_queries < 0:
            raise ValueError(f'num_queries must not be negative, got {num_queries}')
        if query_type not in QUERIES:
            raise ValueError(f'query_type must be one of {QUERIES}, got {query_type!r}')
        if query_pos_embed not in ('fourier', 'learned'):
            raise ValueError(f"query_pos_embed must be 'fourier' or 'learned', got {query_pos_embed!r}")
        if query_dim is not None and query_dim < 1:
            raise ValueError(f'query_dim must be at least 1, got {query_dim}')
        if not math.isfinite(out_scale):
            raise ValueError(f'out_scale must be finite, got {out_scale}')
        takes = {'learned': ('num_queries', 'query_dim'), 'inputs': ()}
        takes['grid'] = ('query_pos_embed', 'query_max_resolution' if query_pos_embed == 'fourier' else 'query_dim')
        given = dict(num_queries=(num_queries, 1), query_dim=(query_dim, None))
        given.update(query_pos_embed=(query_pos_embed, 'fourier'), query_max_resolution=(query_max_resolution, None))
        for name, (value, default) in given.items():
            if value != default and name not in takes[query_type]:
                raise ValueError(f'query_type={query_type!r} takes no {name} here, got {value!r}')
        # `_add_decoder` is called within
        self._decoder_args = (num_queries, query_dim, query_pos_embed, query_max_resolution)
        self._decoder_parts = (decoder_residual, decoder_mlp)
        self.query_type, self.out_scale = query_type, out_scale
        super().__init__(num_cross_attends=num_cross_attends, **kwargs)

    @torch.jit.ignore
    def get_patch_size(self) -> Tuple[int, ...]:
        """As `Perceiver.get_patch_size`."""
        if self.query_type == 'grid' and self.decoder is not None:
            raise ValueError(GRID_OF_ONE_SIZE)
        return super().get_patch_size()

    def _add_decoder(self, style: Style, options: Dict[str, Any]) -> None:
        num_queries, query_dim, pos_embed, resolution = self._decoder_args
        residual, mlp = self._decoder_parts
        stem = self.stem
        self.query: Optional[nn.Parameter] = None
        self.query_resolution, self.query_grid = [], list(stem.img_size)
        self.head_hidden_size = self.num_features if query_dim is None else query_dim
        if self.query_type == 'learned':
            if style.decoder_residual is not None:
                residual = style.decoder_residual
        elif self.query_type == 'inputs':
            num_queries, self.head_hidden_size = 0, stem.out_chans
        elif not isinstance(stem, GridStem):
            raise ValueError(
                f"query_type='grid' needs inputs on a grid, which stem={stem.kind!r} has not: take 'inputs'"
            )
        elif pos_embed == 'fourier':
            if stem.num_bands < 1:
                raise ValueError(f'num_bands must be at least 1, got {stem.num_bands}')
            resolution = self._resolution_of_pixels() if resolution is None else resolution
            self.query_resolution = checked_resolution(resolution, stem.num_axes, 'query_max_resolution')
            num_queries, self.head_hidden_size = 0, stem.num_axes * (2 * stem.num_bands + 1)
        else:
            num_queries = math.prod(stem.img_size)
        if num_queries:
            self.query = nn.Parameter(self.latents.new_zeros(num_queries, self.head_hidden_size))
        if not mlp:
            options['mlp_ratio'] = 0.0
        self.decoder = CrossAttentionBlock(self.head_hidden_size, self.num_features, residual=residual, **options)

    def _resolution_of_pixels(self) -> List[float]:
        """What the stem's positions resolve, on the grid of its inputs."""
        stem = self.stem
        if not stem.max_resolution:
            return [float(size) for size in stem.img_size]
        steps = [round(size / tokens) for size, tokens in zip(stem.img_size, stem.grid_size, strict=True)]
        return [step * resolution for step, resolution in zip(steps, stem.max_resolution, strict=True)]

    def _init_head(self) -> None:
        super()._init_head()
        if self.query_type != 'learned' and not isinstance(self.head, nn.Identity):
            nn.init.zeros_(self.head.weight)  # as DeepMind's of optical flow

    def _set_pool(self, global_pool: str) -> None:
        if global_pool == 'token' and self.decoder is None:
            raise ValueError(f"global_pool='token' needs the decoder, which went with global_pool={self.global_pool!r}")
        super()._set_pool(global_pool)
        if global_pool != 'token':  # what gets no gradient is no part of the model
            self.decoder, self.query = None, None
            self.head_hidden_size = self.num_features

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters that are not decayed. DeepMind's recipe decays them too."""
        return {'query', *super().no_weight_decay()}

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier, as `Perceiver` does; the decoder goes with another pooling than 'token', for good."""
        super().reset_classifier(num_classes, global_pool)
        if global_pool is not None:
            update_model_args(self, global_pool=self.global_pool)

    def set_input_size(self, img_size: Union[int, Sequence[int], None] = None) -> None:
        """Change the nominal size, as `Perceiver` does, and resample learned positions of queries."""
        super().set_input_size(img_size)
        new = list(self.stem.img_size)
        if self.query is not None and self.query_type == 'grid' and new != self.query_grid:
            query = resample_positions(self.query.detach(), self.query_grid, new)
            self.query = nn.Parameter(query.contiguous(), requires_grad=self.query.requires_grad)
        self.query_grid = new
        if self.query_resolution:  # frequencies stay those of the weights
            update_model_args(self, query_max_resolution=list(self.query_resolution))

    def forward_head(
        self, z: torch.Tensor, pre_logits: bool = False, queries: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Latents (B, M, D) to outputs, or to decoded features with `pre_logits`; shapes as in `forward`.

        Queries on a grid are those of the nominal size. Inputs as queries are not known here: they are to be given.
        """
        if self.decoder is not None:
            if queries is None and self.query_type == 'grid':
                return self._decode_grid(z, self._grid_queries(self.query_grid, z), self.query_grid, pre_logits)
            _assert(
                queries is not None or self.query_type == 'learned',
                "The queries of query_type='inputs' come from the inputs: call forward, or pass queries.",
            )
            q = given_or_learned(queries, self.query)
            if not torch.jit.is_scripting():
                q = shared(q, z.shape[0], self.decoder)
            z = without_single(self.decoder(q, tokens_alone(z)), queries)  # (B, Q, query_dim)
        else:
            _assert(queries is None, 'This model has no decoder, which queries are for.')
            if self.global_pool == 'avg':
                z = z.mean(dim=1)
        z = self.head_drop(z)
        return z if pre_logits else self._scaled(self.head(z))

    def _scaled(self, out: torch.Tensor) -> torch.Tensor:
        return out * self.out_scale if self.out_scale != 1.0 else out

    def _grid_queries(self, grid: List[int], z: torch.Tensor) -> Inputs:
        """Queries of the positions of a grid, as content and features of each axis or as tokens."""
        axes: List[torch.Tensor] = []
        query = self.query
        if query is not None:
            # an export that compared sizes would be bound to those of its example
            if (self.stem.dynamic_img_size and is_exporting()) or grid != self.query_grid:
                _assert(
                    self.stem.dynamic_img_size,
                    f'Outputs are {grid}, learned positions of queries are for {self.query_grid}: use '
                    'dynamic_img_size=True or set_input_size().',
                )
                query = resample_positions(query, self.query_grid, grid)
            return Inputs(query.unsqueeze(0), axes, None)
        for i, resolution in enumerate(self.query_resolution):
            axes.append(fourier_table(grid[i], self.stem.num_bands, resolution, z.device, z.dtype))
        shape = grid.copy()
        shape.insert(0, 0)
        shape.insert(0, 1)
        return Inputs(z.new_zeros(shape), axes, None)

    def _decode_grid(self, z: torch.Tensor, queries: Inputs, grid: List[int], pre_logits: bool = False) -> torch.Tensor:
        """Latents (B, M, D) to outputs (B, num_classes, *grid), or to decoded features (B, C, *grid)."""
        if torch.jit.is_scripting():
            q = grid_tokens(queries.content, queries.axes) if len(queries.axes) > 0 else queries.content
            out = self.head_drop(self.decoder(q, tokens_alone(z)))
            out = out if pre_logits else self.head(out)
        else:
            out = self._decode(z, queries, pre_logits)
        if not pre_logits:
            out = self._scaled(out)
        shape = grid.copy()
        shape.insert(0, out.shape[2])
        shape.insert(0, out.shape[0])
        return out.transpose(1, 2).reshape(shape)

    @torch.jit.ignore
    def _decode(self, z: torch.Tensor, queries: Inputs, pre_logits: bool) -> torch.Tensor:
        head = [self.head_drop] if pre_logits else [self.head_drop, self.head]
        return decode(self.decoder, queries, z, head, self.grad_checkpointing)

    @torch.jit.ignore
    def forward_stream(self, source: TileSource, **options: Any) -> torch.Tensor:
        """As `Perceiver.forward_stream`, with learned queries: (1, num_classes), or (1, Q, num_classes).

        Raises:
            ValueError: As there, or the model has an output for every position.
        """
        if self.decoder is not None and self.query_type != 'learned':
            raise ValueError(f'an image is streamed to learned queries, not to query_type={self.query_type!r}')
        return super().forward_stream(source, **options)

    def forward(
        self, x: torch.Tensor, mask: Optional[torch.Tensor] = None, queries: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Inputs to outputs.

        Args:
            x: (B, in_chans, *img_size), for points and tokens (B, N, in_chans); or a NaFlex batch, as `Perceiver` takes
                it.
            mask: Boolean (B, *grid), True where an input takes part. An item without any attends to nothing.
            queries: (Q, query_dim) or (B, Q, query_dim) to decode by instead of the model's own.

        Returns:
            (B, num_classes); (B, Q, num_classes) with `queries` or several learned ones; (B, num_classes, *img_size)
            with `query_type='grid'`; (B, num_classes, *grid), or (B, num_classes, N) for points and tokens, with
            'inputs', where N is also the number of patches of a NaFlex batch.
        """
        if self.query_type == 'learned' or queries is not None or self.decoder is None:
            return self.forward_head(self.forward_features(x, mask), False, queries)
        if not torch.jit.is_scripting():
            _assert(self.query_type == 'inputs' or isinstance(x, torch.Tensor), GRID_OF_ONE_SIZE)
        inputs, grid = self.stem(x, mask)
        z = self._latents_of(inputs)
        if self.query_type == 'inputs':
            return self._decode_grid(z, inputs, grid)
        grid = list(x.shape[x.ndim - self.stem.num_axes :])
        return self._decode_grid(z, self._grid_queries(grid, z), grid)
