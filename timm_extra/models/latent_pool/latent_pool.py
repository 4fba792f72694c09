"""Any timm model with attention pooling by learned queries as its head.

Papers: `Set Transformer` by Juho Lee et al., https://arxiv.org/abs/1810.00825, and `Flamingo: a Visual Language Model
for Few-Shot Learning` by Jean-Baptiste Alayrac et al., https://arxiv.org/abs/2204.14198 (the perceiver resampler)
"""

import re
from dataclasses import asdict, fields, replace
from functools import partial
from inspect import signature
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple, Union

import timm
import torch
from timm.layers import get_device_dtype
from timm.models import (
    PretrainedCfg,
    generate_default_cfgs,
    get_model_args,
    get_pretrained_cfg,
    register_model,
)
from torch import nn

from timm_extra._nearest import nearest
from timm_extra._timm import FeatureGetterNet, update_model_args
from timm_extra.layers.latent_pool import POOL_TYPES, LatentPool, LatentPoolConfig

from .._build import StateDict, build_model
from .._checks import checked_pool
from .features import find_features, remove_classifier, remove_unused, to_tokens

__all__ = ['LatentPoolModel', 'with_latent_pool']

NAME, PREFIX, BACKBONE = 'latent_pool', 'backbone.', 'vit_tiny_patch16_224'
SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'tag', 'custom_load')
NAFLEX = ('patches', 'patch_coord', 'patch_valid', 'attn_mask')  # what models of NaFlex batches take


class LatentPoolModel(nn.Module):
    """A timm model whose pooling and head are `LatentPool` and a linear classifier.

    All features are pooled: of a map every position, of tokens the class and register tokens too.

    Args:
        backbone: A timm model; its own pooling and head are removed.
        config: Options of the pool.
        num_classes: Classes of the head; 0 for none.
        drop_rate: Dropout rate before the classifier.

    Raises:
        ValueError: The model has no features, or they are neither tokens nor a map. It is then as it was.
    """

    def __init__(self, backbone: nn.Module, config: LatentPoolConfig, num_classes: int = 1000, drop_rate: float = 0.0):
        super().__init__()
        features = find_features(backbone)
        dd = get_device_dtype(backbone)
        latent_pool = LatentPool(features.channels, config, **dd)  # may refuse: first
        remove_classifier(backbone)
        remove_unused(backbone, features.unused)
        self.backbone = backbone
        self.layout = features.layout
        self.takes_patches = set(NAFLEX) <= set(signature(backbone.forward_features).parameters)
        self.num_classes = num_classes
        self.num_features = features.channels
        self.head_hidden_size = latent_pool.num_features
        self.global_pool = config.pool_type
        for name in ('in_chans', 'feature_info', 'num_prefix_tokens'):
            if hasattr(backbone, name):
                setattr(self, name, getattr(backbone, name))
        self._traits = self._backbone_traits()

        self.latent_pool = latent_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        if self.latent_pool.latents.device.type != 'meta':
            _init_head(self.head)

    @torch.jit.ignore
    def _backbone_traits(self) -> Dict[str, Any]:
        """What timm knows of the backbone's input."""
        traits = dict(getattr(self.backbone, '_traits', {}))
        if 'first_conv' in traits:
            traits['first_conv'] = _prefixed(traits['first_conv'])
        return traits

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters, those of the backbone as it does itself.

        Args:
            needs_reset: Reset layers that initialise themselves on construction too; needed after `to_empty()`.
        """
        init = getattr(self.backbone, 'init_weights', None)
        if init is not None:
            init(needs_reset=needs_reset) if 'needs_reset' in signature(init).parameters else init()
        self.latent_pool.init_weights(needs_reset=needs_reset)
        _init_head(self.head)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Parameters that are not decayed: those of the backbone, and the latents."""
        own = getattr(self.backbone, 'no_weight_decay', set)()
        return {'latent_pool.latents', *(PREFIX + name for name in own)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Union[Dict[str, Any], Callable[[str], Any]]:
        """Groups of parameters for layer-wise learning rates: those of the backbone; pool and head come last."""
        matcher = self.backbone.group_matcher(coarse=coarse)
        if callable(matcher):  # from a name to the number of its group
            return lambda name: matcher(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else (float('inf'),)
        return {k: _prefixed_patterns(v) for k, v in matcher.items()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.backbone.set_grad_checkpointing(enable)
        self.latent_pool.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new head; 0 for none.
            global_pool: What becomes of the latents: 'avg', 'token' or ''; unchanged when None.

        Raises:
            ValueError: `global_pool` is none of these.
        """
        if global_pool is not None:
            self.global_pool = self.latent_pool.pool_type = checked_pool(global_pool, POOL_TYPES)
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        self.head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        if self.latent_pool.latents.device.type != 'meta':
            _init_head(self.head)
        self.head.train(self.training)

    def set_input_size(self, img_size: Optional[Union[int, Tuple[int, int]]] = None) -> None:
        """Change the image size, where the backbone can: height and width in pixels."""
        self.backbone.set_input_size(img_size)
        self._traits = dict(self._traits, **self._backbone_traits())
        update_model_args(self, **_backbone_args(self.backbone))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Optional[str] = None,
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Intermediates of the backbone, as its own method has them; in its own format when `output_fmt` is None."""
        prefix = dict(return_prefix_tokens=True) if return_prefix_tokens else {}
        return self.backbone.forward_intermediates(
            x,
            indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt or self._own_format(),
            intermediates_only=intermediates_only,
            **prefix,
        )

    @torch.jit.ignore
    def _own_format(self) -> str:
        """Format of intermediates that the backbone gives by default: 'NLC' of latents, which have no place."""
        return signature(self.backbone.forward_intermediates).parameters['output_fmt'].default

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Remove what the given intermediates do not need, with `prune_head` pool and classifier too."""
        taken = self.backbone.prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.latent_pool, self.head = nn.Identity(), nn.Identity()
        return taken

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the backbone: tokens (B, N, C) or a map, for NaFlex batches as it gives them."""
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript compiles only what such an `if` alone guards
            if isinstance(x, dict) and self.takes_patches:
                return self._batch_features(x)
        return self.backbone.forward_features(x)

    @torch.jit.ignore
    def _batch_features(self, batch: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        return self.backbone.forward_features(**{name: batch[name] for name in NAFLEX if name in batch})

    def forward_head(
        self, x: torch.Tensor, pre_logits: bool = False, patch_valid: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Pool and classify.

        Args:
            x: What `forward_features` gives.
            pre_logits: Leave out the classifier.
            patch_valid: Boolean (B, N), True for the tokens behind class and register tokens that are of the image.

        Returns:
            (B, num_classes), or (B, D) with `pre_logits`; with `global_pool=''` of each latent (B, M, …).
        """
        if not torch.jit.is_scripting():  # noqa: SIM102, as above
            if isinstance(x, dict):
                x, patch_valid = x['patches'], x.get('patch_valid', patch_valid)
        x = to_tokens(x, self.layout)
        if patch_valid is not None:
            prefix = patch_valid.new_ones(x.shape[0], x.shape[1] - patch_valid.shape[1])
            patch_valid = torch.cat([prefix, patch_valid], dim=1)
        x = self.head_drop(self.latent_pool(x, patch_valid))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs of the backbone to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


@torch.inference_mode(False)  # the new parameters shall learn
def with_latent_pool(
    model: nn.Module,
    config: Optional[LatentPoolConfig] = None,
    *,
    num_classes: Optional[int] = None,
    drop_rate: float = 0.0,
) -> LatentPoolModel:
    """Give a timm model attention pooling by learned queries in the place of its pooling and head.

    What `timm.create_model('latent_pool', backbone=NAME, latent_pool=dict(…))` gives, for a model that exists: its
    weights stay, pool and classifier are new. `timm_extra.hub.save` saves it and timm loads it again.

    Args:
        model: A timm model whose features are tokens or a map. It becomes the `backbone`, and loses its own head.
        config: Options of the pool; one layer with one latent by default.
        num_classes: Classes; those of the model when None, 0 for none.
        drop_rate: Dropout rate before the classifier.

    Returns:
        The new model, in the mode of the old.

    Raises:
        ValueError: The model has no features, or they are neither tokens nor a map. It is then as it was.
    """
    replaced = isinstance(model, LatentPoolModel)
    if replaced:
        model = model.backbone if num_classes is not None else _headed(model)
    own = get_model_args(model)  # before its pooling is removed
    classes = getattr(model, 'num_classes', None) if num_classes is None else num_classes
    cfg = getattr(model, 'pretrained_cfg', None)
    training = model.training
    pooled = LatentPoolModel(model, config or LatentPoolConfig(), classes or 0, drop_rate).train(training)
    if replaced:  # of norms that the first pool removed, timm records that it was built without them
        update_model_args(model, **own)
    if cfg:
        pooled.pretrained_cfg = pooled.default_cfg = _cfg_from(cfg)
        if not hasattr(pooled, '_model_args'):
            args = dict(backbone=cfg['architecture'], latent_pool=asdict(pooled.latent_pool.config))
            if own.get('global_pool') is not None:
                args['backbone_pool'] = own['global_pool']
            update_model_args(pooled, **args, **_backbone_args(model))
    return pooled


def _headed(model: LatentPoolModel) -> nn.Module:
    """The backbone of a model, which knows its number of classes."""
    model.backbone.num_classes = model.num_classes
    return model.backbone


def _backbone_args(backbone: nn.Module) -> Dict[str, Any]:
    """What a backbone was made with, as it is now."""
    return {k: v for k, v in get_model_args(backbone).items() if k not in ('num_classes', 'global_pool')}


def _init_head(head: nn.Module) -> None:
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)


def _prefixed(names: Any) -> Any:
    """Names of layers of the backbone as those of the whole model."""
    if isinstance(names, (tuple, list)):
        return tuple(PREFIX + name for name in names)
    return PREFIX + names if names else names


def _prefixed_patterns(spec: Any) -> Any:
    """Patterns of a group matcher, which match from the start of a name, for names behind the prefix."""
    if spec is None:
        return None
    if isinstance(spec, (tuple, list)):
        return [(_prefixed_patterns(pattern), suffix) for pattern, suffix in spec]
    return re.escape(PREFIX) + '(?:' + re.sub(r'(?<!\[)\^', '', spec) + ')'


def _cfg_from(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """Configuration of a model with a latent pool, from that of its backbone; whose weights were whose, it says not."""
    kept = {k: v for k, v in cfg.items() if k not in SOURCES}
    first_conv = _prefixed(kept.get('first_conv'))
    return dict(kept, architecture=NAME, classifier='head', first_conv=first_conv, pool_size=None)


def _build(
    backbone: str,
    pretrained: bool = False,
    latent_pool: Optional[Mapping[str, Any]] = None,
    num_classes: int = 1000,
    global_pool: Optional[str] = None,
    backbone_pool: Optional[str] = None,
    drop_rate: float = 0.0,
    **kwargs: Any,
) -> LatentPoolModel:
    """Build the backbone with the arguments that are left, and the pool around it."""
    config = _config(latent_pool)
    if global_pool is not None:
        config = replace(config, pool_type=checked_pool(global_pool, POOL_TYPES))
    if backbone_pool is not None:
        kwargs['global_pool'] = backbone_pool
    net = timm.create_model(backbone, pretrained=pretrained, num_classes=0, **kwargs)
    return LatentPoolModel(net, config, num_classes, drop_rate)


def _config(options: Optional[Mapping[str, Any]]) -> LatentPoolConfig:
    """Options of the pool, from those that `create_model` was given.

    Raises:
        ValueError: They are no mapping, or one is unknown; the message names it.
    """
    if options is None:
        return LatentPoolConfig()
    if not isinstance(options, Mapping):  # a dictionary goes into config.json, a dataclass would not
        hint = ', as dataclasses.asdict gives it' if isinstance(options, LatentPoolConfig) else ''
        raise ValueError(f'`latent_pool` must be a dictionary of options{hint}, got {options!r}')
    known = [one.name for one in fields(LatentPoolConfig)]
    for name in options:
        if name not in known:
            raise ValueError(f'`latent_pool` has no option {name!r}{nearest(str(name), known)}')
    return LatentPoolConfig(**options)


class _Intermediates(FeatureGetterNet):
    """timm's extractor of intermediates, in the backbone's own format by default."""

    def __init__(self, model: LatentPoolModel, output_fmt: Optional[str] = None, **kwargs: Any):
        super().__init__(model, output_fmt=output_fmt or model._own_format(), **kwargs)


def _unchanged(state_dict: StateDict, model: nn.Module) -> StateDict:
    return state_dict


def _create_latent_pool(variant: str, pretrained: bool = False, **kwargs: Any) -> LatentPoolModel:
    backbone = kwargs.pop('backbone', BACKBONE)
    if not isinstance(backbone, str):
        what = type(backbone).__name__
        raise ValueError(
            f'{variant}: `backbone` must be the name of a model, got a {what} (`with_latent_pool` takes it)'
        )
    if backbone.split('.')[0] == NAME or not timm.is_model(backbone):
        meant = nearest(backbone, timm.list_models())
        raise ValueError(f'{variant}: timm has no model {backbone!r} for a backbone{meant}')
    cfg, overlay = kwargs.pop('pretrained_cfg', None), kwargs.get('pretrained_cfg_overlay') or {}
    saved = isinstance(cfg, (dict, PretrainedCfg)) or bool({'file', 'state_dict'} & set(overlay))
    if not isinstance(cfg, (dict, PretrainedCfg)):
        cfg = _cfg_from(get_pretrained_cfg(backbone).to_dict())
    return build_model(
        partial(_build, backbone, pretrained and not saved),
        variant,
        pretrained and saved,
        pretrained_cfg=cfg,
        pretrained_filter_fn=_unchanged,
        feature_cfg=dict(out_indices=kwargs.pop('out_indices', (0, 1, 2)), feature_cls=_Intermediates),
        **kwargs,
    )


default_cfgs = generate_default_cfgs({NAME: _cfg_from(get_pretrained_cfg(BACKBONE).to_dict())})


@register_model
def latent_pool(pretrained: bool = False, **kwargs: Any) -> LatentPoolModel:
    """Any timm model (`backbone`, by name) with attention pooling (`latent_pool`, options of `LatentPoolConfig`).

    Other arguments go to the backbone, `backbone_pool` as its `global_pool`; `pretrained=True` loads its weights, or
    those of a saved model.
    """
    return _create_latent_pool(NAME, pretrained, **kwargs)
