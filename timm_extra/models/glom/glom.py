"""GLOM: part-whole hierarchies as columns of levels that agree with their neighbours.

Paper: `How to represent part-whole hierarchies in a neural network` by Geoffrey Hinton,
https://arxiv.org/abs/2102.12627

There is no official code. `compat='lucidrains'` computes what https://github.com/lucidrains/glom-pytorch (MIT) at
0.0.14 does. The default adds what makes the same network trainable: states that keep their length.
"""

from functools import partial
from typing import Any, Dict, Final, List, Optional, Set, Tuple, Union

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    Mlp,
    PatchEmbed,
    _assert,
    get_act_layer,
    get_device_dtype,
    global_pool_nlc,
    resample_abs_pos_embed,
    trunc_normal_,
)
from timm.models import generate_default_cfgs, named_apply, register_model
from torch import nn

from timm_extra._timm import feature_take_indices, update_model_input_size
from timm_extra.layers import checkpoint
from timm_extra.layers.shortcuts import may_shortcut

from .._build import build_model
from .._checks import checked_pool, checked_size
from .._size import record_input_size
from .checkpoint_filter import checkpoint_filter_fn
from .consensus import far_column_mask, self_column_mask
from .level import NORM_EPS, Constant, Level

__all__ = ['GLOM']

POOLS = ('', 'avg', 'avgmax', 'max')
GELU_GAIN = 0.4252**-0.5  # 1 over the root mean square of GELU(z), z normal
OUTPUT = {'patch_up': 2.0, 'bottom_up': 2.0, 'top_down': 0.5}  # over the length of what goes in, to begin with


class GLOM(nn.Module):
    """Columns, one per patch, of levels that settle over iterations.

    A level sees the image once the bottom-up nets below it have run in turn, and what it hands down reaches a level k
    below after k iterations. States before and after that are not computed where they cannot matter: until level l has
    seen the image, after l + 1 iterations, it is the same for all images of a batch and computed once; in the last
    iterations the levels that can no longer reach a requested one are left out. Where the levels are watched
    (`may_shortcut`) images share no states, and without gradients all levels run in all iterations; with gradients
    those left out would get none. Where something is sampled at random (dropout, drop path) images share no states
    either.

    Args:
        img_size: Image height and width in pixels, multiples of `patch_size`.
        patch_size: Pixels per column side.
        in_chans: Image channels.
        num_classes: Classes of the head; 0 for none.
        global_pool: 'avg', 'max', 'avgmax' over the columns, or '' (no pooling).
        embed_dim: Features D of a state.
        num_levels: Levels L.
        iters: Iterations; twice `num_levels` when None.
        mlp_ratio: Hidden features of bottom-up and top-down nets over `embed_dim`.
        consensus_self: Columns attend to themselves, too; their score is a small constant otherwise.
        local_consensus_radius: Columns further apart than this, in columns, do not attend to each other; no limit if 0.
        learned_mean: Learn the weights of the contributions to a state; they are equal otherwise.
        concat_levels: Classify by all levels instead of the top one.
        compat: None, or 'lucidrains' for what glom-pytorch computes: states are not normalised (and vanish over the
            iterations), the inverse temperature of consensus is 1.
        dynamic_img_size: Accept any multiple of `patch_size` and resample positions to it.
        drop_rate: Dropout rate before the classifier.
        proj_drop_rate: Dropout rate within and after bottom-up and top-down nets.
        attn_drop_rate: Dropout rate on consensus weights.
        drop_path_rate: Stochastic depth rate of bottom-up and top-down nets.
        act_layer: Activation, by class or by timm's name.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: An argument is out of range; the message names its value.
    """

    dynamic_img_size: torch.jit.Final[bool]
    concat_levels: torch.jit.Final[bool]

    norm_eps: Final[float] = NORM_EPS

    def __init__(
        self,
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 14,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dim: int = 512,
        num_levels: int = 6,
        iters: Optional[int] = None,
        mlp_ratio: float = 4.0,
        consensus_self: bool = False,
        local_consensus_radius: float = 0,
        learned_mean: bool = False,
        concat_levels: bool = False,
        compat: Optional[str] = None,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer=nn.GELU,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': 'meta', 'dtype': dtype}  # layers initialise nothing: `init_weights` would do it again
        if compat not in (None, 'lucidrains'):
            raise ValueError(f"compat must be None or 'lucidrains', got {compat!r}")
        if not isinstance(num_levels, int) or num_levels < 2:
            raise ValueError(f'num_levels must be a whole number of at least 2, got {num_levels}')
        if not local_consensus_radius >= 0:  # NaN neither
            raise ValueError(f'local_consensus_radius must not be negative, got {local_consensus_radius}')
        img_size = checked_size(img_size, patch_size)

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = checked_pool(global_pool, POOLS)
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        self.num_features = self.head_hidden_size = embed_dim * (num_levels if concat_levels else 1)
        self.num_prefix_tokens = 0
        self.consensus_self = consensus_self
        self.local_consensus_radius = local_consensus_radius
        self.concat_levels = concat_levels
        self.compat = compat
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False
        self.random = max(proj_drop_rate, attn_drop_rate, drop_path_rate) > 0.0
        self.iters = 2 * num_levels if iters is None else iters
        self._check_reach(num_levels - 1, self.iters)

        self.patch_embed = PatchEmbed(
            img_size, patch_size, in_chans, embed_dim, strict_img_size=not dynamic_img_size, **dd
        )
        hidden = int(embed_dim * mlp_ratio)
        self.patch_up = Mlp(embed_dim, hidden, act_layer=get_act_layer(act_layer), drop=proj_drop_rate, **dd)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim, **dd))
        self.init_levels = nn.Parameter(torch.zeros(num_levels, embed_dim, **dd))
        self.levels = nn.ModuleList(
            Level(
                embed_dim,
                mlp_ratio,
                bottom=i == 0,
                top=i == num_levels - 1,
                normalize=compat is None,
                learned_mean=learned_mean,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                drop_path=drop_path_rate,
                act_layer=get_act_layer(act_layer),
                **dd,
            )
            for i in range(num_levels)
        )
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=patch_size, module=f'levels.{i}') for i in range(num_levels)
        ]
        self.norm = nn.Identity()  # its output are the final tokens, for hooks: states are normalised already
        self.fc_norm = nn.LayerNorm(self.num_features, eps=NORM_EPS, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

        device = torch.empty(0, device=device).device  # of the context when None
        if device.type != 'meta':
            self.to_empty(device=device)
            self.init_weights()

    def _check_reach(self, level: int, iters: int) -> None:
        """Refuse a number of iterations after which a level has not seen the image yet."""
        if not isinstance(iters, int) or iters < 1:
            raise ValueError(f'iters must be a whole number of at least 1, got {iters}')
        if iters <= level:
            raise ValueError(f'after iters {iters} level {level} has not seen the image: {level + 1} are needed')

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters: states and positions as glom-pytorch does; its nets too with its `compat`.

        Else what bottom-up nets give is twice as long as what they get, and what top-down nets give half as long, so
        that an image reaches the top: in a new `glom_base` images of noise differ there by a seventh of a state's
        length; with equal lengths they would by a five-hundredth.

        Args:
            needs_reset: Reset layers that initialise themselves on construction too; needed after `to_empty()`.
        """
        nn.init.normal_(self.pos_embed)
        nn.init.normal_(self.init_levels)
        named_apply(partial(_init_weights, needs_reset=needs_reset, plain=self.compat is not None), self)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters that are not decayed."""
        return {'pos_embed', 'init_levels'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Groups of parameters for layer-wise learning rates."""
        return dict(
            stem=r'^patch_embed|^patch_up|^pos_embed|^init_levels',
            blocks=[(r'^levels\.(\d+)', None), (r'^fc_norm', (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep nothing but patches and the states of every iteration for the backward pass."""
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
            ValueError: `global_pool` is none of those it can be.
        """
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = checked_pool(global_pool, POOLS)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    def set_input_size(self, img_size: Optional[Union[int, Tuple[int, int]]] = None) -> None:
        """Change the image size, resampling the positions.

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
                self.pos_embed.detach(), self.patch_embed.grid_size, previous, num_prefix_tokens=0
            )
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.patch_embed.img_size)
        record_input_size(self)

    def forward_state(
        self,
        x: torch.Tensor,
        state: Optional[torch.Tensor] = None,
        iters: Optional[int] = None,
        return_all: bool = False,
    ) -> torch.Tensor:
        """The state of all levels of all columns after some iterations.

        Args:
            x: Images (B, in_chans, height, width).
            state: State (B, N, L, D) to go on from, as of the video's previous frame; the learned first one when None.
            iters: Iterations; the model's own number when None.
            return_all: Return the states before and after every iteration.

        Returns:
            (B, N, L, D), or (iters + 1, B, N, L, D) with `return_all`.

        Raises:
            ValueError: `state` has another shape, or `iters` is not positive.
        """
        iters = self.iters if iters is None else iters
        self._check_reach(0, iters)
        levels, constant = self._begin(x, state)
        history: List[torch.Tensor] = []
        for i in range(iters + 1):
            if i > 0:
                levels = self._iterate(levels, constant, 0, self.num_levels - 1)
            if return_all or i == iters:
                history.append(torch.stack([level.expand_as(constant.patch_input) for level in levels], dim=2))
        return torch.stack(history) if return_all else history[0]

    def forward_level(self, x: torch.Tensor, level: int = -1, iters: Optional[int] = None) -> torch.Tensor:
        """The state of one level after some iterations, without computing what it does not depend on.

        Args:
            x: Images (B, in_chans, height, width).
            level: Which; negative ones count from the top.
            iters: Iterations; the model's own number when None.

        Returns:
            (B, N, D).

        Raises:
            ValueError: There is no such level, or `iters` are so few that it has not seen the image.
        """
        if not -self.num_levels <= level < self.num_levels:
            raise ValueError(f'levels are 0 to {self.num_levels - 1}, got {level}')
        level = level % self.num_levels
        iters = self.iters if iters is None else iters
        self._check_reach(level, iters)
        return self._levels(x, iters, level, level)[level]

    def _begin(self, x: torch.Tensor, state: Optional[torch.Tensor]) -> Tuple[List[torch.Tensor], Constant]:
        """The levels before the first iteration, each (B, N, D) or (1, N, D), and what all iterations share."""
        grid = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        tokens = self.patch_embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            patch_input = checkpoint(self.patch_up, tokens)
        else:
            patch_input = self.patch_up(tokens)
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(pos_embed, grid, self.patch_embed.grid_size, num_prefix_tokens=0)
        if state is None:
            first = self.init_levels
            if self.compat is None:  # as the norm of a level does, whose calls are of states
                first = F.layer_norm(first, [first.shape[1]], eps=self.norm_eps)
            first = first.unsqueeze(1).unsqueeze(1).expand(-1, -1, pos_embed.shape[1], -1)  # (L, 1, N, D)
            if self._each_item_alone():
                first = first.expand(-1, patch_input.shape[0], -1, -1)
            levels = [first[i] for i in range(self.num_levels)]
        else:
            expected = [patch_input.shape[0], patch_input.shape[1], self.num_levels, patch_input.shape[2]]
            if list(state.shape) != expected:
                raise ValueError(f'state must have shape {expected}, got {list(state.shape)}')
            state = state.to(self.init_levels.dtype)
            levels = [state[:, :, i] for i in range(self.num_levels)]
        self_mask: Optional[torch.Tensor] = None
        far_mask: Optional[torch.Tensor] = None
        if not self.consensus_self:
            self_mask = self_column_mask(patch_input)
        if self.local_consensus_radius > 0:
            far_mask = far_column_mask([grid[0], grid[1]], float(self.local_consensus_radius), patch_input.device)
        return levels, Constant(patch_input, pos_embed, self_mask, far_mask)

    def _each_item_alone(self) -> bool:
        """Whether even states that are the same for all images are to be computed for each."""
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript compiles only what such an `if` alone guards
            if not may_shortcut(self.levels, operators=False):
                return True
        return self.random and (self.training or self.levels[0].consensus.attn_drop.training)  # samples differ

    def _iterate(
        self,
        levels: List[torch.Tensor],
        constant: Constant,
        first: int,
        last: int,
    ) -> List[torch.Tensor]:
        """One iteration of the levels from `first` to `last`; the others stay as they are."""
        after: List[torch.Tensor] = []
        for i, level in enumerate(self.levels):
            if first <= i <= last:
                below = levels[i - 1] if i > 0 else constant.patch_input
                above: Optional[torch.Tensor] = None
                if i + 1 < self.num_levels:
                    above = levels[i + 1]
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    after.append(checkpoint(level, levels[i], below, above, constant))
                else:
                    after.append(level(levels[i], below, above, constant))
            else:
                after.append(levels[i])
        return after

    def _levels(self, x: torch.Tensor, iters: int, first: int, last: int) -> List[torch.Tensor]:
        """Levels after some iterations, (B, N, D) each; only those from `first` to `last` are what they should be."""
        if not torch.jit.is_scripting():
            self._check_reach(last, iters)
        levels, constant = self._begin(x, None)
        if not torch.jit.is_scripting():  # noqa: SIM102, as above
            if not (torch.is_grad_enabled() or may_shortcut(self.levels, operators=False)):
                first, last = 0, self.num_levels - 1
        for i in range(iters):
            left = iters - 1 - i  # iterations after this one: a state moves one level a time
            reach = max(first - left, 0), min(last + left, self.num_levels - 1)
            levels = self._iterate(levels, constant, reach[0], reach[1])
        return levels

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Run the model and collect levels after the last iteration.

        Args:
            x: Images (B, in_chans, height, width).
            indices: The top n levels if an int, all if None, else these levels.
            norm: Without effect: there is no final norm.
            stop_early: Without effect: with `intermediates_only` nothing is computed that those do not need.
            output_fmt: 'NCHW' (B, D, H, W) or 'NLC' (B, N, D).
            intermediates_only: Return the intermediates alone.

        Returns:
            The intermediates, or what `forward_features` returns and the intermediates.
        """
        _assert(output_fmt in ('NCHW', 'NLC'), 'Output format must be one of NCHW or NLC.')
        take_indices, max_index = feature_take_indices(self.num_levels, indices)
        first, last = min(take_indices), max_index
        if not intermediates_only:
            first, last = 0 if self.concat_levels else first, self.num_levels - 1
        levels = self._levels(x, self.iters, first, last)
        intermediates = [level for i, level in enumerate(levels) if i in take_indices]
        if output_fmt == 'NCHW':
            H, W = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
            intermediates = [y.transpose(1, 2).reshape(y.shape[0], -1, H, W) for y in intermediates]
        if intermediates_only:
            return intermediates
        return self._features(levels), intermediates

    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Remove what the given intermediates do not need: all levels shape each other, only the head can go.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Without effect: there is no final norm.
            prune_head: Remove pooling and classifier.

        Returns:
            The indices as non-negative numbers.
        """
        take_indices, _ = feature_take_indices(self.num_levels, indices)
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, '')
        return take_indices

    def _features(self, levels: List[torch.Tensor]) -> torch.Tensor:
        """Final tokens (B, N, C)."""
        return self.norm(torch.cat(levels, dim=-1) if self.concat_levels else levels[-1])

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, height, width) to the top level (B, N, D), or all levels (B, N, L·D)."""
        first = 0 if self.concat_levels else self.num_levels - 1
        return self._features(self._levels(x, self.iters, first, self.num_levels - 1))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features (B, N, C) to logits (B, num_classes), or to pooled features (B, C) with `pre_logits`."""
        x = global_pool_nlc(x, self.global_pool, num_prefix_tokens=0)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, height, width) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module, name: str = '', needs_reset: bool = True, plain: bool = False) -> None:
    if name == 'head' and isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Linear, nn.Conv2d)) and not plain:
        gain = 1.0
        for net, output in OUTPUT.items():
            if name.endswith(f'{net}.fc2'):
                gain = output * GELU_GAIN
        bound = gain * (3 / module.weight[0].numel()) ** 0.5  # a variance of gain² / inputs; faster than normal
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, 'reset_parameters'):
        module.reset_parameters()


def _create_glom(variant: str, pretrained: bool = False, **kwargs: Any) -> GLOM:
    if kwargs.get('feature_cls', 'getter') != 'getter':
        raise ValueError(
            f"levels run many times, and not all in the last iterations: GLOM's features are those of "
            f"feature_cls='getter', got {kwargs['feature_cls']!r}"
        )
    out_indices = kwargs.pop('out_indices', 3)
    return build_model(
        GLOM,
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
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2102.12627',
        'paper_name': 'How to represent part-whole hierarchies in a neural network',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'glom_base': _cfg(),
        'glom_small': _cfg(),
        'glom_tiny': _cfg(),
        'test_glom': _cfg(input_size=(3, 56, 56)),
    }
)


@register_model
def glom_base(pretrained: bool = False, **kwargs: Any) -> GLOM:
    """Six levels of 512 features on patches of 14 × 14: glom-pytorch's size."""
    return _create_glom('glom_base', pretrained, **kwargs)


@register_model
def glom_small(pretrained: bool = False, **kwargs: Any) -> GLOM:
    """Five levels of 384 features on patches of 14 × 14."""
    return _create_glom('glom_small', pretrained, **dict(dict(embed_dim=384, num_levels=5), **kwargs))


@register_model
def glom_tiny(pretrained: bool = False, **kwargs: Any) -> GLOM:
    """Five levels of 192 features on patches of 14 × 14."""
    return _create_glom('glom_tiny', pretrained, **dict(dict(embed_dim=192, num_levels=5), **kwargs))


@register_model
def test_glom(pretrained: bool = False, **kwargs: Any) -> GLOM:
    """A test model."""
    model_args = dict(img_size=56, embed_dim=32, num_levels=3)
    return _create_glom('test_glom', pretrained, **dict(model_args, **kwargs))
