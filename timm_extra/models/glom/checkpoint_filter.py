"""GLOM checkpoints: native, and of glom-pytorch. docs/checkpoints.md tables both."""

import warnings
from typing import Any, Dict, Optional, Tuple

import torch
from einops import rearrange
from timm.layers import resample_abs_pos_embed
from torch import nn

from .._build import StateDict, check_fit, unwrap
from .._size import trained_grid
from .consensus import far_column_mask

NETS = ('bottom_up', 'top_down')
MASK = 'attention.non_local_mask'


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> StateDict:
    """Convert a GLOM checkpoint of any known layout to the model's own.

    Positions of another grid are resampled: of the image size that the configuration says, or of a square.
    glom-pytorch has no classifier: the model keeps its own, which has not been trained, and a warning says so.

    Args:
        state_dict: Keys and tensors of a checkpoint, or a training checkpoint around them.
        model: GLOM it is for.

    Returns:
        State dict for `model.load_state_dict`, the classifier and the stem as in the checkpoint: timm adapts those.

    Raises:
        ValueError: The layout is unknown, parts of the model would stay at their random initialisation, or the model
            does not compute what the layout's code does.
    """
    state_dict = unwrap(state_dict)
    if 'patch_embed.proj.weight' in state_dict and 'patch_up.fc1.weight' in state_dict:
        layout, adaptable = 'native GLOM', ('patch_embed.proj.', 'head.')
        if (pos_embed := state_dict.get('pos_embed')) is not None:
            grid = trained_grid(
                model, pos_embed.shape[1], model.patch_embed.grid_size, model.patch_embed.dynamic_feat_size
            )
            state_dict = dict(state_dict, pos_embed=_on_own_grid(pos_embed, grid, model))
    elif 'image_to_tokens.1.weight' in state_dict and 'init_levels' in state_dict:
        layout, adaptable = "glom-pytorch's GLOM", ('patch_embed.proj.', 'head.', 'fc_norm.')
        state_dict = _from_lucidrains(state_dict, model)
    else:
        keys = ', '.join(map(str, list(state_dict)[:5]))
        raise ValueError(f'no known layout of GLOM (native or glom-pytorch) has the keys {keys}')
    check_fit(state_dict, model, layout, adaptable)
    return state_dict


def _on_own_grid(pos_embed: torch.Tensor, grid: Optional[Tuple[int, int]], model: nn.Module) -> torch.Tensor:
    """Positions (1, N, D) of one grid, resampled to the model's."""
    if grid is None or grid[0] * grid[1] != pos_embed.shape[1]:
        raise ValueError(f'pos_embed has {pos_embed.shape[1]} positions, no square: create the model at its size first')
    own = tuple(model.patch_embed.grid_size)
    return pos_embed if grid == own else resample_abs_pos_embed(pos_embed, own, grid, num_prefix_tokens=0)


def _from_lucidrains(given: StateDict, model: nn.Module) -> StateDict:
    """glom-pytorch at 0.0.14: patches by a linear layer, all levels of a net in one grouped convolution."""
    if model.compat != 'lucidrains' or any(level.weights is not None for level in model.levels):
        raise ValueError(
            "glom-pytorch's weights compute something else in this model: create it with compat='lucidrains' and "
            'learned_mean=False'
        )
    needed = [f'{net}.net.{n}.{kind}' for net in NETS for n in ('1', '3') for kind in ('weight', 'bias')]
    needed += ['init_levels', 'pos_emb.weight', 'image_to_tokens.1.weight', 'image_to_tokens.1.bias']
    missing = [k for k in needed if k not in given]
    unexpected = [k for k in given if k not in (*needed, MASK)]
    if missing or unexpected:
        found = [f'{label}: {", ".join(k[:5])}' for label, k in (('missing', missing), ('unexpected', unexpected)) if k]
        raise ValueError(f"the glom-pytorch checkpoint does not have that code's keys: {'; '.join(found)}")
    _check_radius(given.get(MASK), model)
    height, width = model.patch_embed.patch_size
    tokens = given['image_to_tokens.1.weight']  # (D, height · width · 3)
    if tokens.shape[1] != 3 * height * width:
        raise ValueError(f'the checkpoint has {tokens.shape[1]} numbers per patch, which are not 3 of {height}×{width}')
    converted = {'init_levels': given['init_levels'], 'patch_embed.proj.bias': given['image_to_tokens.1.bias']}
    converted['patch_embed.proj.weight'] = rearrange(tokens, 'd (h w c) -> d c h w', h=height, w=width)
    side = round(len(given['pos_emb.weight']) ** 0.5)  # its images are square
    converted['pos_embed'] = _on_own_grid(given['pos_emb.weight'].unsqueeze(0), (side, side), model)
    for net, count in (('bottom_up', model.num_levels), ('top_down', model.num_levels - 1)):
        for n, layer in (('1', 'fc1'), ('3', 'fc2')):
            for kind in ('weight', 'bias'):
                for i, part in enumerate(given[f'{net}.net.{n}.{kind}'].chunk(count)):
                    name = 'patch_up' if net == 'bottom_up' and i == 0 else f'levels.{i}.{net}'
                    converted[f'{name}.{layer}.{kind}'] = part.squeeze(-1) if kind == 'weight' else part
    warnings.warn('glom-pytorch has no classifier: the new one is not trained', stacklevel=2)
    own = {k: v for k, v in model.state_dict().items() if k.startswith(('fc_norm.', 'head.'))}
    return {**converted, **own}


def _check_radius(mask: Optional[torch.Tensor], model: nn.Module) -> None:
    """Refuse a checkpoint whose columns see others than the model's do."""
    radius = model.local_consensus_radius
    if mask is None:
        if radius > 0:
            raise ValueError(f'the checkpoint has no limit of consensus, the model has local_consensus_radius={radius}')
        return
    side = round(mask.shape[-1] ** 0.5)
    if radius <= 0 or not torch.equal(mask[0].cpu(), far_column_mask([side, side], radius, torch.device('cpu'))):
        raise ValueError(
            f'consensus in the checkpoint is limited to another radius than local_consensus_radius={radius}'
        )
