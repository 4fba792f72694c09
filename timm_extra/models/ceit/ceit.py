"""CeiT: Convolution-enhanced image Transformer.

Paper: `Incorporating Convolution Designs into Visual Transformers` by Kun Yuan, Shaopeng Guo, Ziwei Liu, Aojun Zhou,
Fengwei Yu and Wei Wu, https://arxiv.org/abs/2103.11816

Official code: https://github.com/coeusguo/ceit (Apache-2.0), whose behaviour and weights these models match. The
variant in https://github.com/rishikksh20/CeiT-pytorch (MIT) is `ceit_tiny_article`.
"""

from functools import partial
from typing import Any, Dict, List, Optional, Set, Tuple, Union

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    PatchEmbed,
    _assert,
    calculate_drop_path_rates,
    get_act_layer,
    get_device_dtype,
    get_norm_layer,
    global_pool_nlc,
    resample_abs_pos_embed,
    trunc_normal_,
)
from timm.models import generate_default_cfgs, named_apply, register_model, register_model_deprecations
from timm.utils import reparameterize_model
from torch import nn

from timm_extra._timm import feature_take_indices, update_model_args, update_model_input_size
from timm_extra.layers import Attention, checkpoint
from timm_extra.layers.shortcuts import may_shortcut

from .._build import build_model
from .._checks import checked_pool, checked_size
from .._size import record_input_size
from .checkpoint_filter import checkpoint_filter_fn
from .image2tokens import Image2Tokens
from .lca import LayerwiseClassAttention
from .leff import LeFF

__all__ = ['CeiT']


LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)  # the official code's epsilon
POOLS = ('', 'token', 'avg')


class Block(nn.Module):
    """Transformer block whose feed-forward is LeFF on the patch tokens.

    The class token does not enter LeFF. In the official code its branch ends after the norm, so that
    `cls += norm2(cls)`; with `cls_bypass` (the article's code) it is left as it is.

    Source: arXiv:2103.11816 section 3.2; `ceit_model.py` of coeusguo/ceit at 44c16d3.

    Args:
        dim: Channels C of the tokens.
        num_heads: Attention heads.
        head_dim: Channels per head; `dim // num_heads` when None.
        mlp_ratio: Hidden channels of LeFF over `dim`.
        qkv_bias: Give the qkv projection a bias.
        leff_kernel_size: Side of LeFF's depthwise kernel in tokens, odd.
        leff_bn: BatchNorms in LeFF.
        leff_out_act: Activation after LeFF's last BatchNorm.
        cls_bypass: Leave the class token out of the second half.
        proj_drop: Dropout rate after the output projection.
        attn_drop: Dropout rate on the attention weights.
        drop_path: Stochastic depth rate of both halves.
        act_layer: Activation class.
        norm_layer: Normalisation class.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: Optional[int] = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        leff_kernel_size: int = 3,
        leff_bn: bool = True,
        leff_out_act: bool = False,
        cls_bypass: bool = False,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer=nn.GELU,
        norm_layer=nn.LayerNorm,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.cls_bypass = cls_bypass
        self.norm1 = norm_layer(dim, **dd)
        self.attn = Attention(dim, num_heads, head_dim, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.leff = LeFF(dim, int(dim * mlp_ratio), leff_kernel_size, leff_bn, leff_out_act, act_layer, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor, grid: Tuple[int, int], cls_only: bool = False) -> torch.Tensor:
        """Transform tokens.

        Args:
            x: Class token and patch tokens (B, 1 + H·W, C).
            grid: (H, W).
            cls_only: Compute the class token alone.

        Returns:
            (B, 1 + H·W, C), or (B, 1, C) with `cls_only`.
        """
        if cls_only:
            x = x[:, :1] + self.drop_path(self.attn(self.norm1(x), query=0))
            return x if self.cls_bypass else x + self.drop_path(self.norm2(x))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        if self.cls_bypass:
            patches = x[:, 1:]
            return torch.cat([x[:, :1], patches + self.drop_path(self.leff(self.norm2(patches), grid))], dim=1)
        y = self.norm2(x)
        return x + self.drop_path(torch.cat([y[:, :1], self.leff(y[:, 1:], grid)], dim=1))


class CeiT(nn.Module):
    """Convolution-enhanced image Transformer.

    Args:
        img_size: Image height and width in pixels, multiples of `patch_size`.
        patch_size: Pixels per token side, a multiple of 4.
        in_chans: Image channels.
        num_classes: Classes of the head; 0 for none.
        global_pool: 'token' (the class token after layer-wise attention), 'avg' (patch tokens), or '' (no pooling).
        embed_dim: Channels C of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        head_dim: Channels per head; `embed_dim // num_heads` when None.
        mlp_ratio: Hidden channels of LeFF over `embed_dim`.
        qkv_bias: Give the qkv projections a bias.
        conv_stem: Image-to-tokens stem; plain patches when False.
        stem_chs: Channels of the stem's convolution.
        stem_padding: Padding of the stem's convolution and pooling.
        stem_bias: Give the stem's convolution a bias.
        leff_kernel_size: Side of LeFF's depthwise kernel in tokens, odd.
        leff_bn: BatchNorms in LeFF.
        leff_out_act: Activation after LeFF's last BatchNorm.
        cls_bypass: Leave the class token alone in the second half of a block, instead of adding its norm to it.
        use_lca: Layer-wise class-token attention; the last block's class token when False.
        lca_num_heads: Heads of that attention; `num_heads` when None.
        lca_head_dim: Channels per head there; `head_dim` when None.
        lca_mlp_ratio: Hidden channels of its feed-forward over `embed_dim`; `mlp_ratio` when None.
        lca_proj_drop_rate: Dropout rate of its projections; `proj_drop_rate` when None.
        pool_include_prefix: Count the class token in 'avg' pooling.
        fc_norm: Normalise after pooling instead of before; `forward_features` is then not normed.
        dynamic_img_size: Accept any multiple of `patch_size` and resample position embeddings to it.
        drop_rate: Dropout rate before the classifier.
        pos_drop_rate: Dropout rate after the position embedding.
        proj_drop_rate: Dropout rate of attention's output projection and of the class-token feed-forward.
        attn_drop_rate: Dropout rate of attention weights.
        drop_path_rate: Stochastic depth rate of the last block, rising linearly from 0.
        norm_layer: Normalisation, by class or by timm's name.
        act_layer: Activation, by class or by timm's name.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: An argument is out of range; the message names its value.
    """

    dynamic_img_size: torch.jit.Final[bool]

    def __init__(
        self,
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'token',
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        head_dim: Optional[int] = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        conv_stem: bool = True,
        stem_chs: int = 64,
        stem_padding: Tuple[int, int] = (3, 1),
        stem_bias: bool = False,
        leff_kernel_size: int = 3,
        leff_bn: bool = True,
        leff_out_act: bool = False,
        cls_bypass: bool = False,
        use_lca: bool = True,
        lca_num_heads: Optional[int] = None,
        lca_head_dim: Optional[int] = None,
        lca_mlp_ratio: Optional[float] = None,
        lca_proj_drop_rate: Optional[float] = None,
        pool_include_prefix: bool = False,
        fc_norm: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer=LAYER_NORM,
        act_layer=nn.GELU,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if depth < 1:
            raise ValueError(f'depth must be at least 1, got {depth}')
        img_size = checked_size(img_size, patch_size)
        norm_layer = get_norm_layer(norm_layer)
        act_layer = get_act_layer(act_layer)
        shared = dict(qkv_bias=qkv_bias, attn_drop=attn_drop_rate, act_layer=act_layer, norm_layer=norm_layer, **dd)

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = checked_pool(global_pool, POOLS)
        self.pool_include_prefix = pool_include_prefix
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        embed_args = dict(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **dd)
        if conv_stem:
            self.patch_embed = Image2Tokens(
                stem_chs=stem_chs,
                stem_padding=stem_padding,
                stem_bias=stem_bias,
                strict_img_size=not dynamic_img_size,
                **embed_args,
            )
        else:
            self.patch_embed = PatchEmbed(output_fmt='NCHW', strict_img_size=not dynamic_img_size, **embed_args)
            self._traits = dict(first_conv='patch_embed.proj')

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, embed_dim, **dd))
        self.pos_drop = nn.Dropout(p=pos_drop_rate)

        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                head_dim,
                mlp_ratio,
                leff_kernel_size=leff_kernel_size,
                leff_bn=leff_bn,
                leff_out_act=leff_out_act,
                cls_bypass=cls_bypass,
                proj_drop=proj_drop_rate,
                drop_path=rate,
                **shared,
            )
            for rate in calculate_drop_path_rates(drop_path_rate, depth)
        )
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [dict(num_chs=embed_dim, reduction=reduction, module=f'blocks.{i}') for i in range(depth)]
        self.lca = None
        if use_lca:
            self.lca = LayerwiseClassAttention(
                embed_dim,
                depth,
                num_heads if lca_num_heads is None else lca_num_heads,
                head_dim if lca_head_dim is None else lca_head_dim,
                mlp_ratio if lca_mlp_ratio is None else lca_mlp_ratio,
                proj_drop=proj_drop_rate if lca_proj_drop_rate is None else lca_proj_drop_rate,
                **shared,
            )

        self.norm = nn.Identity() if fc_norm else norm_layer(embed_dim, **dd)
        self.fc_norm = norm_layer(embed_dim, **dd) if fc_norm else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()

        if self.pos_embed.device.type != 'meta':
            self.init_weights(needs_reset=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters and buffers as the official code does.

        Args:
            needs_reset: Reset layers that initialise themselves on construction too; needed after `to_empty()`.
        """
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        if self.lca is not None:
            nn.init.zeros_(self.lca.layer_embed)
        named_apply(partial(_init_weights, needs_reset=needs_reset), self)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters that are not decayed."""
        return {'pos_embed', 'cls_token'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Groups of parameters for layer-wise learning rates; LCA belongs to the last block."""
        return dict(
            stem=r'^cls_token|pos_embed|patch_embed',
            blocks=[(r'^blocks\.(\d+)', None), (r'^lca|^norm', (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

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
            ValueError: `global_pool` is not one of '', 'token' and 'avg'.
        """
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = checked_pool(global_pool, POOLS)
            update_model_args(self, fc_norm=not isinstance(self.fc_norm, nn.Identity))
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    def set_input_size(self, img_size: Optional[Union[int, Tuple[int, int]]] = None) -> None:
        """Change the image size, resampling the position embedding.

        Args:
            img_size: New height and width in pixels, multiples of the patch size; unchanged when None.

        Raises:
            ValueError: The size is not a positive multiple of the patch size.
        """
        if img_size is None:
            return
        previous = self.patch_embed.grid_size
        self.patch_embed.set_input_size(checked_size(img_size, self.patch_embed.feat_ratio()))
        if self.patch_embed.grid_size != previous:
            resized = resample_abs_pos_embed(
                self.pos_embed.detach(), self.patch_embed.grid_size, previous, num_prefix_tokens=1
            )
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.patch_embed.img_size)
        record_input_size(self)

    def fuse(self) -> nn.Module:
        """Fold every BatchNorm's running statistics into the layer before it, for inference.

        The same as `timm.utils.reparameterize_model`, on this model and no copy. It may be in training mode: what comes
        out computes what evaluation mode did.

        Returns:
            This model. Its state dict has other keys than before: save it first.

        Raises:
            ValueError: A BatchNorm has no running statistics.
        """
        return reparameterize_model(self, inplace=True)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Run the model and collect patch tokens after blocks.

        A classifier that reads the class token gives no gradient to the last block's LeFF: for dense features of such
        a model prefer the block before it.

        Args:
            x: Images (B, in_chans, height, width).
            indices: The last n blocks if an int, all if None, else these blocks.
            return_prefix_tokens: Return (patch tokens, class token) pairs.
            norm: Apply the final norm to the intermediates.
            stop_early: With `intermediates_only`, do not run blocks after the last requested one.
            output_fmt: 'NCHW' (B, C, H, W) or 'NLC' (B, H·W, C).
            intermediates_only: Return the intermediates alone.

        Returns:
            The intermediates, or what `forward_features` returns and the intermediates.
        """
        _assert(output_fmt in ('NCHW', 'NLC'), 'Output format must be one of NCHW or NLC.')
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        intermediates: List[torch.Tensor] = []
        cls_tokens: List[torch.Tensor] = []

        x, grid = self._embed(x)
        if torch.jit.is_scripting() or not (stop_early and intermediates_only):  # torchscript cannot slice modules
            blocks = self.blocks
        else:
            blocks = self.blocks[: max_index + 1]
        for i, blk in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(blk, x, grid)
            else:
                x = blk(x, grid)
            cls_tokens.append(x[:, :1])
            if i in take_indices:
                intermediates.append(self.norm(x) if norm else x)

        prefixes = [y[:, :1] for y in intermediates]
        intermediates = [y[:, 1:] for y in intermediates]
        if output_fmt == 'NCHW':
            B, (H, W) = x.shape[0], grid
            intermediates = [y.reshape(B, H, W, -1).permute(0, 3, 1, 2).contiguous() for y in intermediates]
        if not torch.jit.is_scripting() and return_prefix_tokens:
            intermediates = list(zip(intermediates, prefixes, strict=True))

        if intermediates_only:
            return intermediates
        return self._finish(x, cls_tokens), intermediates

    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Remove what the given intermediates do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Remove the final norm.
            prune_head: Remove layer-wise class-token attention, pooling and classifier.

        Returns:
            The indices as non-negative numbers.
        """
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.lca = None
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, '')
        elif self.lca is not None:
            embed = self.lca.layer_embed
            self.lca.layer_embed = nn.Parameter(embed.detach()[:, : max_index + 1].clone(), embed.requires_grad)
        return take_indices

    def _embed(self, x: torch.Tensor) -> Tuple[torch.Tensor, Tuple[int, int]]:
        """Images to tokens with class token and positions (B, 1 + H·W, C), and their grid (H, W)."""
        x = self.patch_embed(x)
        B, _, H, W = x.shape
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(pos_embed, [H, W], self.patch_embed.grid_size, num_prefix_tokens=1)
        x = torch.cat([self.cls_token.expand(B, -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        return self.pos_drop(x + pos_embed), (H, W)

    def _run_blocks(
        self, x: torch.Tensor, grid: Tuple[int, int], cls_only: bool
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Run all blocks on tokens (B, 1 + H·W, C).

        Args:
            x: Tokens.
            grid: (H, W).
            cls_only: Leave out the last block's work on patch tokens.

        Returns:
            The tokens after the last block, the class token alone with `cls_only`, and every block's class token.
        """
        cls_tokens: List[torch.Tensor] = []
        for i, blk in enumerate(self.blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(blk, x, grid)
            else:
                x = blk(x, grid, cls_only and i == len(self.blocks) - 1)
            cls_tokens.append(x[:, :1])
        return x, cls_tokens

    def _finish(self, x: torch.Tensor, cls_tokens: List[torch.Tensor]) -> torch.Tensor:
        """Put the layer-wise class token in place of the last block's, and normalise.

        Args:
            x: Tokens after the last block (B, 1 + N, C), N may be 0.
            cls_tokens: Class token of every block, (B, 1, C) each.
        """
        if self.lca is not None:
            x = torch.cat([self.lca(torch.cat(cls_tokens, dim=1)), x[:, 1:]], dim=1)
        return self.norm(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, height, width) to normed tokens (B, 1 + N, C), the layer-wise class token first."""
        x, grid = self._embed(x)
        x, cls_tokens = self._run_blocks(x, grid, cls_only=False)
        return self._finish(x, cls_tokens)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens (B, 1 + N, C) to logits (B, num_classes), or to pooled features (B, C) with `pre_logits`."""
        x = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens, self.pool_include_prefix)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, height, width) to logits (B, num_classes).

        In evaluation mode without gradients, a classifier that reads the class token spares the last block its work on
        patch tokens, unless it or the final norm is watched (`may_shortcut`).
        """
        cls_only = self.global_pool == 'token' and not self.training and not torch.is_grad_enabled()
        if not torch.jit.is_scripting():
            # a trace is checked and used with and without gradients: it must not depend on them
            traced = torch.jit.is_tracing() or isinstance(x, torch.fx.Proxy)
            cls_only = cls_only and not traced and may_shortcut(self.blocks[-1], self.norm, operators=False)
        x, grid = self._embed(x)
        x, cls_tokens = self._run_blocks(x, grid, cls_only)
        return self.forward_head(self._finish(x, cls_tokens))


def _init_weights(module: nn.Module, name: str = '', needs_reset: bool = True) -> None:
    if isinstance(module, nn.Linear) and '.leff.' not in name:  # there they are convolutions, as PyTorch draws them
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, 'reset_parameters'):
        module.reset_parameters()


def _create_ceit(variant: str, pretrained: bool = False, **kwargs: Any) -> CeiT:
    out_indices = kwargs.pop('out_indices', 3)
    return build_model(
        CeiT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls='getter'),
        **kwargs,
    )


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': None,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'fixed_input_size': True,
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'patch_embed.conv',
        'classifier': 'head',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2103.11816',
        'paper_name': 'Incorporating Convolution Designs into Visual Transformers',
        'origin_url': 'https://github.com/coeusguo/ceit',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'ceit_tiny': _cfg(),
        'ceit_small': _cfg(),
        'ceit_base': _cfg(),
        'ceit_tiny_384': _cfg(input_size=(3, 384, 384)),
        'ceit_small_384': _cfg(input_size=(3, 384, 384)),
        'ceit_tiny_article': _cfg(license='mit', origin_url='https://github.com/rishikksh20/CeiT-pytorch'),
        'test_ceit': _cfg(input_size=(3, 160, 160), crop_pct=0.95),
    }
)


@register_model
def ceit_tiny(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-T at 224×224."""
    model_args = dict(embed_dim=192, depth=12, num_heads=3)
    return _create_ceit('ceit_tiny', pretrained, **dict(model_args, **kwargs))


@register_model
def ceit_small(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-S at 224×224."""
    model_args = dict(embed_dim=384, depth=12, num_heads=6)
    return _create_ceit('ceit_small', pretrained, **dict(model_args, **kwargs))


@register_model
def ceit_base(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-B at 224×224, in the official code but not in the paper."""
    model_args = dict(embed_dim=768, depth=12, num_heads=12)
    return _create_ceit('ceit_base', pretrained, **dict(model_args, **kwargs))


@register_model
def ceit_tiny_384(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-T at 384×384."""
    model_args = dict(img_size=384, embed_dim=192, depth=12, num_heads=3)
    return _create_ceit('ceit_tiny_384', pretrained, **dict(model_args, **kwargs))


@register_model
def ceit_small_384(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-S at 384×384."""
    model_args = dict(img_size=384, embed_dim=384, depth=12, num_heads=6)
    return _create_ceit('ceit_small_384', pretrained, **dict(model_args, **kwargs))


@register_model
def ceit_tiny_article(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-T as in rishikksh20/CeiT-pytorch at d41cb23, with LCA.

    Its `pool='mean'` is `global_pool='avg'` here, the mean of all tokens and then the norm; its `dropout` is
    `proj_drop_rate`, its `emb_dropout` is `pos_drop_rate`.
    """
    model_args = dict(
        embed_dim=192,
        depth=12,
        num_heads=3,
        head_dim=64,
        qkv_bias=False,
        stem_chs=32,
        stem_padding=(4, 0),
        stem_bias=True,
        leff_out_act=True,
        cls_bypass=True,
        lca_num_heads=4,
        lca_head_dim=48,
        lca_mlp_ratio=2.0,
        lca_proj_drop_rate=0.0,
        pool_include_prefix=True,
        fc_norm=kwargs.get('global_pool') == 'avg',
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    return _create_ceit('ceit_tiny_article', pretrained, **dict(model_args, **kwargs))


@register_model
def test_ceit(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """A test model."""
    model_args = dict(img_size=160, embed_dim=64, depth=6, num_heads=2, mlp_ratio=3.0, stem_chs=32)
    return _create_ceit('test_ceit', pretrained, **dict(model_args, **kwargs))


register_model_deprecations(
    __name__,
    {
        'ceit_tiny_patch16_224': 'ceit_tiny',
        'ceit_small_patch16_224': 'ceit_small',
        'ceit_base_patch16_224': 'ceit_base',
        'ceit_tiny_patch16_384': 'ceit_tiny_384',
        'ceit_small_patch16_384': 'ceit_small_384',
    },
)
