"""Views that know which part of their image they show."""

from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple, Union

import torch
from torch import nn

from .views import Images, Key, RandomView


@dataclass(frozen=True)
class Located:
    """Views and the parts of their images that they show.

    Attributes:
        images: The views (B, C, H, W).
        box: Top, left, height and width (B, 4) of the parts, in pixels of the images; on the device of the views.
        flip: Which views are mirrored (B,), from left to right; likewise.

    Raises:
        ValueError: Shapes do not fit one another, or `flip` is not boolean.
    """

    images: torch.Tensor
    box: torch.Tensor
    flip: torch.Tensor

    def __post_init__(self):
        count = len(self.images)
        if self.box.shape != (count, 4):
            raise ValueError(f'`box` must have shape ({count}, 4) for {count} views, got {tuple(self.box.shape)}')
        if self.flip.shape != (count,) or self.flip.dtype != torch.bool:
            got = f'{self.flip.dtype} of shape {tuple(self.flip.shape)}'
            raise ValueError(f'`flip` must be torch.bool of shape ({count},) for {count} views, got {got}')
        for name in ('box', 'flip'):  # crops are drawn on the CPU, also those of views that a GPU makes
            object.__setattr__(self, name, getattr(self, name).to(self.images.device, non_blocking=True))

    def __len__(self) -> int:
        return len(self.images)

    def to(
        self,
        target: Union[str, torch.device, torch.dtype],
        *,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> 'Located':
        """On another device, or with views of another dtype: places keep theirs."""
        images = self.images.to(target, non_blocking=non_blocking, memory_format=memory_format)
        return Located(images, self.box, self.flip)

    def pin_memory(self) -> 'Located':
        """In memory that a GPU copies from; what `DataLoader` calls."""
        return Located(self.images.pin_memory(), self.box.pin_memory(), self.flip.pin_memory())

    def axes(self, size: Sequence[int], dtype: torch.dtype = torch.float64) -> Tuple[torch.Tensor, torch.Tensor]:
        """Where rows and columns of a grid over each view lie: y (B, h) and x (B, w), as `centres` has them."""
        h, w = size
        top, left, height, width = self.box.to(dtype)[:, :, None].unbind(1)
        rows = (torch.arange(h, device=self.box.device, dtype=dtype) + 0.5) / h
        columns = ((torch.arange(w, device=self.box.device, dtype=dtype) + 0.5) / w).expand(len(self), w)
        columns = torch.where(self.flip[:, None], columns.flip(1), columns)  # exact, which 1 - columns is not
        return top + height * rows, left + width * columns

    def centres(self, size: Sequence[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Centres of the cells of a grid over each view.

        Args:
            size: h and w, the rows and columns of the grid.
            dtype: Dtype of the result.

        Returns:
            y and x of each cell (B, h·w, 2), row by row, in pixels of the images.
        """
        h, w = size
        y, x = self.axes(size, dtype)
        return torch.stack([y[:, :, None].expand(-1, h, w), x[:, None].expand(-1, h, w)], -1).flatten(1, 2)

    def cells(self, size: Sequence[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Height and width (B, 2) of a cell of a grid of h rows and w columns, in pixels of the images."""
        return self.box[:, 2:].to(dtype) / torch.tensor(tuple(size), device=self.box.device, dtype=dtype)


class LocatedView(nn.Module):
    """A `RandomView` that gives its views with their places, from the same draws.

    Args:
        view: The view.
    """

    def __init__(self, view: RandomView):
        super().__init__()
        self.view = view

    def forward(self, images: Images, keys: Optional[Sequence[Key]] = None) -> Located:
        """Views of images, whose draws are determined by keys, as `RandomView` has them."""
        return Located(*self.view.placed(images, keys))


def with_places(view: Callable) -> Callable:
    """A view that gives `Located`: a `RandomView` becomes a `LocatedView`, any other stays."""
    return LocatedView(view) if isinstance(view, RandomView) else view


def joined(views: Sequence[Union[torch.Tensor, Located]]) -> Union[torch.Tensor, Located]:
    """Batches of views as one."""
    if all(isinstance(view, Located) for view in views):
        parts = zip(*((view.images, view.box, view.flip) for view in views), strict=True)
        return Located(*map(torch.cat, parts))
    return torch.cat(list(views))


def positive_pairs(
    first: Located,
    second: Located,
    sizes: Tuple[Sequence[int], Sequence[int]],
    threshold: float,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Which cells of two views' grids lie near one another in their image.

    PixPro (https://arxiv.org/abs/2011.10043), equation 1: the distance of two centres in the image, in units of the
    diagonal of a cell, is at most the threshold. Of two different diagonals the longer counts, as in the authors' code
    (`regression_loss` of contrast/models/PixPro.py in https://github.com/zdaxie/PixPro).

    Args:
        first: Views of B images.
        second: Other views of the same images.
        sizes: Rows and columns of the grid over the first views, and of that over the second ones.
        threshold: T.
        dtype: Dtype to compute in.

    Returns:
        (B, h₁·w₁, h₂·w₂) of bool.
    """
    diagonals = (view.cells(size, dtype).norm(dim=1) for view, size in zip((first, second), sizes, strict=True))
    limit = (threshold * torch.maximum(*diagonals)).square()[:, None, None, None, None]
    axes = zip(first.axes(sizes[0], dtype), second.axes(sizes[1], dtype), strict=True)
    rows, columns = ((one[:, :, None] - other[:, None]).square() for one, other in axes)  # (B, h₁, h₂), (B, w₁, w₂)
    near = rows[:, :, None, :, None] + columns[:, None, :, None] <= limit  # (B, h₁, w₁, h₂, w₂)
    return near.flatten(3).flatten(1, 2)
