"""Images that are never in memory, as methods of Perceivers."""

from typing import List, Optional, Sequence

import torch
from torch import nn

from timm_extra._files import PathLike

from .._size import check_normalisation, fitting
from .stream import Stream
from .stream_state import identity
from .tile_source import TileSource


class Streaming:
    """Base of Perceivers that read images tile by tile."""

    @torch.jit.ignore
    def forward_stream(
        self,
        source: TileSource,
        *,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        state: Optional[PathLike] = None,
        progress: bool = False,
    ) -> torch.Tensor:
        """`forward` of an image that is never in memory: read tile by tile, once for each cross-attend.

        The result is that of the whole image, which is neither resized nor cut apart: attention merges over tiles
        exactly. The next tile is read while one is computed. In training tiles are read again for the gradients.

        Args:
            source: The image, with pixels of uint8, uint16, or floating-point numbers from 0 to 1, as
                `timm_extra.images.open_tiles` opens files and arrays.
            mean: What pixels from 0 to 1 are normalised with; the configuration's when None.
            std: Likewise.
            state: File that what is done is written to, every half minute; the same call goes on from there after an
                interruption. It is removed at the end. In inference alone.
            progress: Show a bar on stderr.

        Returns:
            (1, num_classes).

        Raises:
            ValueError: The model has no tokens that see their own pixels alone ('pixels', 'patches', 'patch_embed' with
                Fourier features), the image has other channels, a tile cannot be read, or `state` belongs to something
                else; the message names it.
        """
        normalised = normalisation(self, mean, std)
        about = '' if state is None else identity(self, source, normalised)
        passes = self.num_cross_attends
        stream = Stream(self.stem, source, *normalised, passes, self.latents, state, about, progress)
        logits = self.forward_head(self._latents_of(stream.inputs()))
        stream.finish()
        return logits

    @torch.jit.ignore
    @torch.no_grad()
    def stream_attention(
        self,
        source: TileSource,
        cell: int,
        *,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        progress: bool = False,
    ) -> torch.Tensor:
        """Where latents look in an image that is never in memory: their attention, summed over square cells.

        Args:
            source: As in `forward_stream`.
            cell: Pixels along each side of a cell, a multiple of the patches; small cells take longer.
            mean: As in `forward_stream`.
            std: Likewise.
            progress: Show a bar on stderr.

        Returns:
            (num_cross_attends, heads, num_latents, rows, columns), which sum to 1 over rows and columns.

        Raises:
            ValueError: As in `forward_stream`, or `cell` is no multiple of the patches.
        """
        normalised = normalisation(self, mean, std)
        stream = Stream(
            self.stem, source, *normalised, self.num_cross_attends, self.latents, progress=progress, cell=cell
        )
        self._latents_of(stream.inputs())
        return torch.stack(stream.masses)


def normalisation(
    model: nn.Module, mean: Optional[Sequence[float]], std: Optional[Sequence[float]]
) -> List[List[float]]:
    """Those given, or those of the model's configuration."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    channels = model.in_chans
    found = [
        fitting(config.get(name, (default,)), channels) if given is None else given
        for name, given, default in (('mean', mean, 0.0), ('std', std, 1.0))
    ]
    check_normalisation((channels,), *found)
    return [list(values) for values in found]
