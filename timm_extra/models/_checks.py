"""Arguments that several models refuse in the same words."""

from numbers import Integral
from typing import Sequence, Tuple, Union

from timm.layers import to_2tuple


def checked_size(img_size: Union[int, Tuple[int, int]], patch_size: int) -> Tuple[int, int]:
    """Height and width in pixels.

    Raises:
        ValueError: They are no positive multiples of the patch size.
    """
    if not isinstance(patch_size, Integral) or patch_size < 1:
        raise ValueError(f'patch_size must be a positive integer, got {patch_size!r}')
    height, width = to_2tuple(img_size)
    if not isinstance(height, Integral) or not isinstance(width, Integral):
        raise ValueError(f'img_size must be whole pixels, got {img_size!r}')
    if min(height, width) < patch_size or height % patch_size or width % patch_size:
        raise ValueError(f'img_size must be a positive multiple of patch_size {patch_size}, got {height}×{width}')
    return int(height), int(width)


def checked_pool(global_pool: str, choices: Sequence[str]) -> str:
    """The pooling.

    Raises:
        ValueError: It is none of the choices.
    """
    if global_pool not in choices:
        *first, last = map(repr, choices)
        raise ValueError(f'global_pool must be {", ".join(first)} or {last}, got {global_pool!r}')
    return global_pool
