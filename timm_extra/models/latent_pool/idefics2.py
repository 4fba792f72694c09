"""Idefics2's perceiver resampler as a `LatentPool`."""

import re
from typing import Any, Dict, Mapping

import torch

from timm_extra.layers.latent_pool import LatentPool, LatentPoolConfig

HEAD_DIM = 96  # that of https://huggingface.co/HuggingFaceM4/idefics2-8b
PLACE = 'perceiver_resampler.'  # within the whole model
NAMES = {
    'layers.': 'blocks.',
    'input_latents_norm': 'norm1',
    'input_context_norm': 'norm_context',
    'post_attention_layernorm': 'norm2',
    'self_attn.q_proj': 'attn.q',
    'self_attn.k_proj': 'attn.k',
    'self_attn.v_proj': 'attn.v',
    'self_attn.o_proj': 'attn.proj',
    'gate_proj': 'fc1_g',
    'up_proj': 'fc1_x',
    'down_proj': 'fc2',
}


def from_idefics2(state_dict: Mapping[str, torch.Tensor], *, head_dim: int = HEAD_DIM) -> LatentPool:
    """Make a `LatentPool` of Idefics2's perceiver resampler, with the same outputs.

    transformers computes its RMS norms in float32, whatever the weights; here they are in the dtype of the weights.

    Args:
        state_dict: Of `transformers.models.idefics2.modeling_idefics2.Idefics2PerceiverResampler`, or of a model that
            holds it.
        head_dim: Channels per attention head, `resampler_head_dim` of its configuration; weights do not tell.

    Returns:
        Pool from tokens (B, N, C) to all latents (B, M, C); `num_classes`, vision and text are none of it.

    Raises:
        ValueError: The state dict holds no such resampler; the message names what is missing.
    """
    state = {k.rpartition(PLACE)[2]: v for k, v in state_dict.items() if PLACE in k} or dict(state_dict)
    wanted = ('latents', 'layers.0.self_attn.q_proj.weight', 'layers.0.self_attn.k_proj.weight')
    missing = [name for name in (*wanted, 'layers.0.mlp.gate_proj.weight') if name not in state]
    if missing:
        raise ValueError(f'the state dict holds no resampler of Idefics2: {missing[0]} is missing')
    latents, q, k, gate = (state[name] for name in (*wanted, 'layers.0.mlp.gate_proj.weight'))
    if len(q) % head_dim or len(k) % head_dim:
        raise ValueError(
            f'`head_dim={head_dim}` does not divide the {len(q)} and {len(k)} channels of queries and keys'
        )
    options: Dict[str, Any] = dict(norm_layer='rmsnorm', mlp_layer='swiglu', bias=False, attend_latents=True)
    config = LatentPoolConfig(
        num_latents=len(latents),
        depth=1 + max(int(found[1]) for found in (re.match(r'layers\.(\d+)\.', name) for name in state) if found),
        num_heads=len(q) // head_dim,
        num_kv_heads=len(k) // head_dim,
        head_dim=head_dim,
        mlp_ratio=len(gate) / latents.shape[1],
        pool_type='',
        **options,
    )
    pool = LatentPool(latents.shape[1], config, device=latents.device, dtype=latents.dtype)
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    differing = sorted(pool.state_dict().keys() ^ renamed.keys())
    if differing:
        raise ValueError(f'the state dict holds no resampler of Idefics2 alone: {differing[0]} does not fit')
    pool.load_state_dict(renamed)
    return pool
