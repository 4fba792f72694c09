"""Stems of inputs without a grid: finished tokens, and points."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from timm.layers import _assert

from ..cross_attention import Inputs, flat_mask
from ..fourier import fourier_features
from ..positions import Positions, checked_resolution
from .stem import Size, Stem


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
        if not torch.jit.is_scripting() and not isinstance(x, torch.Tensor):
            self.naflex_patch_size()  # refuses
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
