"""What stands between the inputs of any modality and the Perceiver's cross-attention."""

import math
from typing import Final, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from timm.layers import _assert, register_notrace_module, trunc_normal_
from torch import nn

from .cross_attention import Inputs
from .fourier import fourier_features, fourier_table

STEMS = ('pixels', 'conv1x1', 'conv', 'patches', 'points', 'tokens')
POSITIONS = ('fourier', 'learned', 'none')


@register_notrace_module  # tables depend on shapes
class PerceiverStem(nn.Module):
    """Inputs to content and position features.

    Source: `io_processors.py` of google-deepmind/deepmind-research at 9176a9f.

    Args:
        input_shape: Sizes of the spatial axes: (samples,), (height, width), (frames, height, width), or (points,).
        in_chans: Channels of the inputs; for points the 3 coordinates and further features together.
        kind: 'pixels' (inputs as they are), 'conv1x1', 'conv' (7×7 convolution, BatchNorm, ReLU and max-pooling to a
            quarter, images only), 'patches' (blocks of inputs as channels), 'points' (coordinates and features, in no
            order) or 'tokens' (B, N, in_chans).
        pos_embed: 'fourier', 'learned' or 'none'.
        stem_chs: Channels of the convolution.
        patch_size: Inputs per patch along every axis, for 'patches'.
        num_bands: Frequencies of the Fourier features per axis.
        max_resolution: Samples per axis that the highest frequency can tell apart; the grid's own size when None.
        pos_dim: Channels of learned positions.
        pos_proj_dim: Project learned positions to that many channels; not at all when None.
        same_padding: Pad convolution and pooling as TensorFlow's SAME does, which depends on the size; otherwise by 3
            on each side and not at all.
        grey_chans: Repeat a single input channel to that many; 0 to take it as it is.
        dynamic_img_size: Accept other sizes than `input_shape` with learned positions, which are then resampled.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: Arguments are out of range or exclude each other; the message names them.
    """

    kind: Final[str]
    pos_embed_type: Final[str]
    num_axes: Final[int]
    max_resolution: List[float]

    def __init__(
        self,
        input_shape: Sequence[int],
        in_chans: int = 3,
        kind: str = 'pixels',
        pos_embed: str = 'fourier',
        stem_chs: int = 64,
        patch_size: Union[int, Sequence[int]] = (),
        num_bands: int = 64,
        max_resolution: Union[float, Sequence[float], None] = None,
        pos_dim: int = 256,
        pos_proj_dim: Optional[int] = None,
        same_padding: bool = True,
        grey_chans: int = 0,
        dynamic_img_size: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.kind, self.pos_embed_type, self.num_axes = kind, pos_embed, len(input_shape)
        self.in_chans, self.grey_chans = in_chans, grey_chans
        self.same_padding, self.dynamic_img_size = same_padding, dynamic_img_size
        self.patch_size = (patch_size,) * len(input_shape) if isinstance(patch_size, int) else tuple(patch_size)
        self.num_bands = num_bands
        self._check()
        self.input_shape = self._checked(input_shape)
        self.grid_size = self.grid_of(self.input_shape)

        content = grey_chans or in_chans
        self.conv, self.bn, self.fold = nn.Identity(), nn.Identity(), nn.Identity()
        if kind == 'conv1x1':
            kernel = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.num_axes - 1]
            self.conv = kernel(content, stem_chs, 1, **dd)
            content = stem_chs
        elif kind == 'conv':
            self.conv = nn.Conv2d(content, stem_chs, 7, stride=2, padding=0, bias=False, **dd)
            self.bn = nn.BatchNorm2d(stem_chs, **dd)
            content = stem_chs
        elif kind == 'patches':
            names = 'thw'[-self.num_axes :]
            before = ' '.join(f'({a} p{a})' for a in names)
            self.fold = Rearrange(
                f'b c {before} -> b ({" ".join(f"p{a}" for a in names)} c) {" ".join(names)}',
                **{f'p{a}': p for a, p in zip(names, self.patch_size, strict=True)},
            )
            content *= math.prod(self.patch_size)

        self.max_resolution = self._resolutions(max_resolution)
        self.pos_embed, self.pos_proj = None, nn.Identity()
        width = 0
        if pos_embed == 'fourier':
            width = len(self.max_resolution) * (2 * num_bands + 1)
            content -= 3 if kind == 'points' else 0  # coordinates enter as their features alone
        elif pos_embed == 'learned':
            self.pos_embed = nn.Parameter(torch.zeros(math.prod(self.grid_size), pos_dim, **dd))
            width = pos_dim
            if pos_proj_dim:
                self.pos_proj = nn.Linear(pos_dim, pos_proj_dim, **dd)
                width = pos_proj_dim
        self.out_chans = content + width

    def init_weights(self) -> None:
        """Draw learned positions anew."""
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    def _check(self) -> None:
        if self.kind not in STEMS:
            raise ValueError(f'stem must be one of {STEMS}, got {self.kind!r}')
        if self.pos_embed_type not in POSITIONS:
            raise ValueError(f'pos_embed must be one of {POSITIONS}, got {self.pos_embed_type!r}')
        if not 1 <= self.num_axes <= 3:
            raise ValueError(f'input_shape must have 1 to 3 axes, got {self.num_axes}')
        if self.in_chans < 1:
            raise ValueError(f'in_chans must be at least 1, got {self.in_chans}')
        if self.grey_chans and (self.in_chans != 1 or self.kind in ('points', 'tokens')):
            raise ValueError(f'grey_chans repeats one channel of a grid, got in_chans={self.in_chans} for {self.kind}')
        if self.kind == 'conv' and self.num_axes != 2:
            raise ValueError(f"stem='conv' is for images, got an input_shape of {self.num_axes} axes")
        if self.kind in ('points', 'tokens') and self.num_axes != 1:
            raise ValueError(f'stem={self.kind!r} needs an input_shape of one number, got {self.num_axes}')
        if self.kind == 'points' and (self.in_chans < 3 or self.pos_embed_type != 'fourier'):
            raise ValueError("stem='points' needs 3 coordinates among in_chans and pos_embed='fourier'")
        if (self.kind == 'patches') != bool(self.patch_size) or len(self.patch_size) not in (0, self.num_axes):
            raise ValueError(
                f"patch_size must be one number per axis with stem='patches' and empty otherwise, "
                f'got {self.patch_size} for {self.num_axes} axes and stem={self.kind!r}'
            )
        if any(p < 1 for p in self.patch_size):
            raise ValueError(f'patch_size must be positive, got {self.patch_size}')
        if self.pos_embed_type == 'fourier' and self.num_bands < 1:
            raise ValueError(f'num_bands must be at least 1, got {self.num_bands}')

    def _checked(self, input_shape: Sequence[int]) -> Tuple[int, ...]:
        shape = tuple(input_shape)
        if len(shape) != self.num_axes:
            raise ValueError(f'the input has {self.num_axes} axes, got sizes {shape}')
        if not all(type(s) is int and s > 0 for s in shape):
            raise ValueError(f'sizes of the input must be positive whole numbers, got {shape}')
        if any(s % p for s, p in zip(shape, self.patch_size, strict=False)):
            raise ValueError(f'sizes of the input must be multiples of patch_size {self.patch_size}, got {shape}')
        return shape

    def grid_of(self, input_shape: Sequence[int]) -> Tuple[int, ...]:
        """Sizes of the grid of tokens for inputs of these sizes."""
        if self.kind == 'conv':
            if self.same_padding:
                return tuple((s + 3) // 4 for s in input_shape)
            return tuple(((s - 1) // 2 + 1 - 3) // 2 + 1 for s in input_shape)
        if self.kind == 'patches':
            return tuple(s // p for s, p in zip(input_shape, self.patch_size, strict=True))
        return tuple(input_shape)

    def _resolutions(self, given: Union[float, Sequence[float], None]) -> List[float]:
        axes = 3 if self.kind == 'points' else self.num_axes
        if self.pos_embed_type != 'fourier':
            return []
        if given is None:
            if self.kind == 'points':
                raise ValueError("stem='points' needs max_resolution: coordinates have no grid to take it from")
            return [float(s) for s in self.grid_size]
        resolutions = [float(given)] * axes if isinstance(given, (int, float)) else [float(r) for r in given]
        if len(resolutions) != axes or min(resolutions) <= 0:
            raise ValueError(f'max_resolution must be positive, one number or {axes}, got {given}')
        return resolutions

    def set_input_size(self, input_shape: Sequence[int]) -> None:
        """Change the nominal size, resampling learned positions.

        Args:
            input_shape: New sizes, one per spatial axis.

        Raises:
            ValueError: Sizes are not positive, or not multiples of the patch size.
        """
        shape = self._checked(input_shape)
        grid = self.grid_of(shape)
        if self.pos_embed is not None and grid != self.grid_size:
            resized = resample_positions(self.pos_embed.detach(), list(self.grid_size), list(grid))
            self.pos_embed = nn.Parameter(resized.contiguous(), requires_grad=self.pos_embed.requires_grad)
        self.input_shape, self.grid_size = shape, grid

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> Tuple[Inputs, List[int]]:
        """Prepare inputs for cross-attention.

        Args:
            x: (B, in_chans, *spatial), for points and tokens (B, N, in_chans). An axis of size 1 may stand before the
                last one or two, where timm's image shapes need one.
            mask: Boolean (B, *grid), True where an input takes part.

        Returns:
            What `CrossAttention` takes, and the sizes of the grid, (N,) for points and tokens.

        Raises:
            AssertionError: Rank, channels or size of the input, or the mask, are not what the model takes.
        """
        axes: List[torch.Tensor] = []
        if self.kind == 'points' or self.kind == 'tokens':
            x = self._points(x)
            grid: List[int] = [x.shape[1]]
            return Inputs(x, axes, self._flat(mask, x, grid)), grid
        if self.num_axes == 1 and x.ndim == 4 and x.shape[2] == 1:
            x = x.squeeze(2)
        _assert(
            x.ndim == self.num_axes + 2,
            f'Input must be (batch, channels, {self.num_axes} spatial axes), got {x.ndim} dimensions.',
        )
        _assert(x.shape[1] == self.in_chans, f'Input has {x.shape[1]} channels, model takes {self.in_chans}.')
        _assert(x[:1, :1].numel() > 0 or x.shape[0] == 0, 'Input has an empty spatial axis.')
        if self.grey_chans > 0:
            x = x.repeat_interleave(self.grey_chans, dim=1)
        x = self._content(x)
        grid = list(x.shape[2:])
        if self.pos_embed_type == 'fourier':
            for i, resolution in enumerate(self.max_resolution):
                axes.append(fourier_table(x.shape[i + 2], self.num_bands, resolution, x.device, x.dtype))
        else:
            x = self._with_learned(x)
        return Inputs(x, axes, self._flat(mask, x, grid)), grid

    def _flat(self, mask: Optional[torch.Tensor], content: torch.Tensor, grid: List[int]) -> Optional[torch.Tensor]:
        """A mask of inputs (B, *grid) as (B, N)."""
        if mask is None:
            return None
        _assert(mask.dtype == torch.bool, f'Mask must be boolean, True where an input takes part, got {mask.dtype}.')
        expected = grid.copy()
        expected.insert(0, content.shape[0])
        _assert(list(mask.shape) == expected, f'Mask must be {expected}, as the inputs are, got {list(mask.shape)}.')
        return mask.flatten(1)

    def _points(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 4 and x.shape[1] == 1:
            x = x.squeeze(1)
        _assert(x.ndim == 3, f'Input must be (batch, number, channels), got {x.ndim} dimensions.')
        _assert(x.shape[2] == self.in_chans, f'Input has {x.shape[2]} channels, model takes {self.in_chans}.')
        _assert(x.shape[1] > 0, 'Input has nothing in it to attend to.')
        if self.kind == 'tokens':
            return self._with_learned(x.transpose(1, 2))
        position = x[:, :, :3].to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        features = [x[:, :, 3:]]
        for i, resolution in enumerate(self.max_resolution):
            features.append(fourier_features(position[:, :, i], self.num_bands, resolution).to(x.dtype))
        return torch.cat(features, dim=2)

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == 'conv':
            x = F.relu(self.bn(self.conv(self._pad(x, 7, 3, 0.0))))
            return F.max_pool2d(self._pad(x, 3, 0, -float('inf')), 3, stride=2)
        if self.kind == 'patches':
            for i, p in enumerate(self.patch_size):
                _assert(x.shape[i + 2] % p == 0, f'Input size ({x.shape[i + 2]}) should be divisible by patch ({p}).')
            return self.fold(x)
        return self.conv(x)

    def _pad(self, x: torch.Tensor, kernel: int, fixed: int, value: float) -> torch.Tensor:
        """Pad maps (B, C, height, width) for a kernel at stride 2: as SAME does, or by a fixed number on each side."""
        if not self.same_padding:
            return F.pad(x, (fixed, fixed, fixed, fixed), value=value)
        pad: List[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
            pad += [total // 2, total - total // 2]
        return F.pad(x, pad, value=value)

    def _with_learned(self, x: torch.Tensor) -> torch.Tensor:
        """Content (B, c, *grid) with learned positions, if any, as tokens (B, N, C)."""
        tokens = x.flatten(2).transpose(1, 2)
        if self.pos_embed is None:
            return tokens
        pos = self._positions(x)
        return torch.cat([tokens, pos.unsqueeze(0).expand(tokens.shape[0], -1, -1)], dim=2)

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        """Learned positions (N, F) for content (B, c, *grid), projected once for all items of the batch."""
        pos = self.pos_embed
        assert pos is not None  # for TorchScript
        grid = x.shape[2:]
        if list(grid) != list(self.grid_size):
            _assert(
                self.dynamic_img_size,
                f'Input gives a grid of {list(grid)}, learned positions are for {list(self.grid_size)}: use '
                'dynamic_img_size=True or set_input_size().',
            )
            pos = resample_positions(pos, list(self.grid_size), list(grid))
        return self.pos_proj(pos).to(x.dtype)


def resample_positions(pos: torch.Tensor, old: List[int], new: List[int]) -> torch.Tensor:
    """Learned positions (N, C) of one grid, interpolated for another; bicubic on images, (tri)linear otherwise."""
    mode = 'linear' if len(old) == 1 else 'bicubic' if len(old) == 2 else 'trilinear'
    grid = pos.transpose(0, 1).float().unsqueeze(0).unflatten(2, old)
    grid = F.interpolate(grid, size=new, mode=mode, align_corners=False, antialias=len(old) == 2)
    return grid.flatten(2)[0].transpose(0, 1).to(pos.dtype)
