"""Stems of inputs on a grid: audio, images, video, pairs of frames."""

import math
from operator import index
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from timm.layers import _assert
from torch import nn

from timm_extra.layers.shortcuts import may_shortcut

from ..cross_attention import Inputs, flat_mask
from ..fourier import fourier_table
from ..positions import Positions
from .naflex import naflex_batch, resize_matrix
from .stem import Size, Stem


def checked_patch_size(patch_size: Size, axes: int, kind: str) -> Tuple[int, ...]:
    """A positive number for each axis."""
    sizes = tuple(patch_size) if isinstance(patch_size, Sequence) else (patch_size,) * axes
    if len(sizes) != axes or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(
            f'patch_size must be one positive whole number for each of {axes} axes with stem={kind!r}, '
            f'got {patch_size!r}'
        )
    return sizes


class GridStem(Stem):
    """Base of stems for inputs on a grid: audio, images, video. Arguments as in `PixelStem`."""

    def __init__(self, img_size: Size, in_chans: int, positions: Positions, grey_chans: int = 0):
        super().__init__(img_size, in_chans, positions)
        if grey_chans and in_chans != 1:
            raise ValueError(f'grey_chans repeats one channel, got in_chans={in_chans}')
        self.grey_chans = grey_chans
        self.content_chans = grey_chans or in_chans
        self.num_frames = 1  # that stand beside each other in the channels of a token

    def _check_images(self) -> None:
        if self.num_axes != 2:
            raise ValueError(f'stem={self.kind!r} is for images, got an img_size of {self.num_axes} numbers')

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> Tuple[Inputs, List[int]]:
        """Prepare inputs for cross-attention.

        Args:
            x: (B, in_chans, *spatial); with one axis also (B, in_chans, 1, samples), as timm's image shapes need it.
                For 'frames' (B, in_chans, num_frames, height, width), an image if there is one alone. Images may be a
                NaFlex batch, as `naflex_batch` checks it, where tokens are patches with Fourier features.
            mask: Boolean (B, *grid), True where an input takes part.

        Returns:
            What `CrossAttention` takes, and the sizes of the grid; of a NaFlex batch the number of patches.

        Raises:
            AssertionError: Rank, channels or size of the input, or the mask, are not what the model takes.
        """
        if not torch.jit.is_scripting() and not isinstance(x, torch.Tensor):
            return self._of_patches(x, mask)
        if self.num_axes == 1 and x.ndim == 4 and x.shape[2] == 1:
            x = x.squeeze(2)
        if self.num_frames > 1:
            _assert(x.ndim == 5, f'Input must be (batch, channels, frames, height, width), got {x.ndim} dimensions.')
            _assert(x.shape[2] == self.num_frames, f'Input has {x.shape[2]} frames, model takes {self.num_frames}.')
        else:
            _assert(
                x.ndim == self.num_axes + 2,
                f'Input must be (batch, channels, {self.num_axes} spatial axes), got {x.ndim} dimensions.',
            )
        _assert(x.shape[1] == self.in_chans, f'Input has {x.shape[1]} channels, model takes {self.in_chans}.')
        _assert(x[:1, :1].numel() > 0 or x.shape[0] == 0, 'Input has an empty spatial axis.')
        if self.grey_chans > 0:
            x = x.repeat_interleave(self.grey_chans, dim=1)
        x = self._content(x)  # (B, c, *grid)
        grid: List[int] = list(x.shape[2:])
        axes: List[torch.Tensor] = []
        if self.pos_embed_type == 'fourier':
            for i, resolution in enumerate(self.max_resolution):
                axes.append(fourier_table(x.shape[i + 2], self.num_bands, resolution, x.device, x.dtype))
        else:
            x = self._with_learned(x)
        return Inputs(x, axes, flat_mask(mask, x.shape[0], grid)), grid

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (B, c, *spatial) to content (B, c′, *grid)."""
        return x

    @torch.jit.unused
    def _of_patches(self, x: Dict[str, torch.Tensor], mask: Optional[torch.Tensor]) -> Tuple[Inputs, List[int]]:
        """`forward` of a NaFlex batch. A token is what it would be in its image alone."""
        batch = naflex_batch(x, mask, self.in_chans, self.naflex_patch_size())
        patches = batch.patches
        if self.grey_chans > 0:
            patches = patches.repeat_interleave(self.grey_chans, dim=4)
        content = self._embedded(patches)  # (B, N, c)
        parts = [content]
        gather = may_shortcut(self) and not torch.compiler.is_compiling()
        for i, resolution in enumerate(self.max_resolution):
            features = batch.fourier_features(i, self.num_bands, resolution, gather)
            parts.append(features.to(content.dtype))
        no_axes: List[torch.Tensor] = []
        return Inputs(torch.cat(parts, dim=2), no_axes, batch.valid), [content.shape[1]]

    def _embedded(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches (B, N, height, width, channels) to content (B, N, c)."""
        _assert(
            tuple(patches.shape[2:4]) == self.patch_size,
            f'Patches are {tuple(patches.shape[2:4])}, stem={self.kind!r} takes only its own size {self.patch_size}; '
            "stem='patch_embed' takes any.",
        )
        return patches.flatten(2)


class PixelStem(GridStem):
    """Inputs as they are.

    Args:
        img_size: (samples,), (height, width) or (frames, height, width); a single number is a square image.
        in_chans: Channels of the inputs.
        positions: How positions are encoded.
        grey_chans: Repeat a single input channel to that many; 0 to take it as it is.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    kind = 'pixels'

    def __init__(
        self, img_size: Size, in_chans: int, positions: Positions, grey_chans: int = 0, device=None, dtype=None
    ):
        super().__init__(img_size, in_chans, positions, grey_chans)
        self.patch_size = (1,) * self.num_axes
        self._set_size(img_size)
        self._add_positions(self.content_chans, positions, device=device, dtype=dtype)


class Conv1x1Stem(GridStem):
    """A linear map of each input's channels.

    Args:
        img_size, in_chans, positions, grey_chans, device, dtype: As in `PixelStem`.
        stem_chs: Channels after the map.
    """

    kind = 'conv1x1'
    first_conv = 'stem.conv'

    def __init__(
        self,
        img_size: Size,
        in_chans: int,
        positions: Positions,
        grey_chans: int = 0,
        stem_chs: int = 64,
        device=None,
        dtype=None,
    ):
        super().__init__(img_size, in_chans, positions, grey_chans)
        dd = {'device': device, 'dtype': dtype}
        self._set_size(img_size)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.num_axes - 1]
        self.conv = convolution(self.content_chans, stem_chs, 1, **dd)
        self._add_positions(stem_chs, positions, **dd)

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class ConvStem(GridStem):
    """7×7 convolution, BatchNorm, ReLU and max-pooling of images, to a quarter of their height and width.

    Args:
        img_size, in_chans, positions, grey_chans, device, dtype: As in `PixelStem`.
        stem_chs: Channels of the convolution.
        same_padding: Pad convolution and pooling as TensorFlow's SAME does, which depends on the size; otherwise by 3
            on each side and not at all.

    Raises:
        ValueError: Inputs have other than two axes.
    """

    kind = 'conv'
    first_conv = 'stem.conv'

    def __init__(
        self,
        img_size: Size,
        in_chans: int,
        positions: Positions,
        grey_chans: int = 0,
        stem_chs: int = 64,
        same_padding: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__(img_size, in_chans, positions, grey_chans)
        dd = {'device': device, 'dtype': dtype}
        self._check_images()
        self.same_padding = same_padding
        self._set_size(img_size)
        self.conv = nn.Conv2d(self.content_chans, stem_chs, 7, stride=2, padding=0, bias=False, **dd)
        self.bn = nn.BatchNorm2d(stem_chs, **dd)
        self._add_positions(stem_chs, positions, **dd)

    def grid_of(self, img_size: Sequence[int]) -> Tuple[int, ...]:
        """Sizes of the grid of tokens for inputs of these sizes."""
        if self.same_padding:
            return tuple((s + 3) // 4 for s in img_size)
        return tuple(((s - 1) // 2 + 1 - 3) // 2 + 1 for s in img_size)

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(self._pad(x, 7, 3, 0.0))))
        return F.max_pool2d(self._pad(x, 3, 0, -float('inf')), 3, stride=2)

    def _pad(self, x: torch.Tensor, kernel: int, fixed: int, value: float) -> torch.Tensor:
        """Pad maps (B, C, height, width) for a kernel at stride 2: as SAME does, or by a fixed number on each side."""
        if not self.same_padding:
            return F.pad(x, (fixed, fixed, fixed, fixed), value=value)
        pad: List[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = kernel - 2 + size % 2
            pad += [total // 2, total - total // 2]
        return F.pad(x, pad, value=value)


class PatchStem(GridStem):
    """Blocks of inputs as channels.

    Args:
        img_size, in_chans, positions, grey_chans, device, dtype: As in `PixelStem`.
        patch_size: Inputs per patch along each axis, or along all.

    Raises:
        ValueError: Patches are not of one positive number per axis, or `img_size` is no multiple of them.
    """

    kind = 'patches'

    def __init__(
        self,
        img_size: Size,
        in_chans: int,
        positions: Positions,
        grey_chans: int = 0,
        patch_size: Size = (),
        device=None,
        dtype=None,
    ):
        super().__init__(img_size, in_chans, positions, grey_chans)
        axes = self.num_axes
        self.patch_size = checked_patch_size(patch_size, axes, self.kind)
        self._set_size(img_size)
        names = 'thw'[-axes:]
        before = ' '.join(f'({a} p{a})' for a in names)
        self.fold = Rearrange(
            f'b c {before} -> b ({" ".join(f"p{a}" for a in names)} c) {" ".join(names)}',
            **{f'p{a}': p for a, p in zip(names, self.patch_size, strict=True)},
        )
        content = self.content_chans * math.prod(self.patch_size)
        self._add_positions(content, positions, device=device, dtype=dtype)

    def _checked(self, sizes: Tuple[int, ...]) -> Tuple[int, ...]:
        sizes = super()._checked(sizes)
        if any(s % p for s, p in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(f'img_size must be multiples of patch_size {self.patch_size}, got {sizes}')
        return sizes

    def grid_of(self, img_size: Sequence[int]) -> Tuple[int, ...]:
        """Sizes of the grid of tokens for inputs of these sizes."""
        return tuple(s // p for s, p in zip(img_size, self.patch_size, strict=True))

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        for i, p in enumerate(self.patch_size):
            _assert(x.shape[i + 2] % p == 0, f'Input size ({x.shape[i + 2]}) should be divisible by patch ({p}).')
        return self.fold(x)


class PatchEmbedStem(GridStem):
    """Patches mapped linearly, as in timm's ViTs; those of other sizes than the model's are resized to it.

    Images are padded with zeros at the bottom and on the right to whole patches. A patch of another size is resized by
    `resize_matrix`, which is the same as to resample the weights for it, as FlexiViT and timm's NaFlexViT do.

    Args:
        img_size, in_chans, positions, device, dtype: As in `PixelStem`.
        stem_chs: Channels after the map.
        patch_size: Height and width of a patch, or one number for both.

    Raises:
        ValueError: Inputs have other than two axes, or patches are not of one positive number for each.
    """

    kind = 'patch_embed'
    allowed_pos_embeds = ('fourier',)

    def __init__(
        self,
        img_size: Size,
        in_chans: int,
        positions: Positions,
        stem_chs: int = 64,
        patch_size: Size = (),
        device=None,
        dtype=None,
    ):
        super().__init__(img_size, in_chans, positions)
        dd = {'device': device, 'dtype': dtype}
        self._check_images()
        self.patch_size = checked_patch_size(patch_size, self.num_axes, self.kind)
        self._set_size(img_size)
        height, width = self.patch_size
        self.fold = Rearrange('b c (h ph) (w pw) -> b h w (ph pw c)', ph=height, pw=width)
        self.proj = nn.Linear(math.prod(self.patch_size) * in_chans, stem_chs, **dd)
        self._add_positions(stem_chs, positions, **dd)

    def grid_of(self, img_size: Sequence[int]) -> Tuple[int, ...]:
        """Sizes of the grid of tokens for inputs of these sizes."""
        return tuple((s + p - 1) // p for s, p in zip(img_size, self.patch_size, strict=True))

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        height, width = self.patch_size
        rows, columns = (x.shape[2] + height - 1) // height, (x.shape[3] + width - 1) // width
        x = F.pad(x, (0, columns * width - x.shape[3], 0, rows * height - x.shape[2]))
        return self.proj(self.fold(x)).permute(0, 3, 1, 2)

    def _embedded(self, patches: torch.Tensor) -> torch.Tensor:
        size = index(patches.shape[2]), index(patches.shape[3])  # numbers, where a compiler may have symbols
        if size != self.patch_size:
            matrix = resize_matrix(*size, *self.patch_size, patches.device).to(patches.dtype)
            patches = matrix @ patches.flatten(2, 3)  # (B, N, pixels, channels)
        return self.proj(patches.flatten(2))


class FramesStem(GridStem):
    """Neighbourhoods of 3×3 pixels in all frames side by side, mapped linearly: a token for each pixel.

    Args:
        img_size, in_chans, positions, grey_chans, device, dtype: As in `PixelStem`; `img_size` is of one frame, with or
            without the number of frames before it.
        stem_chs: Channels after the map.
        num_frames: Frames of an input; with 1 inputs are images.

    Raises:
        ValueError: Inputs have other than two axes, or there are no frames.
    """

    kind = 'frames'  # weights for other channels are adapted by the checkpoint filter: timm knows of no frames

    def __init__(
        self,
        img_size: Size,
        in_chans: int,
        positions: Positions,
        grey_chans: int = 0,
        stem_chs: int = 64,
        num_frames: int = 2,
        device=None,
        dtype=None,
    ):
        super().__init__(img_size, in_chans, positions, grey_chans)
        dd = {'device': device, 'dtype': dtype}
        self._check_images()
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}')
        if isinstance(img_size, Sequence) and len(img_size) == 3 and img_size[0] != num_frames:
            raise ValueError(f'img_size {tuple(img_size)} has another number of frames than num_frames={num_frames}')
        self.num_frames = num_frames
        self._set_size(img_size)
        self.conv = nn.Conv2d(num_frames * self.content_chans, stem_chs, 3, padding=1, **dd)
        self._add_positions(stem_chs, positions, **dd)

    @classmethod
    def sizes(cls, img_size: Size) -> Tuple[int, ...]:
        """Height and width: a single number is of a square, three have the number of frames before them."""
        sizes = super().sizes(img_size)
        return sizes[1:] if len(sizes) == 3 else sizes

    def input_size(self) -> Tuple[int, ...]:
        """Shape of one input of the nominal size, without the batch."""
        frames = (self.num_frames,) if self.num_frames > 1 else ()
        return (self.in_chans, *frames, *self.img_size)

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        if self.num_frames > 1:
            x = x.transpose(1, 2).flatten(1, 2)  # (B, T·C, height, width), frame by frame
        if not torch.jit.is_scripting():
            x = self._laid_out(x)
        return self.conv(x)

    @torch.jit.unused
    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """The same in the layout from which the convolution makes tokens side by side, without a copy of them."""
        return x.contiguous(memory_format=torch.channels_last) if may_shortcut(self.conv) else x
