"""Fourier features of positions."""

from typing import Dict, List, Tuple

import torch

_CACHE_SIZE = 64
_cache: Dict[Tuple[int, int, float, torch.device, torch.dtype], torch.Tensor] = {}


def fourier_features(pos: torch.Tensor, num_bands: int, max_resolution: float) -> torch.Tensor:
    """Sines and cosines of positions at linearly spaced frequencies, then the positions themselves.

    Source: arXiv:2103.03206 section 3.2; `position_encoding.py` of google-deepmind/deepmind-research at 9176a9f, whose
    channels are in another order: there all positions, then all sines, then all cosines of all axes.

    Args:
        pos: Positions (…), from −1 to 1 over the extent of the axis.
        num_bands: Number of frequencies K, from 1 to `max_resolution / 2`.
        max_resolution: Samples per axis that the highest frequency can still resolve.

    Returns:
        (…, 2 K + 1): sin(π f₁ p) …, cos(π f₁ p) …, p.
    """
    bands = torch.linspace(1.0, max_resolution / 2, num_bands, device=pos.device, dtype=pos.dtype)
    angles = torch.pi * pos.unsqueeze(-1) * bands
    return torch.cat([angles.sin(), angles.cos(), pos.unsqueeze(-1)], dim=-1)


def fourier_table(
    size: int, num_bands: int, max_resolution: float, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Fourier features of evenly spaced positions along one axis.

    Computed in float64 and rounded once: in half precision the angles themselves would be wrong by up to a radian.
    Tables of recent sizes are kept.

    Args:
        size: Positions S along the axis.
        num_bands: As in `fourier_features`.
        max_resolution: As in `fourier_features`.
        device: Device of the table.
        dtype: Dtype of the model; the table is float64 for float64 and float32 for everything else.

    Returns:
        (S, 2 K + 1), not to be changed in place.
    """
    if dtype != torch.float64:
        dtype = torch.float32
    if torch.jit.is_scripting():
        return _table(size, num_bands, max_resolution, device, dtype)
    else:
        key = (size, num_bands, max_resolution, device, dtype)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return _table(*key)
        if key not in _cache:
            with torch.inference_mode(False):  # what is kept must serve training too
                table = _table(*key)
            if type(table) is not torch.Tensor:  # a tracer's stand-in
                return table
            while len(_cache) >= _CACHE_SIZE:
                _cache.pop(next(iter(_cache)))
            _cache[key] = table
        return _cache[key]


def _table(size: int, num_bands: int, max_resolution: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    exact = torch.float32 if device.type == 'mps' else torch.float64
    pos = torch.arange(size, device=device, dtype=exact) * 2 / max(size - 1, 1) - 1  # linspace, for symbolic sizes too
    return fourier_features(pos, num_bands, max_resolution).to(dtype)


def grid_tokens(content: torch.Tensor, axes: List[torch.Tensor]) -> torch.Tensor:
    """Tokens of a grid: content and the position features of all axes side by side.

    Args:
        content: (B, c, *spatial).
        axes: One table (Sᵢ, Fᵢ) per spatial axis.

    Returns:
        (B, N, c + ΣFᵢ) in the dtype of content, row by row.
    """
    tokens = content.flatten(2).transpose(1, 2)  # (B, N, c)
    B, N = tokens.shape[:2]
    parts = [tokens]
    outer = 1
    for i, table in enumerate(axes):
        S, F = content.shape[i + 2], table.shape[1]
        inner = 1  # not N // outer // S, which no export with open sizes knows to be whole
        for size in content.shape[i + 3 :]:
            inner = inner * size
        table = table.to(content.dtype).view(1, S, 1, F).expand(outer, S, inner, F)
        parts.append(table.reshape(1, N, F).expand(B, N, F))
        outer = outer * S
    return torch.cat(parts, dim=2)
