"""Perceiver checkpoints: native, of transformers (DeepMind's weights), of perceiver-pytorch; docs/checkpoints.md."""

import math
import re
from typing import Any, Dict, Tuple

import torch
from timm.layers import PatchEmbedInterpolator
from timm.models import adapt_input_conv
from torch import nn

from .._build import StateDict, check_fit, unwrap
from .._size import trained_grid
from .positions import resample_positions
from .stems import FramesStem, GridStem, PatchEmbedStem

# Regular expressions over whole keys, applied one after the other.
HF_KEYS = (
    (r'perceiver\.embeddings\.latents', r'latents'),
    (r'perceiver\.encoder\.cross_attention\.(.*)', r'cross_attends.0.\1'),
    (r'perceiver\.encoder\.self_attends\.(.*)', r'blocks.0.\1'),
    (r'perceiver\.decoder\.decoder\.decoding_cross_attention\.(.*)', r'decoder.\1'),
    (r'perceiver\.decoder\.decoder\.final_layer\.(.*)', r'head.\1'),
    (r'perceiver\.decoder\.decoder\.output_position_encodings\.position_embeddings', r'query'),
    (r'perceiver\.input_preprocessor\.convnet_1x1\.(.*)', r'stem.conv.\1'),
    (r'perceiver\.input_preprocessor\.conv_after_patches\.(.*)', r'stem.conv.\1'),
    (r'perceiver\.input_preprocessor\.convnet\.conv\.(.*)', r'stem.conv.\1'),
    (r'perceiver\.input_preprocessor\.convnet\.batchnorm\.(.*)', r'stem.bn.\1'),
    (r'perceiver\.input_preprocessor\.position_embeddings\.position_embeddings', r'stem.pos_embed'),
    (r'perceiver\.input_preprocessor\.positions_projection\.(.*)', r'stem.pos_proj.\1'),
    (r'(.*)\.attention\.self\.layernorm1\.(.*)', r'\1.norm1.\2'),
    (r'(.*)\.attention\.self\.layernorm2\.(.*)', r'\1.attn.norm_kv.\2'),
    (r'(.*)\.attention\.self\.query\.(.*)', r'\1.attn.q.\2'),
    (r'(.*)\.attention\.self\.key\.(.*)', r'\1.attn.k.\2'),
    (r'(.*)\.attention\.self\.value\.(.*)', r'\1.attn.v.\2'),
    (r'(.*)\.attention\.output\.dense\.(.*)', r'\1.attn.proj.\2'),
    (r'(.*)\.layernorm\.(.*)', r'\1.norm2.\2'),
    (r'(.*)\.mlp\.dense([12])\.(.*)', r'\1.mlp.fc\2.\3'),
)
# perceiver-pytorch up to 0.8.8 numbers what 0.11 names
OLD_LUCIDRAINS_KEYS = (
    (r'cross_attend_blocks\.0\.(.*)', r'cross_attend_block.cross_attn.\1'),
    (r'cross_attend_blocks\.1\.(.*)', r'cross_attend_block.cross_ff.\1'),
)
OLD_LUCIDRAINS_PERCEIVER_KEYS = (
    (r'layers\.(\d+)\.0\.(.*)', r'layers.\1.cross_attn.\2'),
    (r'layers\.(\d+)\.1\.(.*)', r'layers.\1.cross_ff.\2'),
    (r'layers\.(\d+)\.2\.(.*)', r'layers.\1.self_attns.\2'),
)
OLD_LUCIDRAINS_IO_KEYS = ((r'layers\.(\d+)\.([01]\..*)', r'layers.\1.self_attns.0.\2'),)
LUCIDRAINS_KEYS = (
    (r'cross_attend_block\.(.*)', r'cross_attends.0.\1'),
    (r'layers\.(\d+)\.(cross_attn|cross_ff)\.(.*)', r'cross_attends.\1.\2.\3'),
    (r'layers\.(\d+)\.self_attns\.(\d+)\.0\.(.*)', r'blocks.\1.\2.cross_attn.\3'),
    (r'layers\.(\d+)\.self_attns\.(\d+)\.1\.(.*)', r'blocks.\1.\2.cross_ff.\3'),
    (r'decoder_cross_attn\.(.*)', r'decoder.cross_attn.\1'),
    (r'decoder_ff\.(.*)', r'decoder.cross_ff.\1'),
    (r'(.*)\.cross_attn\.norm\.(.*)', r'\1.norm1.\2'),
    (r'(.*)\.cross_attn\.norm_context\.(.*)', r'\1.attn.norm_kv.\2'),
    (r'(.*)\.cross_attn\.fn\.to_q\.(.*)', r'\1.attn.q.\2'),
    (r'(.*)\.cross_attn\.fn\.to_kv\.(.*)', r'\1.attn.kv.\2'),
    (r'(.*)\.cross_attn\.fn\.to_out\.(.*)', r'\1.attn.proj.\2'),
    (r'(.*)\.cross_ff\.norm\.(.*)', r'\1.norm2.\2'),
    (r'(.*)\.cross_ff\.fn\.net\.0\.(.*)', r'\1.mlp.fc1.\2'),
    (r'(.*)\.cross_ff\.fn\.net\.2\.(.*)', r'\1.mlp.fc2.\2'),
    (r'to_logits\.1\.(.*)', r'head_norm.\1'),
    (r'to_logits\.(?:2\.)?(weight|bias)', r'head.\1'),
)


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> StateDict:
    """Convert a Perceiver checkpoint of any known layout to the model's own.

    Args:
        state_dict: Keys and tensors of a checkpoint, or a training checkpoint around them.
        model: Perceiver it is for.

    Returns:
        State dict for `model.load_state_dict`, classifier and stem's convolution as in the checkpoint: timm adapts
        those. A native state dict comes back as it is, save for learned positions of another size.

    Raises:
        ValueError: The layout is unknown, parts of the model would stay at their random initialisation, or the model
            does not compute what the layout's code does.
    """
    state_dict = unwrap(state_dict)
    if 'cross_attends.0.attn.q.weight' in state_dict:
        layout = 'native Perceiver'
    elif 'perceiver.embeddings.latents' in state_dict:
        layout = "transformers' Perceiver IO"
        _check_compat(model, layout, lucidrains=False)
        state_dict = _from_hf(state_dict, model)
    elif 'latents' in state_dict and any(k.startswith(('layers.', 'cross_attend_block')) for k in state_dict):
        layout = "perceiver-pytorch's"
        _check_compat(model, layout, lucidrains=True)
        state_dict = _from_lucidrains(state_dict, model)
    else:
        keys = ', '.join(map(str, list(state_dict)[:5]))
        raise ValueError(
            f'not a Perceiver checkpoint: it begins with the keys {keys}; known are those of timm_extra, of '
            "transformers' image classifiers and optical flow, and of perceiver-pytorch's Perceiver and PerceiverIO"
        )
    if getattr(model, 'decoder', True) is None:  # Perceiver IO that reads the latents
        state_dict = {k: v for k, v in state_dict.items() if k != 'query' and not k.startswith('decoder.')}
    state_dict = _adapt_patches(_adapt_frames(_resize_positions(state_dict, model), model), model)
    adaptable = ['head.', f'{model.stem.first_conv}.'] if model.stem.first_conv else ['head.']
    try:
        check_fit(state_dict, model, layout, adaptable)
    except ValueError as e:
        if _is_grey(model) and _width(state_dict) != _width(model.state_dict()):
            raise ValueError(f'{e} (weights for colour images take grey ones with grey_chans=3)') from e
        raise
    return state_dict


def _is_grey(model: nn.Module) -> bool:
    return isinstance(model.stem, GridStem) and model.in_chans == 1 and not model.stem.grey_chans


def _width(state_dict: StateDict) -> torch.Size:
    return state_dict['cross_attends.0.attn.norm_kv.weight'].shape


def _check_compat(model: nn.Module, layout: str, lucidrains: bool) -> None:
    if (model.compat == 'lucidrains') != lucidrains:
        needed = "compat='lucidrains'" if lucidrains else "compat=None (DeepMind's behaviour) or compat='hf'"
        raise ValueError(f'{layout} checkpoint needs a model with {needed}, this one has compat={model.compat!r}')


def _rename(key: str, *tables: Tuple[Tuple[str, str], ...]) -> str:
    for table in tables:
        for pattern, replacement in table:
            key = re.sub(f'^{pattern}$', replacement, key)
    return key


def _from_hf(state_dict: StateDict, model: nn.Module) -> StateDict:
    out = {_rename(k, HF_KEYS): v for k, v in state_dict.items()}
    for prefix in sorted({k.split('.attn.')[0] for k in out if k.startswith('blocks.') and '.attn.q.' in k}):
        for kind in ('weight', 'bias'):
            parts = [out.pop(f'{prefix}.attn.{name}.{kind}') for name in 'qkv']
            out[f'{prefix}.attn.qkv.{kind}'] = torch.cat(parts)
    stem = model.stem
    weight = out.get('stem.conv.weight')
    if isinstance(stem, FramesStem) and weight is not None and weight.ndim == 2:
        out['stem.conv.weight'] = _of_frames(weight, stem.num_frames)
    axes = len(stem.max_resolution)
    if axes:
        order = _fourier_order(stem.out_chans, axes, stem.num_bands)
        of_tokens = r'cross_attends\.\d+\.attn\.(norm_kv\.\w+|[kv]\.weight)'
        if getattr(model, 'query_type', '') == 'inputs':
            of_tokens += r'|decoder\.(norm1\.\w+|attn\.q\.weight)'
        for key, value in out.items():
            if re.fullmatch(of_tokens, key) and value.shape[-1] == len(order):  # else it is of another, and refused
                out[key] = value[..., order]
    return out


def _of_frames(weight: torch.Tensor, frames: int) -> torch.Tensor:
    """A linear map of neighbourhoods, in the order of frames, rows, columns and colours, as a convolution's kernel."""
    if weight.shape[1] % (9 * frames):
        return weight  # of another number, which is refused
    return weight.unflatten(1, (frames, 3, 3, -1)).permute(0, 1, 4, 2, 3).flatten(1, 2)


def _fourier_order(channels: int, axes: int, bands: int) -> torch.Tensor:
    """Where DeepMind's order (content, all positions, all sines, all cosines) has the channels of ours."""
    content = channels - axes * (2 * bands + 1)
    order = list(range(content))
    for axis in range(axes):
        sines = content + axes + axis * bands
        cosines = sines + axes * bands
        order += [*range(sines, sines + bands), *range(cosines, cosines + bands), content + axis]
    return torch.tensor(order)


def _from_lucidrains(state_dict: StateDict, model: nn.Module) -> StateDict:
    io = any(k.startswith('cross_attend_block') for k in state_dict)
    old = OLD_LUCIDRAINS_IO_KEYS if io else OLD_LUCIDRAINS_PERCEIVER_KEYS
    named = {_rename(k, OLD_LUCIDRAINS_KEYS, old, LUCIDRAINS_KEYS): v for k, v in state_dict.items()}
    out: StateDict = {}
    for key, value in named.items():
        if '.attn.kv.' not in key:
            out[key] = value
        elif key.startswith('blocks.'):
            out[key.replace('.kv.', '.qkv.')] = torch.cat([named[key.replace('.kv.', '.q.')], value])
        else:
            out[key.replace('.kv.', '.k.')], out[key.replace('.kv.', '.v.')] = value.chunk(2)
    out = {k: v for k, v in out.items() if not (k.startswith('blocks.') and '.attn.q.' in k)}
    return _without_repeats(out, model)


def _without_repeats(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Keep each set of shared weights once; perceiver-pytorch's state dicts repeat them for every layer."""
    out: StateDict = {}
    for key, value in state_dict.items():
        match = re.match(r'(cross_attends|blocks)\.(\d+)\.(.*)', key)
        if match is None:
            out[key] = value
            continue
        last = len(getattr(model, match[1])) - 1
        index = int(match[2])
        if index >= model.num_blocks:
            raise ValueError(f"perceiver-pytorch's checkpoint has layer {index}, the model {model.num_blocks} blocks")
        if index <= last:
            out[key] = value
        elif not torch.equal(value, state_dict.get(f'{match[1]}.{last}.{match[3]}', value.new_empty(0))):
            raise ValueError(
                f"perceiver-pytorch's checkpoint has weights of its own in layer {index} ({match[3]}), where the model "
                f'shares those of layer {last}: build it with unique_blocks and unique_cross_attends of {index + 1} or '
                'more (weight_tie_layers=False is as many as there are layers)'
            )
    return out


def _adapt_frames(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Adapt a stem of frames to other channels, each frame as timm adapts convolutions of images."""
    stem, weight = model.stem, state_dict.get('stem.conv.weight')
    if not isinstance(stem, FramesStem) or weight is None or weight.ndim != 4 or weight.shape[1] % stem.num_frames:
        return state_dict
    frames = weight.unflatten(1, (stem.num_frames, -1)).unbind(1)
    if frames[0].shape[1] != 3 or stem.content_chans == 3:
        return state_dict  # if it does not fit, it is refused as of another shape
    adapted = torch.cat([adapt_input_conv(stem.content_chans, frame) for frame in frames], dim=1)
    return dict(state_dict, **{'stem.conv.weight': adapted})


def _adapt_patches(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Adapt a stem of embedded patches to other channels, as timm adapts convolutions, or to other patches."""
    stem, weight = model.stem, state_dict.get('stem.proj.weight')
    if not isinstance(stem, PatchEmbedStem) or weight is None or weight.shape == stem.proj.weight.shape:
        return state_dict
    height, width = stem.patch_size
    side = math.isqrt(weight.shape[1] // stem.in_chans)
    if weight.shape[1] == height * width * 3:
        kernel = weight.unflatten(1, (height, width, 3)).permute(0, 3, 1, 2)
        weight = adapt_input_conv(stem.in_chans, kernel).permute(0, 2, 3, 1).flatten(1)
    elif weight.shape[1] == side * side * stem.in_chans:
        resampler = PatchEmbedInterpolator((side, side), stem.in_chans, len(weight))
        weight = resampler.resample_linear_weight(weight, stem.patch_size)
    return dict(state_dict, **{'stem.proj.weight': weight})  # if it does not fit, it is refused as of another shape


def _resize_positions(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Resample learned positions to the model's grid: of images, or along one axis."""
    stem = model.stem
    learned = {'stem.pos_embed': (stem.pos_embed, stem.grid_size, stem.grid_of)}
    if getattr(model, 'query_type', '') == 'grid':
        learned['query'] = (model.query, stem.img_size, tuple)
    out = dict(state_dict)
    for key, (own, size, grid_of) in learned.items():
        given = state_dict.get(key)
        if own is None or given is None or own.shape[1] != given.shape[1]:
            continue
        grid = (len(given),) if stem.num_axes == 1 else None
        if stem.num_axes == 2:
            grid = trained_grid(model, len(given), size, grid_of)
        if grid is not None and grid != tuple(size):  # if it does not fit, it is refused as of another shape
            out[key] = resample_positions(given, list(grid), list(size))
    return out
