"""Batches of images of different sizes, as timm's NaFlex loader makes them: patches with coordinates and a mask."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, NamedTuple, Sequence, Tuple

import torch
from timm.layers import PatchEmbedInterpolator, _assert

from ..fourier import fourier_features

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

    def fourier_features(self, axis: int, num_bands: int, max_resolution: float, gather: bool) -> torch.Tensor:
        """Fourier features (B, N, 2 · num_bands + 1) of the rows (axis 0) or columns (1), over the grid of each image.

        As `fourier_table` has them for an image of that size: in float64, rounded once to float32 if patches are not
        float64 themselves. With `gather` each row and column is computed once, which takes their number off the device.
        """
        device = self.patches.device
        exact = torch.float32 if device.type == 'mps' else torch.float64
        coord = self.coord[..., axis].masked_fill(~self.valid, 0)  # (B, N)
        last = coord.amax(1, keepdim=True)
        places = coord
        if gather and device.type == 'cpu' and coord.numel():
            places = torch.arange(int(last.amax()) + 1, device=device).expand(coord.shape[0], -1)
        features = fourier_features(places.to(exact) * 2 / last.clamp(min=1) - 1, num_bands, max_resolution)
        features = features.to(torch.float64 if self.patches.dtype == torch.float64 else torch.float32)
        if places is coord:
            return features
        return features[torch.arange(coord.shape[0], device=device).unsqueeze(1), coord]


def naflex_batch(x: Any, mask: Any, in_chans: int, patch_size: Sequence[int]) -> NaFlexBatch:
    """What a model is called with, checked.

    Args:
        x: `patches`, flat (B, N, height · width · channels) if they have the model's size, or (B, N, height, width,
            channels); `patch_coord` and `patch_valid`, as in `NaFlexBatch`. Other keys do not count. Channels are last,
            as in timm's default: the flat patches of `--naflex-patchify-channels-first` look the same.
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
    for key in KEYS:
        _assert(isinstance(x[key], torch.Tensor), f'{key} must be a tensor, got {type(x[key]).__name__}.')
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
        patches.ndim == 5 and patches.shape[4] == in_chans and min(patches.shape[2:4]) > 0,
        f'Patches must be (batch, number, height, width, {in_chans}), channels last, got {tuple(patches.shape)}.',
    )
    _assert(patches.shape[1] > 0, 'A NaFlex batch without patches has nothing to attend to.')
    whole = not coord.is_floating_point() and coord.dtype != torch.bool
    _check('patch_coord', coord, (*patches.shape[:2], 2), whole, 'whole numbers')
    _check('patch_valid', valid, tuple(patches.shape[:2]), valid.dtype == torch.bool, 'boolean')
    return NaFlexBatch(patches, coord, valid)


def _check(name: str, tensor: torch.Tensor, shape: Tuple[int, ...], of_dtype: bool, words: str) -> None:
    _assert(
        tuple(tensor.shape) == shape and of_dtype,
        f'{name} must be {words} {shape}, got {tensor.dtype} {tuple(tensor.shape)}.',
    )


_matrices: Dict[Tuple[int, int, int, int, torch.device], torch.Tensor] = {}


def resize_matrix(height: int, width: int, to_height: int, to_width: int, device: torch.device) -> torch.Tensor:
    """The matrix (pixels of the new size, pixels of the old), float32, that resizes patches.

    It is the pseudo-inverse of timm's bicubic resizing from the new size to the old: the product of a weight for the
    new size with a resized patch is that of the resampled weight with the patch (arXiv:2212.08013 section 3.4).
    Matrices are kept, and compiled and exported programs hold them as constants.
    """
    key = height, width, to_height, to_width, device
    if key not in _matrices:
        with ThreadPoolExecutor(
            1
        ) as alone:  # in a thread no mode of the caller holds: autocast, inference, fake tensors
            _matrices[key] = alone.submit(_resize_matrix, *key).result()
    return _matrices[key]


resize_matrix._dynamo_marked_constant = True  # what torch.compiler.assume_constant_result sets, importing the compiler


def _resize_matrix(height: int, width: int, to_height: int, to_width: int, device: torch.device) -> torch.Tensor:
    pixels = torch.eye(to_height * to_width, dtype=torch.float32)  # weights that each read one of them
    interpolator = PatchEmbedInterpolator((to_height, to_width), in_chans=1, embed_dim=len(pixels))
    with torch.no_grad():
        return interpolator.resample_linear_weight(pixels, (height, width)).to(device, torch.float32)
