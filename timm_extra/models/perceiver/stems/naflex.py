"""Batches of images of different sizes, as timm's NaFlex loader makes them: patches, their places, which are there."""

from functools import lru_cache
from typing import Any, NamedTuple, Sequence, Tuple

import torch
from timm.layers import PatchEmbedInterpolator, _assert

KEYS = ('patches', 'patch_coord', 'patch_valid')


class NaFlexBatch(NamedTuple):
    """Patches of B images, padded to the number N of the largest.

    Attributes:
        patches: (B, N, height, width, channels).
        coord: Row and column of each patch in the grid of its own image (B, N, 2), whole numbers.
        valid: Boolean (B, N), False for padding.
    """

    patches: torch.Tensor
    coord: torch.Tensor
    valid: torch.Tensor

    def positions(self, exact: torch.dtype) -> torch.Tensor:
        """Row and column (B, N, 2), from −1 to 1 over the grid of each image; as `fourier_table` has them."""
        coord = self.coord.masked_fill(~self.valid.unsqueeze(-1), 0)
        last = coord.amax(1, keepdim=True).clamp(min=1)  # of each image and axis
        return coord.to(exact) * 2 / last - 1


def naflex_batch(x: Any, mask: Any, in_chans: int, patch_size: Sequence[int]) -> NaFlexBatch:
    """What a model is called with, checked.

    Args:
        x: `patches`, flat (B, N, height · width · channels) if they have the model's size, or (B, N, height, width,
            channels); `patch_coord` and `patch_valid`, as in `NaFlexBatch`. Other keys do not count.
        mask: Must be None: a batch has its own.
        in_chans: Channels of the model's inputs.
        patch_size: Height and width of the model's patches.

    Returns:
        The batch.

    Raises:
        AssertionError: It has not these keys, or shapes and dtypes do not fit.
    """
    _assert(
        isinstance(x, dict) and set(KEYS) <= set(x),
        f'Input must be a tensor, or a NaFlex batch with {", ".join(KEYS)}, got '
        f'{sorted(map(str, x)) if isinstance(x, dict) else type(x).__name__}.',
    )
    _assert(mask is None, 'The mask of a NaFlex batch is its patch_valid: pass no other.')
    patches, coord, valid = (x[key] for key in KEYS)
    flat = (*patch_size, in_chans)
    if patches.ndim == 3:
        numbers = flat[0] * flat[1] * in_chans
        _assert(
            patches.shape[2] == numbers,
            f'Flat patches have {patches.shape[2]} numbers, those of {flat[0]} × {flat[1]} pixels of {in_chans} '
            f'channels {numbers}: of other sizes they must be (batch, number, height, width, channels).',
        )
        patches = patches.unflatten(2, flat)
    _assert(
        patches.ndim == 5 and patches.shape[4] == in_chans,
        f'Patches must be (batch, number, height, width, {in_chans}), got {tuple(patches.shape)}.',
    )
    _assert(patches.shape[1] > 0, 'A NaFlex batch without patches has nothing to attend to.')
    _check('patch_coord', coord, (*patches.shape[:2], 2), not coord.is_floating_point(), 'whole numbers')
    _check('patch_valid', valid, tuple(patches.shape[:2]), valid.dtype == torch.bool, 'boolean')
    return NaFlexBatch(patches, coord, valid)


def _check(name: str, tensor: torch.Tensor, shape: Tuple[int, ...], of_dtype: bool, words: str) -> None:
    _assert(
        tuple(tensor.shape) == shape and of_dtype,
        f'{name} must be {words} {shape}, got {tensor.dtype} {tuple(tensor.shape)}.',
    )


@lru_cache(maxsize=32)
def enlargement(size: Tuple[int, int], to: Tuple[int, int]) -> torch.Tensor:
    """The matrix (pixels of `to`, pixels of `size`), float32, that brings patches to another size.

    The pseudo-inverse of timm's bicubic resizing from `to` to `size`: the scalar product of a weight for patches of
    `to` with an enlarged patch is that of the resampled weight with the patch.
    """
    with torch.inference_mode(False), torch.no_grad():
        pixels = torch.eye(to[0] * to[1])  # weights that each read one of them
        interpolator = PatchEmbedInterpolator(to, in_chans=1, embed_dim=len(pixels))
        return interpolator.resample_linear_weight(pixels, size)
