"""What all stems of the Perceiver have: sizes and positions."""

import math
from typing import Any, Dict, Final, List, Sequence, Tuple, Union

import torch
from timm.layers import _assert, is_exporting, register_notrace_module, trunc_normal_
from torch import nn

from timm_extra.layers.shortcuts import shared

from ..positions import POSITIONS, Positions, checked_resolution, resample_positions

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

    def naflex_patch_size(self) -> Tuple[int, ...]:
        """Height and width of the patches that are tokens, for NaFlex batches.

        Raises:
            ValueError: The stem takes none.
        """
        size: Tuple[int, ...] = getattr(self, 'patch_size', ())  # of stems whose tokens are patches
        if self.num_axes != 2 or not size or self.pos_embed_type != 'fourier':
            raise ValueError(
                f'stem={self.kind!r} with pos_embed={self.pos_embed_type!r} takes no NaFlex batches: for images, '
                "stem='pixels', 'patches' or 'patch_embed' with pos_embed='fourier' does"
            )
        return size

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
