"""Perceiver: a few latents attend to very many inputs of any kind, again and again.

Paper: `Perceiver: General Perception with Iterative Attention` by Andrew Jaegle et al., https://arxiv.org/abs/2103.03206
"""

from functools import partial
from typing import Any, Dict, Final, List, Optional, Sequence, Set, Tuple, Union

import torch
from timm.layers import _assert, get_device_dtype, lecun_normal_, trunc_normal_, trunc_normal_tf_
from timm.models import named_apply
from torch import nn

from timm_extra._timm import feature_take_indices, update_model_args, update_model_input_size
from timm_extra.layers import checkpoint
from timm_extra.layers.shortcuts import shared

from .._checks import checked_pool
from .._size import input_size, record_input_size
from .blocks import STYLES, CrossAttentionBlock, LatentTransformer, SelfAttentionBlock, Style
from .cross_attention import Inputs
from .positions import Positions
from .stems import build_stem
from .streaming import Streaming


class Perceiver(Streaming, nn.Module):
    """Perceiver: latents that attend to the inputs again and again, and to themselves in between.

    Weights are shared as in the paper: the first cross-attend has its own, all later ones share one set, and so do all
    blocks of self-attends. Each shared set is registered once.

    Args:
        img_size: Size of the inputs: (samples,), (height, width) or (frames, height, width). A single number is a
            square image, for points and tokens their number.
        in_chans: Channels of the inputs; for points the 3 coordinates and further features together.
        num_classes: Classes of the head; 0 for none.
        global_pool: 'avg' (mean of the latents), or '' (all latents); None for the first.
        stem: 'pixels', 'conv1x1', 'conv', 'patches', 'patch_embed', 'frames', 'points' or 'tokens'.
        stem_chs: Channels of the stem's convolution, or of embedded patches.
        patch_size: Inputs per patch along each axis, or along all, for 'patches' and 'patch_embed'.
        num_frames: Frames of an input, for 'frames'; with 1 inputs are images.
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

    __jit_unused_properties__ = ('input_size', 'embeds')

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

    @property
    def embeds(self) -> nn.Module:
        """The stem, where timm's validate.py looks for the `patch_size` of NaFlex models."""
        return self.stem

    @torch.jit.ignore
    def get_patch_size(self) -> Tuple[int, ...]:
        """Height and width of the patches that are tokens, as timm's train.py asks NaFlex models for them.

        Raises:
            ValueError: The model takes no NaFlex batches.
        """
        return self.stem.naflex_patch_size()

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
        sizes = [img_size] * self.stem.num_axes if isinstance(img_size, int) else list(self.stem.sizes(img_size))
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
        z, intermediates = self._run(self.stem(x, mask)[0], take_indices, stop)
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
                if self.grad_checkpointing and not torch.jit.is_scripting() and isinstance(inputs, Inputs):
                    z = checkpoint(attend, z, inputs)  # but for streamed inputs, which would be read once more
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

    def _run(self, inputs: Inputs, take_indices: List[int], stop: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Latents after `stop` blocks (B, M, D), and after each of the blocks in `take_indices`."""
        z = self.latents.unsqueeze(0)
        if not torch.jit.is_scripting():
            z = shared(z, inputs.content.shape[0], self.cross_attends[0])
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
        return self._latents_of(self.stem(x, mask)[0])

    def _latents_of(self, inputs: Inputs) -> torch.Tensor:
        no_intermediates: List[int] = []
        return self._run(inputs, no_intermediates, self.num_blocks)[0]

    def forward_head(self, z: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Latents (B, M, D) to logits (B, num_classes), or to pooled features (B, D) with `pre_logits`."""
        if self.global_pool == 'avg':
            z = self.head_norm(z.mean(dim=1))
        z = self.head_drop(z)
        return z if pre_logits else self.head(z)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Inputs to logits.

        Args:
            x: (B, in_chans, *img_size), for points and tokens (B, N, in_chans). Images of different sizes come as a
                NaFlex batch, a dictionary as timm's loader makes it, to the stems 'pixels', 'patches' and 'patch_embed'
                with Fourier features.
            mask: Boolean (B, *grid), True where an input takes part. An item without any attends to nothing.

        Returns:
            (B, num_classes).
        """
        return self.forward_head(self.forward_features(x, mask))


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
