"""Stems of the Perceiver: what prepares inputs for cross-attention, one class for each value of the argument `stem`.

Source: `io_processors.py` of google-deepmind/deepmind-research at 9176a9f.
"""

import inspect
from typing import Any, Dict

from ..positions import Positions
from .grid import Conv1x1Stem, ConvStem, FramesStem, GridStem, PatchEmbedStem, PatchStem, PixelStem
from .stem import Size, Stem
from .tokens import PointStem, TokenStem

__all__ = [
    'STEMS',
    'STEM_OPTIONS',
    'Conv1x1Stem',
    'ConvStem',
    'FramesStem',
    'GridStem',
    'PatchEmbedStem',
    'PatchStem',
    'PixelStem',
    'PointStem',
    'Stem',
    'TokenStem',
    'build_stem',
]

# A new stem has its class beside this file and in this list, and its own arguments in `Perceiver.__init__` with the
# same defaults (`build_stem` compares them) and in `options` there.
STEMS = {
    cls.kind: cls
    for cls in (PixelStem, Conv1x1Stem, ConvStem, PatchStem, PatchEmbedStem, FramesStem, PointStem, TokenStem)
}
_PARAMETERS = {kind: inspect.signature(cls).parameters for kind, cls in STEMS.items()}
_DEFAULTS = {name: p.default for parameters in _PARAMETERS.values() for name, p in parameters.items()}
_COMMON = {*inspect.signature(Stem).parameters, 'same_padding', 'device', 'dtype'}
STEM_OPTIONS = {kind: set(parameters) - _COMMON for kind, parameters in _PARAMETERS.items()}  # arguments of its own


def build_stem(
    kind: str,
    img_size: Size,
    in_chans: int,
    positions: Positions,
    *,
    options: Dict[str, Any],
    same_padding: bool = True,
    device=None,
    dtype=None,
) -> Stem:
    """The stem of a kind.

    Args:
        kind: Key of `STEMS`.
        img_size: As in `Stem`, like `in_chans` and `positions`.
        in_chans: Likewise.
        positions: Likewise.
        options: Arguments that some stems take.
        same_padding: As in `ConvStem`.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Returns:
        The stem.

    Raises:
        ValueError: The kind is unknown, does not take an option that is set, or refuses an argument.
    """
    if kind not in STEMS:
        raise ValueError(f'stem must be one of {tuple(STEMS)}, got {kind!r}')
    takes = _PARAMETERS[kind]
    for name, value in options.items():
        if name not in takes and value and value != _DEFAULTS[name]:
            raise ValueError(f'stem={kind!r} takes no {name}, got {value!r}')
    if 'stem_chs' in takes and options.get('stem_chs', 1) < 1:
        raise ValueError(f'stem_chs must be at least 1, got {options["stem_chs"]}')
    given = {k: v for k, v in dict(options, same_padding=same_padding).items() if k in takes}
    return STEMS[kind](img_size, in_chans, positions, **given, device=device, dtype=dtype)
