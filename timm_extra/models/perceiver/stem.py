"""Stems of the Perceiver: what prepares inputs for cross-attention, one class for each value of the argument `stem`.

Source: `io_processors.py` of google-deepmind/deepmind-research at 9176a9f.
"""

import inspect
import math
from typing import Any, Dict, Final, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from timm.layers import _assert, is_exporting, register_notrace_module, trunc_normal_
from torch import nn

from timm_extra.layers.shortcuts import may_shortcut, shared

from .cross_attention import Inputs, flat_mask
from .fourier import fourier_features, fourier_table
from .positions import POSITIONS, Positions, checked_resolution, resample_positions

Size = Union[int, Sequence[int]]


@register_notrace_module  # tables depend on shapes
class Stem(nn.Module):
    """Base of all stems: sizes and positions. A subclass ends its construction with `_set_size` and `_add_positions`.

    Args:
        img_size: Number per spatial axis; a single one as in `sizes`.
        in_chans: Channels of the inputs.
        positions: How positions are encoded.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    pos_embed_type: Final[str]
    num_axes: Final[int]
    max_resolution: List[float]

    kind = ''  # its name in the argument `stem`, and its key in `STEMS`
    allowed_pos_embeds = POSITIONS
    default_axes = 2  # number of axes where img_size is a single number
    first_conv = ''  # name of the layer that timm adapts to another number of channels, within the model

    def __init__(self, img_size: Size, in_chans: int, positions: Positions):
        super().__init__()
        pos_embed = positions.pos_embed
        if pos_embed not in POSITIONS:
            raise ValueError(f'pos_embed must be one of {POSITIONS}, got {pos_embed!r}')
        if pos_embed not in self.allowed_pos_embeds:
            words = ' or '.join(map(repr, self.allowed_pos_embeds))
            raise ValueError(f'stem={self.kind!r} takes pos_embed={words}, got {pos_embed!r}')
        if pos_embed == 'fourier' and positions.num_bands < 1:
            raise ValueError(f'num_bands must be at least 1, got {positions.num_bands}')
        if in_chans < 1:
            raise ValueError(f'in_chans must be at least 1, got {in_chans}')
        self.num_axes = len(self.sizes(img_size))
        if not 1 <= self.num_axes <= 3:
            raise ValueError(f'img_size must have 1 to 3 numbers, got {self.num_axes}')
        self.in_chans = in_chans
        self.pos_embed_type, self.num_bands = pos_embed, positions.num_bands
        self.dynamic_img_size = positions.dynamic_img_size

    @classmethod
    def sizes(cls, img_size: Size) -> Tuple[int, ...]:
        """A number for every axis: a single one is of a square image, or the number of points or tokens."""
        return tuple(img_size) if isinstance(img_size, Sequence) else (img_size,) * cls.default_axes

    def _set_size(self, img_size: Size) -> None:
        self.img_size = self._checked(self.sizes(img_size))
        self.grid_size = self.grid_of(self.img_size)

    def _checked(self, sizes: Tuple[int, ...]) -> Tuple[int, ...]:
        if len(sizes) != self.num_axes:
            raise ValueError(f'the input has {self.num_axes} axes, got sizes {sizes}')
        if not all(type(s) is int and s > 0 for s in sizes):
            raise ValueError(f'img_size must be positive whole numbers, got {sizes}')
        return sizes

    def _add_positions(self, content: int, positions: Positions, **dd: Any) -> None:
        """Positions beside that many channels of content."""
        self.max_resolution: List[float] = []
        self.pos_embed, self.pos_proj = None, nn.Identity()
        width = 0
        if self.pos_embed_type == 'fourier':
            self.max_resolution = self._resolution(positions.max_resolution)
            width = len(self.max_resolution) * (2 * self.num_bands + 1)
        elif self.pos_embed_type == 'learned':
            width = positions.pos_dim
            self.pos_embed = nn.Parameter(torch.zeros(math.prod(self.grid_size), width, **dd))
            if positions.pos_proj_dim:
                self.pos_proj = nn.Linear(width, positions.pos_proj_dim, **dd)
                width = positions.pos_proj_dim
        self.out_chans = content + width

    def _resolution(self, given: Union[float, Sequence[float], None]) -> List[float]:
        return checked_resolution(self.grid_size if given is None else given, self.num_axes)

    def init_weights(self) -> None:
        """Re-initialise learned positions."""
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    def grid_of(self, img_size: Sequence[int]) -> Tuple[int, ...]:
        """Sizes of the grid of tokens for inputs of these sizes."""
        return tuple(img_size)

    def input_size(self) -> Tuple[int, ...]:
        """Shape of one input of the nominal size, without the batch."""
        return (self.in_chans, *self.img_size)

    def image_size(self) -> Tuple[int, ...]:
        """The same as the three numbers that timm's configurations have: of video a frame, samples as one row."""
        return (self.in_chans, *((1, *self.img_size)[-2:]))

    def traits(self) -> Dict[str, Any]:
        """What timm cannot see: the size of inputs that are no images, or of images with learned positions."""
        traits: Dict[str, Any] = dict(first_conv=self.first_conv) if self.first_conv else {}
        if len(self.input_size()) != 3:
            traits.update(input_size=self.input_size(), image_size=self.image_size())
        elif self.pos_embed is not None:
            traits.update(img_size=self.img_size, fixed_input_size=not self.dynamic_img_size)
        return traits

    def set_input_size(self, img_size: Sequence[int]) -> None:
        """Change the nominal size, resampling learned positions.

        Args:
            img_size: New sizes, one per spatial axis.

        Raises:
            ValueError: Sizes are not positive, or not multiples of the patch size.
        """
        sizes = self._checked(tuple(img_size))
        grid = self.grid_of(sizes)
        if self.pos_embed is not None and grid != self.grid_size:
            resized = resample_positions(self.pos_embed.detach(), list(self.grid_size), list(grid))
            self.pos_embed = nn.Parameter(resized.contiguous(), requires_grad=self.pos_embed.requires_grad)
        self.img_size, self.grid_size = sizes, grid

    def _with_learned(self, x: torch.Tensor) -> torch.Tensor:
        """Content (B, c, *grid) with learned positions, if any, as tokens (B, N, C)."""
        tokens = x.flatten(2).transpose(1, 2)
        pos = self.pos_embed
        if pos is None:
            return tokens
        grid = x.shape[2:]
        # an export that compared sizes would be bound to those of its example, as in timm's resample_abs_pos_embed
        if (self.dynamic_img_size and is_exporting()) or list(grid) != list(self.grid_size):
            _assert(
                self.dynamic_img_size,
                f'Input gives a grid of {list(grid)}, learned positions are for {list(self.grid_size)}: use '
                'dynamic_img_size=True or set_input_size().',
            )
            pos = resample_positions(pos, list(self.grid_size), list(grid))
        pos = pos.unsqueeze(0)  # once for all items of the batch
        if not torch.jit.is_scripting():
            pos = shared(pos, tokens.shape[0], self.pos_proj)
        pos = self.pos_proj(pos).to(x.dtype)
        return torch.cat([tokens, pos.expand(tokens.shape[0], -1, -1)], dim=2)


class GridStem(Stem):
    """Base of stems for inputs on a grid: audio, images, video. Arguments as in `PixelStem`."""

    def __init__(self, img_size: Size, in_chans: int, positions: Positions, grey_chans: int = 0):
        super().__init__(img_size, in_chans, positions)
        if grey_chans and in_chans != 1:
            raise ValueError(f'grey_chans repeats one channel, got in_chans={in_chans}')
        self.grey_chans = grey_chans
        self.content_chans = grey_chans or in_chans
        self.num_frames = 0  # that stand beside each other in the channels of a token

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> Tuple[Inputs, List[int]]:
        """Prepare inputs for cross-attention.

        Args:
            x: (B, in_chans, *spatial); with one axis also (B, in_chans, 1, samples), as timm's image shapes need it.
                For 'frames' (B, in_chans, num_frames, height, width).
            mask: Boolean (B, *grid), True where an input takes part.

        Returns:
            What `CrossAttention` takes, and the sizes of the grid.

        Raises:
            AssertionError: Rank, channels or size of the input, or the mask, are not what the model takes.
        """
        if self.num_axes == 1 and x.ndim == 4 and x.shape[2] == 1:
            x = x.squeeze(2)
        if self.num_frames > 0:
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
        if self.num_axes != 2:
            raise ValueError(f"stem='conv' is for images, got an img_size of {self.num_axes} numbers")
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
        self.patch_size = (patch_size,) * axes if isinstance(patch_size, int) else tuple(patch_size)
        if len(self.patch_size) != axes or min(self.patch_size) < 1:
            raise ValueError(
                f"patch_size must be one positive number for each of {axes} axes with stem='patches', got {patch_size}"
            )
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


class FramesStem(GridStem):
    """Neighbourhoods of 3×3 pixels in all frames side by side, mapped linearly: a token for each pixel.

    Args:
        img_size, in_chans, positions, grey_chans, device, dtype: As in `PixelStem`; `img_size` is of one frame, with or
            without the number of frames before it.
        stem_chs: Channels after the map.
        num_frames: Frames of an input.

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
        if self.num_axes != 2:
            raise ValueError(f"stem='frames' is for images, got an img_size of {self.num_axes} numbers")
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
        return (self.in_chans, self.num_frames, *self.img_size)

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2).flatten(1, 2)  # (B, T·C, height, width), frame by frame
        if not torch.jit.is_scripting() and may_shortcut(self.conv):
            x = x.contiguous(memory_format=torch.channels_last)  # tokens side by side, without a copy of the result
        return self.conv(x)


class TokenStem(Stem):
    """Finished tokens, with learned positions or none.

    Args:
        img_size: Number N of tokens, which is free without learned positions.
        in_chans: Channels of a token.
        positions: How positions are encoded.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `img_size` is not one number, or positions are of a kind that there is not.
    """

    kind = 'tokens'
    allowed_pos_embeds = ('learned', 'none')
    default_axes = 1

    def __init__(self, img_size: Size, in_chans: int, positions: Positions, device=None, dtype=None):
        super().__init__(img_size, in_chans, positions)
        if self.num_axes != 1:
            raise ValueError(f'stem={self.kind!r} needs an img_size of one number, got {self.num_axes}')
        self._set_size(img_size)
        self._add_positions(self._content_chans(), positions, device=device, dtype=dtype)

    def _content_chans(self) -> int:
        return self.in_chans

    def input_size(self) -> Tuple[int, ...]:
        """Shape of one input of the nominal size, without the batch."""
        return (*self.img_size, self.in_chans)

    def image_size(self) -> Tuple[int, ...]:
        """The same as the three numbers that timm's configurations have: tokens as one channel."""
        return (1, *self.img_size, self.in_chans)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> Tuple[Inputs, List[int]]:
        """Prepare inputs for cross-attention.

        Args:
            x: (B, N, in_chans), or (B, 1, N, in_chans) as timm's image shapes need it.
            mask: Boolean (B, N), True where an input takes part.

        Returns:
            What `CrossAttention` takes, and (N,).

        Raises:
            AssertionError: Rank, channels or number of the inputs, or the mask, are not what the model takes.
        """
        if x.ndim == 4 and x.shape[1] == 1:
            x = x.squeeze(1)
        _assert(x.ndim == 3, f'Input must be (batch, number, channels), got {x.ndim} dimensions.')
        _assert(x.shape[2] == self.in_chans, f'Input has {x.shape[2]} channels, model takes {self.in_chans}.')
        _assert(x.shape[1] > 0, 'Input has nothing in it to attend to.')
        no_axes: List[torch.Tensor] = []
        grid: List[int] = [x.shape[1]]
        x = self._tokens(x)
        return Inputs(x, no_axes, flat_mask(mask, x.shape[0], grid)), grid

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (B, N, in_chans) with their positions (B, N, C)."""
        return self._with_learned(x.transpose(1, 2))


class PointStem(TokenStem):
    """Points in no order: coordinates become Fourier features, further channels stay.

    Args:
        img_size: Nominal number N of points, which is free.
        in_chans: The 3 coordinates and further features together.
        positions: How positions are encoded.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: There are fewer than 3 channels, no `max_resolution`, or other than Fourier features.
    """

    kind = 'points'
    allowed_pos_embeds = ('fourier',)

    def _content_chans(self) -> int:
        if self.in_chans < 3:
            raise ValueError(f"stem='points' needs 3 coordinates among in_chans, got {self.in_chans}")
        return self.in_chans - 3

    def _resolution(self, given: Union[float, Sequence[float], None]) -> List[float]:
        if given is None:
            raise ValueError("stem='points' needs max_resolution: coordinates have no grid to take it from")
        return checked_resolution(given, 3)

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        position = x[:, :, :3].to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        features = [x[:, :, 3:]]
        for i, resolution in enumerate(self.max_resolution):
            features.append(fourier_features(position[:, :, i], self.num_bands, resolution).to(x.dtype))
        return torch.cat(features, dim=2)


# A new stem has its class above and in this list, and its own arguments in `Perceiver.__init__` with the same defaults
# (`build_stem` compares them) and in `options` there.
STEMS = {cls.kind: cls for cls in (PixelStem, Conv1x1Stem, ConvStem, PatchStem, FramesStem, PointStem, TokenStem)}
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
    given = {k: v for k, v in dict(options, same_padding=same_padding).items() if k in takes}
    return STEMS[kind](img_size, in_chans, positions, **given, device=device, dtype=dtype)
