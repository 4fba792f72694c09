"""CeiT checkpoints: native, of the official code, and of the article's code. docs/checkpoints.md tables all three."""

import re
import warnings
from typing import Any, Dict, Optional, Tuple

import torch
from einops import rearrange
from timm.layers import resample_abs_pos_embed
from torch import nn

from .._build import StateDict, check_fit, unwrap
from .._size import trained_grid

# Regular expressions over whole keys; a key that no expression matches keeps its name.
OFFICIAL_KEYS = (
    (r'i2t\.backbone\.(.*)', r'patch_embed.\1'),
    (r'i2t\.proj\.(.*)', r'patch_embed.proj.\1'),
    (r'pos_layer_embed', r'lca.layer_embed'),
    (r'lca\.feedforward\.(.*)', r'lca.mlp.\1'),
    (r'(blocks\.\d+\.leff)\.conv1\.(.*)', r'\1.fc1.\2'),
    (r'(blocks\.\d+\.leff)\.conv2\.(.*)', r'\1.conv.\2'),
    (r'(blocks\.\d+\.leff)\.conv3\.(.*)', r'\1.fc2.\2'),
)
ARTICLE_KEYS = (
    (r'pos_embedding', r'pos_embed'),
    (r'conv\.0\.(.*)', r'patch_embed.conv.\1'),
    (r'conv\.1\.(.*)', r'patch_embed.bn.\1'),
    (r'to_patch_embedding\.1\.(.*)', r'patch_embed.proj.\1'),
    (r'transformer\.layers\.(\d+)\.0\.fn\.norm\.(.*)', r'blocks.\1.norm1.\2'),
    (r'transformer\.layers\.(\d+)\.0\.fn\.fn\.to_qkv\.(.*)', r'blocks.\1.attn.qkv.\2'),
    (r'transformer\.layers\.(\d+)\.0\.fn\.fn\.to_out\.0\.(.*)', r'blocks.\1.attn.proj.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.norm\.(.*)', r'blocks.\1.norm2.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.fn\.up_proj\.0\.(.*)', r'blocks.\1.leff.fc1.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.fn\.up_proj\.2\.(.*)', r'blocks.\1.leff.bn1.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.fn\.depth_conv\.0\.(.*)', r'blocks.\1.leff.conv.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.fn\.depth_conv\.1\.(.*)', r'blocks.\1.leff.bn2.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.fn\.down_proj\.0\.(.*)', r'blocks.\1.leff.fc2.\2'),
    (r'transformer\.layers\.(\d+)\.1\.fn\.fn\.down_proj\.2\.(.*)', r'blocks.\1.leff.bn3.\2'),
    (r'LCA\.layers\.0\.0\.norm\.(.*)', r'lca.norm1.\1'),
    (r'LCA\.layers\.0\.0\.fn\.to_qkv\.(.*)', r'lca.attn.qkv.\1'),
    (r'LCA\.layers\.0\.0\.fn\.to_out\.0\.(.*)', r'lca.attn.proj.\1'),
    (r'LCA\.layers\.0\.1\.norm\.(.*)', r'lca.norm2.\1'),
    (r'LCA\.layers\.0\.1\.fn\.net\.0\.(.*)', r'lca.mlp.fc1.\1'),
    (r'LCA\.layers\.0\.1\.fn\.net\.3\.(.*)', r'lca.mlp.fc2.\1'),
    (r'mlp_head\.0\.(.*)', r'norm.\1'),
    (r'mlp_head\.1\.(.*)', r'head.\1'),
)


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> StateDict:
    """Convert a CeiT checkpoint of any known layout to the model's own.

    Position embeddings of another resolution are resampled; the resolution they are for is what the checkpoint's
    configuration says, where the number of tokens agrees with it. Else a native state dict comes back as it is.

    Args:
        state_dict: Keys and tensors of a checkpoint, or a training checkpoint around them.
        model: CeiT it is for.

    Returns:
        State dict for `model.load_state_dict`, the classifier and the stem as in the checkpoint: timm adapts those.

    Raises:
        ValueError: The layout is unknown, parts of the model would stay at their random initialisation, or the model
            does not compute what the layout's code does.
    """
    state_dict = unwrap(state_dict)
    if 'patch_embed.proj.weight' in state_dict and 'blocks.0.leff.fc1.weight' in state_dict:
        layout = 'native CeiT'
    elif 'i2t.proj.weight' in state_dict:
        layout = 'official CeiT'
        _check_behaviour(model, layout, article=False)
        state_dict = _move_norm(_from_official(state_dict), model)
    elif 'to_patch_embedding.1.weight' in state_dict:
        layout = "article's CeiT"
        _check_behaviour(model, layout, article=True)
        state_dict = _move_norm(_from_article(state_dict, model), model)
    else:
        keys = ', '.join(map(str, list(state_dict)[:5]))
        raise ValueError(f'not a CeiT checkpoint: {len(state_dict)} keys, among them {keys or "none"}')

    state_dict = _resize_pos_embed(state_dict, model, native=layout == 'native CeiT')
    check_fit(state_dict, model, layout, adaptable=('head.', f'{_stem(model)}.weight'))
    _check_stem(state_dict, model, layout)
    _warn_new_head(state_dict, model)
    return state_dict


def _rename(state_dict: StateDict, table: Tuple[Tuple[str, str], ...]) -> StateDict:
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in table:
            new, hits = re.subn(rf'^{pattern}$', replacement, key)
            if hits:
                key = new
                break
        renamed[key] = value
    return renamed


def _from_official(state_dict: StateDict) -> StateDict:
    out = _rename(state_dict, OFFICIAL_KEYS)
    for key, value in out.items():
        if re.search(r'leff\.fc[12]\.weight$', key) and value.ndim == 4:  # 1×1 convolution
            out[key] = value[:, :, 0, 0]
    return out


def _from_article(state_dict: StateDict, model: nn.Module) -> StateDict:
    out = _rename(state_dict, ARTICLE_KEYS)
    weight = out['patch_embed.proj.weight']
    outs, chans, height, width = model.patch_embed.proj.weight.shape
    if weight.shape == (outs, height * width * chans):  # else check_fit names the misfit
        out['patch_embed.proj.weight'] = rearrange(weight, 'o (p1 p2 c) -> o c p1 p2', p1=height, p2=width)
    for key, value in model.state_dict().items():
        if key in out:
            continue
        # what that code leaves out and adding zero replaces: biases, and the layer embedding where there is LCA
        if re.search(r'(leff\.conv|attn\.qkv)\.bias$', key) or (key == 'lca.layer_embed' and 'lca.norm1.weight' in out):
            out[key] = torch.zeros_like(value, device='cpu')
        elif key.endswith(('attn.proj.weight', 'attn.proj.bias')):
            attn = model.get_submodule(key.rsplit('.', 2)[0])
            if attn.num_heads == 1 and attn.attn_dim == attn.proj.out_features:  # it projects such heads by identity
                out[key] = torch.eye(len(value)) if value.ndim == 2 else torch.zeros_like(value, device='cpu')
    return out


def _check_behaviour(model: nn.Module, layout: str, article: bool) -> None:
    """Refuse a model of the same shapes that computes what the other code does."""
    block = model.blocks[0]
    found = dict(
        cls_bypass=block.cls_bypass,
        leff_out_act=not isinstance(block.leff.act3, nn.Identity),
    )
    needed = dict(cls_bypass=article, leff_out_act=article)
    if hasattr(model.patch_embed, 'conv'):
        found['stem_padding'] = (model.patch_embed.conv.padding[0], model.patch_embed.pool.padding)
        needed['stem_padding'] = (4, 0) if article else (3, 1)
    else:
        found['conv_stem'], needed['conv_stem'] = False, True
    wrong = [f'{name}={needed[name]}, not {value}' for name, value in found.items() if value != needed[name]]
    if wrong:
        name = 'ceit_tiny_article' if article else 'the ceit_* models'
        raise ValueError(f'the {layout} checkpoint needs {"; ".join(wrong)} (as {name} set it)')


def _move_norm(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Give the one final norm of a foreign layout the name it has in this model, before or after pooling."""
    if not isinstance(model.fc_norm, nn.LayerNorm):
        return state_dict
    return {f'fc_{k}' if k.startswith('norm.') else k: v for k, v in state_dict.items()}


def _resize_pos_embed(state_dict: StateDict, model: nn.Module, native: bool) -> StateDict:
    given, own = state_dict.get('pos_embed'), model.pos_embed
    if given is None or given.ndim != 3 or given.shape[-1] != own.shape[-1]:
        return state_dict
    new_grid, patches = tuple(model.patch_embed.grid_size), given.shape[1] - 1
    own_grid = new_grid if native else ()  # other code trains on squares, where nothing else is said
    old_grid = trained_grid(model, patches, own_grid, model.patch_embed.dynamic_feat_size)
    if old_grid is None:
        raise ValueError(
            f'{patches} position embeddings form no square grid: give the image size that the checkpoint was trained '
            'at with pretrained_cfg_overlay=dict(file=…, input_size=(channels, height, width))'
        )
    if old_grid == new_grid:
        return state_dict
    resized = resample_abs_pos_embed(given, new_grid, old_grid, num_prefix_tokens=1)
    return {**state_dict, 'pos_embed': resized}


def _stem(model: nn.Module) -> str:
    """Name of the layer that reads the image."""
    return 'patch_embed.conv' if hasattr(model.patch_embed, 'conv') else 'patch_embed.proj'


def _check_stem(state_dict: StateDict, model: nn.Module, layout: str) -> None:
    """The stem's weight must fit but for the image's channels, which timm adapts."""
    key = f'{_stem(model)}.weight'
    given: Optional[torch.Tensor] = state_dict.get(key)
    own = model.state_dict()[key]
    if given is None or given.ndim != 4 or given.shape[0] != own.shape[0] or given.shape[2:] != own.shape[2:]:
        found = 'missing' if given is None else f'{tuple(given.shape)} for {tuple(own.shape)}'
        raise ValueError(f'the {layout} checkpoint does not fit {type(model).__name__}: {key} {found}')


def _warn_new_head(state_dict: StateDict, model: nn.Module) -> None:
    """timm re-initialises the head where the configuration and the model differ in classes, whatever the file holds."""
    head = state_dict.get('head.weight')
    stated = getattr(model, 'pretrained_cfg', {}).get('num_classes')
    if head is not None and stated is not None and head.shape[0] == model.num_classes != stated:
        warnings.warn(
            f'The checkpoint has a head of {model.num_classes} classes, but its configuration says {stated}: the head '
            f'is re-initialised. To load it add num_classes={model.num_classes} to pretrained_cfg_overlay.',
            stacklevel=2,
        )
