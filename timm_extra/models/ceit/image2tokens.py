"""Image-to-tokens stem of CeiT."""

from typing import Tuple, Union

import torch
from timm.layers import _assert, to_2tuple
from torch import nn

from .fuse import fold_batchnorm


class Image2Tokens(nn.Module):
    """Convolution, BatchNorm and max-pooling to a quarter of the size, then a projection of small patches.

    Source: arXiv:2103.11816 section 3.1; no activation follows the BatchNorm, as in the official code.

    Args:
        img_size: Image height and width in pixels, multiples of `patch_size`.
        patch_size: Pixels of the image per token side, a multiple of 4.
        in_chans: Image channels.
        embed_dim: Channels C of a token.
        stem_chs: Channels of the convolution.
        stem_padding: Padding of the convolution and of the pooling.
        stem_bias: Give the convolution a bias.
        strict_img_size: Accept images of `img_size` only; otherwise any multiple of `patch_size`.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `patch_size` is not a multiple of 4.
    """

    def __init__(
        self,
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        stem_chs: int = 64,
        stem_padding: Tuple[int, int] = (3, 1),
        stem_bias: bool = False,
        strict_img_size: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if patch_size % 4:
            raise ValueError(f'patch_size must be a multiple of 4, the stride of the stem, got {patch_size}')
        self.patch_size = to_2tuple(patch_size)
        self.in_chans = in_chans
        self.strict_img_size = strict_img_size
        self.set_input_size(img_size)

        self.conv = nn.Conv2d(
            in_chans, stem_chs, kernel_size=7, stride=2, padding=stem_padding[0], bias=stem_bias, **dd
        )
        self.bn = nn.BatchNorm2d(stem_chs, **dd)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=stem_padding[1])
        self.proj = nn.Conv2d(stem_chs, embed_dim, kernel_size=patch_size // 4, stride=patch_size // 4, **dd)

    def set_input_size(self, img_size: Union[int, Tuple[int, int]]) -> None:
        """Change the image size that is accepted (strict) or that position embeddings are stored for."""
        self.img_size = to_2tuple(img_size)
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> Union[Tuple[int, int], int]:
        """Pixels of the image per token side."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Token grid (H, W) of an image of the given height and width."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed images.

        Args:
            x: Images (B, in_chans, height, width).

        Returns:
            Tokens as a map (B, C, height / patch, width / patch).

        Raises:
            AssertionError: Channels or size are not what the model takes.
        """
        _, chans, height, width = x.shape
        _assert(chans == self.in_chans, f'Input has {chans} channels, model takes {self.in_chans}.')
        if self.strict_img_size:
            _assert(height == self.img_size[0], f"Input height ({height}) doesn't match model ({self.img_size[0]}).")
            _assert(width == self.img_size[1], f"Input width ({width}) doesn't match model ({self.img_size[1]}).")
        else:
            ph, pw = self.patch_size
            _assert(height % ph == 0, f'Input height ({height}) should be divisible by patch size ({ph}).')
            _assert(width % pw == 0, f'Input width ({width}) should be divisible by patch size ({pw}).')
        # channels-last is what the tokens become anyway, and max-pooling on a CPU is several times faster in it; vmap
        # knows no `memory_format`
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.proj(self.pool(self.bn(self.conv(x))))

    def fuse(self) -> nn.Module:
        """Fold the BatchNorm into the convolution, for inference.

        Returns:
            This module, without BatchNorm.

        Raises:
            RuntimeError: The module is in training mode, where the statistics are the batch's.
        """
        fold_batchnorm(self, 'conv', 'bn')
        return self
