"""Perceiver and Perceiver IO: a few latents attend to very many inputs of any kind.

Papers: `Perceiver: General Perception with Iterative Attention` by Andrew Jaegle, Felix Gimeno, Andrew Brock, Andrew
Zisserman, Oriol Vinyals and Joao Carreira, https://arxiv.org/abs/2103.03206, and `Perceiver IO: A General Architecture
for Structured Inputs & Outputs` by Andrew Jaegle et al., https://arxiv.org/abs/2107.14795

Official code: https://github.com/google-deepmind/deepmind-research/tree/master/perceiver (Apache-2.0), whose behaviour
these models have. `compat='hf'` computes what transformers computes, `compat='lucidrains'` what
https://github.com/lucidrains/perceiver-pytorch (MIT) does.
"""

import math
from functools import partial
from typing import Any, Dict, Final, List, Optional, Sequence, Set, Tuple, Type, Union

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.layers import (
    _assert,
    get_device_dtype,
    lecun_normal_,
    register_notrace_function,
    trunc_normal_,
    trunc_normal_tf_,
)
from timm.models import (
    PretrainedCfg,
    generate_default_cfgs,
    named_apply,
    register_model,
)
from torch import nn

from timm_extra._timm import feature_take_indices, update_model_args, update_model_input_size
from timm_extra.layers import checkpoint
from timm_extra.layers.shortcuts import shared

from .._build import build_model
from .._checks import checked_pool
from .._size import input_size, record_input_size
from .blocks import STYLES, CrossAttentionBlock, LatentTransformer, SelfAttentionBlock, Style
from .checkpoint_filter import checkpoint_filter_fn
from .cross_attention import Inputs, tokens_alone
from .decoder import QUERIES, decode
from .fourier import fourier_table, grid_tokens
from .older_folders import arguments_of_folder
from .positions import Positions, checked_resolution, resample_positions
from .stem import STEM_OPTIONS, STEMS, GridStem, PixelStem, build_stem

__all__ = ['Perceiver', 'PerceiverIO']


class Perceiver(nn.Module):
    """Perceiver: latents that attend to the inputs again and again, and to themselves in between.

    Weights are shared as in the paper: the first cross-attend has its own, all later ones share one set, and so do all
    blocks of self-attends. Each shared set is registered once.

    Args:
        img_size: Size of the inputs: (samples,), (height, width) or (frames, height, width). A single number is a
            square image, for points and tokens their number.
        in_chans: Channels of the inputs; for points the 3 coordinates and further features together.
        num_classes: Classes of the head; 0 for none.
        global_pool: 'avg' (mean of the latents), or '' (all latents); None for the first.
        stem: 'pixels', 'conv1x1', 'conv', 'patches', 'frames', 'points' or 'tokens'.
        stem_chs: Channels of the stem's convolution.
        patch_size: Inputs per patch along each axis, or along all, for 'patches'.
        num_frames: Frames of an input, for 'frames'.
        grey_chans: Repeat a single input channel to that many, as weights for colour images need it; 0 for no.
        pos_embed: 'fourier', 'learned' or 'none'.
        num_bands: Frequencies of the Fourier features per axis.
        max_resolution: Samples per axis that the highest frequency can resolve; the grid's size when None.
        pos_dim: Channels of learned positions.
        pos_proj_dim: Project learned positions to that many channels; not at all when None.
        dynamic_img_size: Accept any size with learned positions, which are resampled; Fourier features always do.
        num_latents: Latents M.
        latent_dim: Channels D of a latent.
        num_blocks: Blocks of self-attends.
        block_depth: Self-attends in a block.
        num_heads: Heads of the self-attends.
        head_dim: Channels per head there; `latent_dim // num_heads` when None.
        mlp_ratio: Hidden channels of every feed-forward over its width.
        unique_blocks: Different sets of weights among the blocks; all blocks from there on share the last.
        num_cross_attends: Blocks that begin with a cross-attend, the first ones; all when None.
        unique_cross_attends: Different sets of weights among the cross-attends, likewise.
        cross_num_heads: Heads of the cross-attends.
        cross_head_dim: Channels per head there; the inputs' channels divided by the heads when None.
        cross_route: 'separable', 'folded' or 'plain' cross-attention; the cheapest when None.
        compat: None (DeepMind's behaviour), 'hf' (transformers) or 'lucidrains' (perceiver-pytorch).
        drop_rate: Dropout rate before the classifier.
        proj_drop_rate: Dropout rate after projections.
        attn_drop_rate: Dropout rate on attention weights.
        drop_path_rate: Stochastic depth rate, the same everywhere, as shared weights are.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: Arguments are out of range or exclude each other; the message names them.
    """

    num_blocks: Final[int]
    num_cross_attends: Final[int]

    __jit_unused_properties__ = ('input_size',)

    pools = ('', 'avg')
    default_pool = 'avg'

    def __init__(
        self,
        img_size: Union[int, Sequence[int]] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Optional[str] = None,
        stem: str = 'pixels',
        stem_chs: int = 64,
        patch_size: Union[int, Sequence[int]] = (),
        num_frames: int = 2,
        grey_chans: int = 0,
        pos_embed: str = 'fourier',
        num_bands: int = 64,
        max_resolution: Union[float, Sequence[float], None] = None,
        pos_dim: int = 256,
        pos_proj_dim: Optional[int] = None,
        dynamic_img_size: bool = False,
        num_latents: int = 512,
        latent_dim: int = 1024,
        num_blocks: int = 8,
        block_depth: int = 6,
        num_heads: int = 8,
        head_dim: Optional[int] = None,
        mlp_ratio: float = 1.0,
        unique_blocks: int = 1,
        num_cross_attends: Optional[int] = None,
        unique_cross_attends: int = 2,
        cross_num_heads: int = 1,
        cross_head_dim: Optional[int] = None,
        cross_route: Optional[str] = None,
        compat: Optional[str] = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if compat not in STYLES:
            raise ValueError(f'compat must be one of {tuple(STYLES)}, got {compat!r}')
        style = STYLES[compat]
        num_cross_attends = num_blocks if num_cross_attends is None else num_cross_attends
        counts = dict(num_latents=num_latents, num_blocks=num_blocks, unique_blocks=unique_blocks)
        counts.update(num_cross_attends=num_cross_attends, unique_cross_attends=unique_cross_attends)
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if max(num_cross_attends, unique_blocks) > num_blocks or block_depth < 0:
            raise ValueError(
                f'{num_cross_attends} cross-attends and {unique_blocks} different blocks do not fit into {num_blocks} '
                f'blocks of {block_depth} self-attends'
            )

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.compat = compat
        self.num_blocks = num_blocks
        self.num_cross_attends = num_cross_attends
        self.num_features = self.embed_dim = self.head_hidden_size = latent_dim
        self.num_prefix_tokens = 0
        self.grad_checkpointing = False

        self.stem = build_stem(
            stem,
            img_size,
            in_chans,
            Positions(pos_embed, num_bands, max_resolution, pos_dim, pos_proj_dim, dynamic_img_size),
            options=dict(stem_chs=stem_chs, patch_size=patch_size, num_frames=num_frames, grey_chans=grey_chans),
            same_padding=style.same_padding,
            **dd,
        )
        self._traits = self.stem.traits()
        self.latents = nn.Parameter(torch.zeros(num_latents, latent_dim, **dd))

        drops = dict(attn_drop=attn_drop_rate, proj_drop=proj_drop_rate)
        cross = dict(num_heads=cross_num_heads, head_dim=cross_head_dim, style=style, route=cross_route, **drops, **dd)
        self.cross_attends = nn.ModuleList(
            CrossAttentionBlock(latent_dim, self.stem.out_chans, mlp_ratio=mlp_ratio, drop_path=drop_path_rate, **cross)
            for _ in range(min(unique_cross_attends, num_cross_attends))
        )
        self.blocks = nn.ModuleList(
            LatentTransformer(
                *(
                    SelfAttentionBlock(
                        latent_dim, num_heads, head_dim, mlp_ratio, style, drop_path=drop_path_rate, **drops, **dd
                    )
                    for _ in range(block_depth)
                )
            )
            for _ in range(unique_blocks)
        )
        self.stages = nn.ModuleList(nn.Identity() for _ in range(num_blocks))  # latents after each block, for hooks
        self.feature_info = [dict(num_chs=latent_dim, reduction=1, module=f'stages.{i}') for i in range(num_blocks)]

        self._add_decoder(style, dict(cross, mlp_ratio=mlp_ratio))
        self._set_pool(self.default_pool if global_pool is None else global_pool)
        self._with_head_norm = style.head_norm and self.default_pool == 'avg'
        self.head_norm: nn.Module = nn.Identity()
        if self._with_head_norm and (num_classes > 0 or self.global_pool):
            self.head_norm = nn.LayerNorm(latent_dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()

        if self.latents.device.type != 'meta':
            self.init_weights(needs_reset=False)

    def _add_decoder(self, style: Style, options: Dict[str, Any]) -> None:
        """What Perceiver IO has between blocks and head."""

    def _set_pool(self, global_pool: str) -> None:
        self.global_pool = checked_pool(global_pool, self.pools)

    @property
    def input_size(self) -> Tuple[int, ...]:
        """Shape of one input without the batch: (in_chans, *img_size), for points and tokens (N, in_chans).

        Images of any size do for a model without learned positions: where none was asked for, it is what the
        configuration says.
        """
        return input_size(self) if hasattr(self, 'pretrained_cfg') else self.stem.input_size()

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters and buffers as DeepMind's code does.

        Args:
            needs_reset: Reset layers that initialise themselves on construction too; needed after `to_empty()`.
        """
        for p in self.parameters(recurse=False):  # latents, and the queries of Perceiver IO
            trunc_normal_(p, std=0.02)
        self.stem.init_weights()
        named_apply(partial(_init_weights, needs_reset=needs_reset), self)
        self._init_head()

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Identity):
            return
        if self.global_pool != 'token' and isinstance(self.head_norm, nn.Identity):
            nn.init.zeros_(self.head.weight)  # it reads latents, or their mean, that no norm has tamed
        else:
            _init_as_haiku(self.head)
        nn.init.zeros_(self.head.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters that are not decayed. DeepMind's recipe decays them too."""
        return {'latents', 'stem.pos_embed'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Groups of parameters for layer-wise learning rates: inputs, cross-attends, self-attends, decoder."""
        blocks = r'^blocks\.(\d+)' if coarse else r'^blocks\.(\d+)\.(\d+)'
        return dict(
            stem=r'^stem|^latents',
            blocks=[(r'^cross_attends', None), (blocks, None), (r'^decoder|^query|^head_norm', (99998,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of attends in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable
        for block in self.blocks:
            block.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new head; 0 for none.
            global_pool: New pooling; unchanged when None.

        Raises:
            ValueError: `global_pool` is not one that this model can do.
        """
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self._set_pool(global_pool)
        if self._with_head_norm and num_classes > 0 and isinstance(self.head_norm, nn.Identity):
            self.head_norm = nn.LayerNorm(self.num_features, **dd)
        self.head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)
        if num_classes > 0 and self.head.weight.device.type != 'meta':
            self._init_head()

    def set_input_size(self, img_size: Union[int, Sequence[int], None] = None) -> None:
        """Change the nominal size of the inputs, resampling learned positions.

        Args:
            img_size: One number per spatial axis, one for all, or None for no change.

        Raises:
            ValueError: Sizes are not positive, or not multiples of the patch size.
        """
        if img_size is None:
            return
        sizes = [img_size] * self.stem.num_axes if isinstance(img_size, int) else list(img_size)
        self.stem.set_input_size(sizes)
        if len(sizes) == 2:
            update_model_input_size(self, tuple(sizes))
        else:  # timm's record of sizes is of images
            update_model_args(self, img_size=sizes)
        self._traits.update(self.stem.traits())
        record_input_size(self)
        self._model_args.pop('input_shape', None)  # what older versions called the size
        if self.stem.max_resolution:  # frequencies stay those of the weights
            update_model_args(self, max_resolution=list(self.stem.max_resolution))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NLC',
        intermediates_only: bool = False,
        mask: Optional[torch.Tensor] = None,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Run the model and collect latents after blocks.

        Args:
            x: As in `forward`.
            indices: The last n blocks if an int, all if None, else these blocks.
            norm: Without effect: there is no final norm.
            stop_early: With `intermediates_only`, do not run blocks after the last one asked for.
            output_fmt: 'NLC': latents have no place in the image.
            intermediates_only: Return the intermediates alone.
            mask: As in `forward`.

        Returns:
            Latents (B, M, D) after each of the blocks, or what `forward_features` returns and these.
        """
        _assert(output_fmt == 'NLC', 'Output format must be NLC: latents are not on a grid.')
        take_indices, max_index = feature_take_indices(self.num_blocks, indices)
        stop = max_index + 1 if stop_early and intermediates_only else self.num_blocks
        z, intermediates = self._run(self.stem(x, mask)[0], x.shape[0], take_indices, stop)
        if intermediates_only:
            return intermediates
        return z, intermediates

    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Remove what the given intermediates do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Without effect: there is no final norm.
            prune_head: Remove pooling and classifier, and the decoder of Perceiver IO.

        Returns:
            The indices as non-negative numbers.
        """
        take_indices, max_index = feature_take_indices(self.num_blocks, indices)
        self.num_blocks = max_index + 1
        self.num_cross_attends = min(self.num_cross_attends, self.num_blocks)
        self.stages = self.stages[: self.num_blocks]
        self.blocks = self.blocks[: self.num_blocks]
        self.cross_attends = self.cross_attends[: self.num_cross_attends]
        if prune_head:
            self.head_norm = nn.Identity()
            self.reset_classifier(0, '')
        return take_indices

    def _cross_attend(self, i: int, z: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """The cross-attend that block i begins with. (TorchScript cannot index modules by a variable.)"""
        used = min(i, len(self.cross_attends) - 1)
        for j, attend in enumerate(self.cross_attends):
            if j == used:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    z = checkpoint(attend, z, inputs)
                else:
                    z = attend(z, inputs)
        return z

    def _block(self, i: int, z: torch.Tensor) -> torch.Tensor:
        """Self-attends of block i."""
        used = min(i, len(self.blocks) - 1)
        for j, block in enumerate(self.blocks):
            if j == used:
                z = block(z)
        return z

    def _run(
        self, inputs: Inputs, batch: int, take_indices: List[int], stop: int
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Latents after `stop` blocks (B, M, D), and after each of the blocks in `take_indices`."""
        z = self.latents.unsqueeze(0)
        if not torch.jit.is_scripting():
            z = shared(z, batch, self.cross_attends[0])
        intermediates: List[torch.Tensor] = []
        for i, stage in enumerate(self.stages):
            if i < stop:
                if i < self.num_cross_attends:
                    z = self._cross_attend(i, z, inputs)
                z = stage(self._block(i, z))
                if i in take_indices:
                    intermediates.append(z)
        return z, intermediates

    def forward_features(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Inputs to latents (B, M, D); inputs and mask as in `forward`."""
        return self._latents_of(self.stem(x, mask)[0], x.shape[0])

    def _latents_of(self, inputs: Inputs, batch: int) -> torch.Tensor:
        no_intermediates: List[int] = []
        return self._run(inputs, batch, no_intermediates, self.num_blocks)[0]

    def forward_head(self, z: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Latents (B, M, D) to logits (B, num_classes), or to pooled features (B, D) with `pre_logits`."""
        if self.global_pool == 'avg':
            z = self.head_norm(z.mean(dim=1))
        z = self.head_drop(z)
        return z if pre_logits else self.head(z)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Inputs to logits.

        Args:
            x: (B, in_chans, *img_size), for points and tokens (B, N, in_chans).
            mask: Boolean (B, *grid), True where an input takes part. An item without any attends to nothing.

        Returns:
            (B, num_classes).
        """
        return self.forward_head(self.forward_features(x, mask))


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
        query_max_resolution: Of these Fourier features, as `max_resolution`; `img_size` when None.
        decoder_residual: Add the queries to what the decoder gathers.
        decoder_mlp: Give the decoder a feed-forward.
        out_scale: Factor of outputs on a grid.
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
        # `_add_decoder` is called within
        self._decoder_args = (num_queries, query_dim, query_pos_embed, query_max_resolution)
        self._decoder_parts = (decoder_residual, decoder_mlp)
        self.query_type, self.out_scale = query_type, out_scale
        super().__init__(num_cross_attends=num_cross_attends, **kwargs)

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
            resolution = stem.img_size if resolution is None else resolution
            self.query_resolution = checked_resolution(resolution, stem.num_axes)
            num_queries, self.head_hidden_size = 0, stem.num_axes * (2 * stem.num_bands + 1)
        else:
            num_queries = math.prod(stem.img_size)
        if num_queries:
            self.query = nn.Parameter(self.latents.new_zeros(num_queries, self.head_hidden_size))
        if not mlp:
            options['mlp_ratio'] = 0.0
        self.decoder = CrossAttentionBlock(self.head_hidden_size, self.num_features, residual=residual, **options)

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
            q = given_or_learned(queries, self.query)
            if not torch.jit.is_scripting():
                q = shared(q, z.shape[0], self.decoder)
            z = without_single(self.decoder(q, tokens_alone(z)), queries)  # (B, Q, query_dim)
        else:
            _assert(queries is None, 'This model has no decoder, which queries are for.')
            if self.global_pool == 'avg':
                z = z.mean(dim=1)
        z = self.head_drop(z)
        return z if pre_logits else self.head(z)

    def _grid_queries(self, grid: List[int], z: torch.Tensor) -> Inputs:
        """Queries of the positions of a grid, as content and features of each axis or as tokens."""
        axes: List[torch.Tensor] = []
        query = self.query
        if query is not None:
            if grid != self.query_grid:
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
        if not pre_logits and self.out_scale != 1.0:
            out = out * self.out_scale
        shape = grid.copy()
        shape.insert(0, out.shape[2])
        shape.insert(0, out.shape[0])
        return out.transpose(1, 2).reshape(shape)

    @torch.jit.ignore
    def _decode(self, z: torch.Tensor, queries: Inputs, pre_logits: bool) -> torch.Tensor:
        head = [self.head_drop] if pre_logits else [self.head_drop, self.head]
        return decode(self.decoder, queries, z, head, self.grad_checkpointing)

    def forward(
        self, x: torch.Tensor, mask: Optional[torch.Tensor] = None, queries: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Inputs to outputs.

        Args:
            x: (B, in_chans, *img_size), for points and tokens (B, N, in_chans).
            mask: Boolean (B, *grid), True where an input takes part. An item without any attends to nothing.
            queries: (Q, query_dim) or (B, Q, query_dim) to decode by instead of the model's own.

        Returns:
            (B, num_classes); (B, Q, num_classes) with `queries` or several learned ones; (B, num_classes, *img_size)
            with `query_type='grid'`; (B, num_classes, *grid), or (B, num_classes, N) for points and tokens, with
            'inputs'.
        """
        if self.query_type == 'learned' or queries is not None or self.decoder is None:
            return self.forward_head(self.forward_features(x, mask), False, queries)
        inputs, grid = self.stem(x, mask)
        z = self._latents_of(inputs, x.shape[0])
        if self.query_type == 'inputs':
            return self._decode_grid(z, inputs, grid)
        grid = list(x.shape[x.ndim - self.stem.num_axes :])
        return self._decode_grid(z, self._grid_queries(grid, z), grid)


def _init_weights(module: nn.Module, name: str = '', needs_reset: bool = True) -> None:
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if name.startswith('stem'):
            _init_as_haiku(module)
        else:
            lecun_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, 'reset_parameters'):
        module.reset_parameters()


def _init_as_haiku(module: nn.Module) -> None:
    """Haiku's default for linear layers and convolutions, of smaller variance than asked for, as it is truncated."""
    trunc_normal_tf_(module.weight, std=module.weight[0].numel() ** -0.5)


def _create_perceiver(
    model_cls: Type[Perceiver], variant: str, pretrained: bool, model_args: Dict[str, Any], kwargs: Dict[str, Any]
) -> Perceiver:
    kwargs, decodes = arguments_of_folder(model_args, kwargs, issubclass(model_cls, PerceiverIO))
    model_cls = PerceiverIO if decodes else model_cls
    out_indices = kwargs.pop('out_indices', 3)
    saved = isinstance(kwargs.get('pretrained_cfg'), (dict, PretrainedCfg))  # by us: it says itself what it needs
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    hosted = not saved and not {'file', 'state_dict'} & set(overlay)
    kwargs = _with_own_args(model_args, kwargs)
    if pretrained and hosted and kwargs.get('in_chans') == 1 and kwargs.get('stem', 'pixels') == 'pixels':
        kwargs.setdefault('grey_chans', 3)
    build = model_cls
    if len(_sizes(kwargs)) != 2:  # timm knows the sizes of images, as height and width
        build = partial(model_cls, img_size=kwargs.pop('img_size'))
        overlay['fixed_input_size'] = False
    model = build_model(
        build,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_cfg_overlay=overlay,
        feature_cfg=dict(out_indices=out_indices, feature_cls='getter', output_fmt='NLC'),
        **kwargs,
    )
    if kwargs.get('grey_chans'):
        update_model_args(model, grey_chans=kwargs['grey_chans'])  # chosen here: saving would not know
    return model


def _with_own_args(model_args: Dict[str, Any], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of a registered model with the caller's, less those of its own that do not go with the caller's."""
    own = dict(model_args)
    if 'stem' not in kwargs and isinstance(kwargs.get('img_size'), int) and isinstance(own.get('img_size'), tuple):
        kwargs = dict(kwargs, img_size=(kwargs['img_size'],) * len(own['img_size']))  # as in `set_input_size`
    if 'stem' in kwargs and kwargs['stem'] != own.get('stem', 'pixels'):
        own = {k: v for k, v in own.items() if k not in set().union(*STEM_OPTIONS.values())}
    if 'img_size' not in model_args and len(_sizes(dict(own, **kwargs))) != 2:
        own.pop('max_resolution', None)  # is of images: others take the highest frequency from their own size
    return dict(own, **kwargs)


def _sizes(kwargs: Dict[str, Any]) -> Tuple[int, ...]:
    """Number per axis of the inputs that a model with these arguments takes."""
    stem = STEMS.get(kwargs.get('stem', 'pixels'), PixelStem)  # an unknown one is refused by the constructor
    return stem.sizes(kwargs['img_size']) if 'img_size' in kwargs else (0, 0)


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'min_input_size': (3, 64, 64),
        'pool_size': None,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'fixed_input_size': False,
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': (),
        'classifier': 'head',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2103.03206',
        'paper_name': 'Perceiver: General Perception with Iterative Attention',
        'origin_url': 'https://github.com/google-deepmind/deepmind-research/tree/master/perceiver',
        **kwargs,
    }


def _io_cfg(**kwargs: Any) -> Dict[str, Any]:
    return _cfg(
        paper_ids='arXiv:2107.14795',
        paper_name='Perceiver IO: A General Architecture for Structured Inputs & Outputs',
        **kwargs,
    )


# DeepMind puts the parameters under CC BY 4.0, though the cards on the Hub say apache-2.0
_deepmind = partial(_io_cfg, license='cc-by-4.0')
_other = partial(_cfg, mean=(0.0,), std=(1.0,), crop_pct=1.0, min_input_size=None)

default_cfgs = generate_default_cfgs(
    {
        'perceiver_base': _cfg(),
        'perceiver_small': _cfg(),
        'perceiver_io_base.deepmind_in1k': _deepmind(hf_hub_id='deepmind/vision-perceiver-fourier'),
        'perceiver_io_base_learned.deepmind_in1k': _deepmind(
            hf_hub_id='deepmind/vision-perceiver-learned', first_conv='stem.conv', fixed_input_size=True
        ),
        'perceiver_io_base_conv.deepmind_in1k': _deepmind(
            hf_hub_id='deepmind/vision-perceiver-conv', first_conv='stem.conv'
        ),
        'perceiver_io_small': _io_cfg(),
        'perceiver_io_flow.deepmind_autoflow': _deepmind(
            hf_hub_id='deepmind/optical-flow-perceiver',
            input_size=(3, 368, 496),
            num_classes=2,
            crop_pct=1.0,
            mean=IMAGENET_INCEPTION_MEAN,
            std=IMAGENET_INCEPTION_STD,
            first_conv='stem.conv',
        ),
        'perceiver_audio': _other(input_size=(1, 1, 61440), num_classes=527),
        'perceiver_pointcloud': _other(input_size=(1, 2048, 3), num_classes=40),
        'test_perceiver': _cfg(),
        'test_perceiver_io': _io_cfg(),
    }
)


@register_model
def perceiver_base(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """The ImageNet model of the Perceiver paper."""
    return _create_perceiver(Perceiver, 'perceiver_base', pretrained, dict(max_resolution=224), kwargs)


@register_model
def perceiver_small(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """A quarter of the latents' area and half of the blocks, with four cross-attends."""
    model_args = dict(max_resolution=224, num_latents=256, latent_dim=512, num_blocks=4)
    return _create_perceiver(Perceiver, 'perceiver_small', pretrained, model_args, kwargs)


@register_model
def perceiver_io_base(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's ImageNet classifier on pixels with Fourier features."""
    return _create_perceiver(PerceiverIO, 'perceiver_io_base', pretrained, dict(max_resolution=224), kwargs)


@register_model
def perceiver_io_base_learned(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's ImageNet classifier on a 1×1 convolution with learned positions."""
    model_args = dict(
        stem='conv1x1', stem_chs=256, pos_embed='learned', pos_dim=256, pos_proj_dim=256, decoder_residual=False
    )
    return _create_perceiver(PerceiverIO, 'perceiver_io_base_learned', pretrained, model_args, kwargs)


@register_model
def perceiver_io_base_conv(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's ImageNet classifier on a convolution and max-pooling with Fourier features."""
    model_args = dict(stem='conv', stem_chs=64, max_resolution=56)
    return _create_perceiver(PerceiverIO, 'perceiver_io_base_conv', pretrained, model_args, kwargs)


@register_model
def perceiver_io_small(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """A quarter of the latents' area and half of the blocks."""
    model_args = dict(max_resolution=224, num_latents=256, latent_dim=512, num_blocks=4)
    return _create_perceiver(PerceiverIO, 'perceiver_io_small', pretrained, model_args, kwargs)


@register_model
def perceiver_io_flow(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's optical flow: two frames (B, 3, 2, H, W) to the flow of the first (B, 2, H, W) in pixels, x and y.

    Frames are normalised to −1 … 1, by the mean and standard deviation of the configuration. Any size is one pass.
    """
    model_args = dict(
        img_size=(368, 496),
        stem='frames',
        max_resolution=(368, 496),
        num_latents=2048,
        latent_dim=512,
        num_blocks=1,
        block_depth=24,
        num_heads=16,
        query_type='inputs',
        decoder_residual=False,
        out_scale=20 / 100,  # the decoder's `rescale_factor` of 100, and 20 pixels for a flow of 1 in training
    )
    return _create_perceiver(PerceiverIO, 'perceiver_io_flow', pretrained, model_args, kwargs)


@register_model
def perceiver_audio(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """Raw audio as in the paper's AudioSet experiments: 1.28 s at 48 kHz as 480 segments of 128 samples.

    Latents and depth are those of the ImageNet model, with one cross-attend.
    """
    model_args = dict(
        img_size=(61440,), in_chans=1, stem='patches', patch_size=(128,), num_bands=192, num_cross_attends=1
    )
    return _create_perceiver(Perceiver, 'perceiver_audio', pretrained, model_args, kwargs)


@register_model
def perceiver_pointcloud(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """Point clouds as in the paper's ModelNet40 experiments: two cross-attends, frequencies to 1,120."""
    model_args = dict(img_size=2048, in_chans=3, stem='points', max_resolution=2240, num_blocks=2)
    return _create_perceiver(Perceiver, 'perceiver_pointcloud', pretrained, model_args, kwargs)


SMALL = dict(num_bands=8, num_latents=16, latent_dim=64, num_blocks=3, block_depth=2, num_heads=4, max_resolution=224)


@register_model
def test_perceiver(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """A test model."""
    return _create_perceiver(Perceiver, 'test_perceiver', pretrained, SMALL, kwargs)


@register_model
def test_perceiver_io(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """A test model."""
    return _create_perceiver(PerceiverIO, 'test_perceiver_io', pretrained, SMALL, kwargs)
