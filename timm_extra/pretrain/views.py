"""Random views of images for self-supervised learning: batched, with draws of their own for every image.

The operations are those of BYOL's code, https://github.com/google-deepmind/deepmind-research/tree/master/byol
(Apache-2.0): brightness is a shift, contrast acts on each channel around its mean, saturation and hue in HSV, values
are clipped after each. Two differences: crops are resized with antialiasing, as PIL and torchvision do, and blurring
renormalises at the border instead of mixing in black.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import nn

from timm_extra.images import check_normalisation

Images = Union[torch.Tensor, Sequence[torch.Tensor]]
Key = Sequence[int]

CROP_TRIES = 10
SLACK = 0.01  # by which resizing may have left [0, 1]
GREY = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True)
class Recipe:
    """Probabilities and ranges of a view.

    Attributes:
        scale: Area of the crop, as a fraction of the image.
        ratio: Width over height of the crop.
        hflip: Probability of mirroring.
        jitter: Probability of changing colours, in an order drawn for each image.
        brightness: Largest shift.
        contrast: Largest change of the scale, which is 1 in the middle.
        saturation: Likewise.
        hue: Largest rotation, in turns.
        grey: Probability of taking the colours away.
        blur: Probability of a Gaussian blur.
        sigma: Standard deviation of the blur, in pixels of the result.
        solarize: Probability of inverting what is brighter than one half.
    """

    scale: Tuple[float, float] = (0.08, 1.0)
    ratio: Tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    sigma: Tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self):
        for name in ('hflip', 'jitter', 'grey', 'blur', 'solarize'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'`{name}` is a probability, got {getattr(self, name)}')
        for name in ('scale', 'ratio', 'sigma'):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f'`{name}` must be two positive numbers, the smaller first, got {(low, high)}')
        if self.scale[1] > 1:
            raise ValueError(f'`scale` must not exceed 1, got {self.scale}')
        for name in ('brightness', 'contrast', 'saturation', 'hue'):
            if not 0 <= getattr(self, name) <= (0.5 if name == 'hue' else 1):
                raise ValueError(
                    f'`{name}` must be between 0 and {0.5 if name == "hue" else 1}, got {getattr(self, name)}'
                )


BYOL_VIEWS = Recipe(), Recipe(blur=0.1, solarize=0.2)
_SIMSIAM = Recipe(scale=(0.2, 1.0), saturation=0.4, blur=0.5)  # MoCo v2's
SIMSIAM_VIEWS = _SIMSIAM, _SIMSIAM
DENOISE_VIEW = Recipe(scale=(0.35, 1.0), jitter=0.0, grey=0.0, blur=0.0)  # colours stay: they are to be decoded
RECIPES = dict(byol=BYOL_VIEWS, simsiam=SIMSIAM_VIEWS, glom=(DENOISE_VIEW,), pixpro=BYOL_VIEWS)


@dataclass(frozen=True)
class _Draws:
    """What was drawn for images (B,) of one size; crops in pixels."""

    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    flip: torch.Tensor
    jitter: torch.Tensor
    order: torch.Tensor  # (B, 4)
    brightness: torch.Tensor
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor
    grey: torch.Tensor
    blur: torch.Tensor
    sigma: torch.Tensor
    solarize: torch.Tensor


class RandomView(nn.Module):
    """One random view of every image: crop, resize, flip, colours, grey, blur, solarize, normalise.

    Images with other than three channels keep their saturation and hue. Draws are made on the CPU, so that a GPU sees
    the same ones and does not wait.

    Args:
        recipe: Probabilities and ranges.
        input_size: Channels, height and width of the view.
        mean: Subtracted from each channel at the end.
        std: What each channel is divided by then.

    Raises:
        ValueError: Sizes do not fit one another.
    """

    def __init__(
        self,
        recipe: Recipe,
        input_size: Sequence[int],
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ):
        super().__init__()
        self.recipe = recipe
        self.input_size = tuple(input_size)
        self.normalise = _Normalise(self.input_size, mean, std)

    def extra_repr(self) -> str:
        """The recipe."""
        return f'{self.recipe}, input_size={self.input_size}'

    @torch.no_grad()
    def forward(self, images: Images, keys: Optional[Sequence[Key]] = None) -> torch.Tensor:
        """Views.

        Args:
            images: (B, C, H, W), or B images (C, H, W) of any sizes; uint8, or floating-point in [0, 1].
            keys: For each image the integers that determine its draws, as (seed, epoch, index, view). None draws from
                PyTorch's random state.

        Returns:
            (B, C, *input_size[1:]), floating-point.

        Raises:
            ValueError: The images have other channels, or there are not as many keys.
        """
        return self.placed(images, keys)[0]

    @torch.no_grad()
    def placed(
        self, images: Images, keys: Optional[Sequence[Key]] = None
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views as `forward` makes them, and the part of its image that each shows.

        Args:
            images: As in `forward`.
            keys: As in `forward`.

        Returns:
            Views (B, C, *input_size[1:]); top, left, height and width of the crops (B, 4) in pixels of the images;
            which are mirrored (B,).

        Raises:
            ValueError: As `forward`.
        """
        if keys is not None and len(keys) != len(images):
            raise ValueError(f'{len(keys)} keys for {len(images)} images')
        x = _stacked(images, self.input_size[0])
        if isinstance(x, list):
            each = [None] * len(x) if keys is None else [[key] for key in keys]
            parts = [self.placed(image[None], key) for image, key in zip(x, each, strict=True)]
            views, boxes, flips = (torch.cat(part) for part in zip(*parts, strict=True))
            return views, boxes, flips
        draws = self._draw(len(x), x.shape[-2:], keys)
        boxes = torch.stack([draws.top, draws.left, draws.height, draws.width], 1)
        return self._apply_draws(x, draws), boxes, draws.flip

    def _apply_draws(self, x: torch.Tensor, draws: _Draws) -> torch.Tensor:
        size = self.input_size[1:]
        x = resized_crops(x, draws.top, draws.left, draws.height, draws.width, size, draws.flip).clamp_(0, 1)
        _jitter(x, draws)
        if len(GREY) == x.shape[1]:
            _on(x, draws.grey, lambda part: torch.einsum('bchw,c->bhw', part, part.new_tensor(GREY))[:, None])
        _on(x, draws.blur, lambda part: gaussian_blur(part, draws.sigma[draws.blur]))
        _on(x, draws.solarize, lambda part: torch.where(part < 0.5, part, 1 - part))
        return self.normalise(x.clamp_(0, 1))

    def _draw(self, count: int, size: Sequence[int], keys: Optional[Sequence[Key]]) -> _Draws:
        recipe = self.recipe
        needed = 2 * CROP_TRIES + 2 + len(fields(_Draws)) + 4
        if keys is None:
            numbers = torch.rand(count, needed, dtype=torch.float64)
        else:
            numbers = torch.from_numpy(
                np.stack([np.random.default_rng([int(k) for k in key]).random(needed) for key in keys])
            )
        u = iter(numbers[:, 2 * CROP_TRIES :].unbind(1))
        height, width = _crop_sizes(size, recipe, numbers[:, : 2 * CROP_TRIES])
        crop = dict(
            top=((size[0] - height + 1) * next(u)).long(),
            left=((size[1] - width + 1) * next(u)).long(),
            height=height,
            width=width,
        )

        def chance(p: float) -> torch.Tensor:
            return next(u) < p

        def between(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * next(u)

        return _Draws(
            **crop,
            flip=chance(recipe.hflip),
            jitter=chance(recipe.jitter),
            order=torch.stack([next(u) for _ in range(4)], 1).argsort(1),
            brightness=between(-recipe.brightness, recipe.brightness),
            contrast=between(1 - recipe.contrast, 1 + recipe.contrast),
            saturation=between(1 - recipe.saturation, 1 + recipe.saturation),
            hue=between(-recipe.hue, recipe.hue),
            grey=chance(recipe.grey),
            blur=chance(recipe.blur),
            sigma=between(*recipe.sigma),
            solarize=chance(recipe.solarize),
        )


class PlainView(nn.Module):
    """The middle of every image, resized and normalised: what models are evaluated on.

    Args:
        input_size: Channels, height and width of the result.
        mean: Subtracted from each channel at the end.
        std: What each channel is divided by then.
        crop_pct: Part of the image that is kept, along the side that limits it.
    """

    def __init__(
        self,
        input_size: Sequence[int],
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        crop_pct: float = 1.0,
    ):
        super().__init__()
        self.input_size = tuple(input_size)
        self.crop_pct = crop_pct
        self.normalise = _Normalise(self.input_size, mean, std)

    @torch.no_grad()
    def forward(self, images: Images) -> torch.Tensor:
        """Views (B, C, *input_size[1:]) of images (B, C, H, W), or of B images (C, H, W) of any sizes."""
        x = _stacked(images, self.input_size[0])
        if isinstance(x, list):
            return torch.cat([self(image[None]) for image in x])
        (H, W), (h, w) = x.shape[-2:], self.input_size[1:]
        scale = min(H / h, W / w) * self.crop_pct
        height, width = (max(1, round(scale * side)) for side in (h, w))
        box = ((H - height) // 2, (W - width) // 2, height, width)
        box = (torch.full((len(x),), value) for value in box)
        x = resized_crops(x, *box, (h, w), torch.zeros(len(x), dtype=torch.bool))
        return self.normalise(x.clamp_(0, 1))


class _Normalise(nn.Module):
    def __init__(self, input_size: Tuple[int, ...], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(input_size) != 3:
            raise ValueError(f'`input_size` must be channels, height and width, got {input_size}')
        check_normalisation(input_size, mean, std)
        for name, values in (('mean', mean), ('std', std)):
            # no buffer: it follows the images, not the module
            setattr(self, name, torch.tensor(values, dtype=torch.float64).view(-1, 1, 1))

    def extra_repr(self) -> str:
        return f'mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}'

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(self.mean.to(x)).div_(self.std.to(x))


def _stacked(images: Images, channels: int) -> Union[torch.Tensor, List[torch.Tensor]]:
    """Floating-point images (B, C, H, W), or a list if they differ in size."""
    if not isinstance(images, torch.Tensor):
        if len({(image.shape, image.dtype) for image in images}) != 1:
            return list(images)
        images = torch.stack(list(images))
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f'images must have shape (B, {channels}, H, W), got {tuple(images.shape)}')
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f'images must be uint8, or floating-point in [0, 1], got {images.dtype}')
    low, high = (float(v) for v in images.aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise ValueError(f'floating-point images must lie in [0, 1], got values from {low:.4g} to {high:.4g}')
    return in_float32(images)


def in_float32(x: torch.Tensor) -> torch.Tensor:
    """A tensor of any shape in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _crop_sizes(size: Sequence[int], recipe: Recipe, numbers: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Heights and widths of crops: the first of some tries that fits, else the largest in the range of ratios."""
    H, W = size
    areas, ratios = numbers.chunk(2, 1)  # (B, tries) each
    areas = H * W * (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * areas)
    low, high = (math.log(r) for r in recipe.ratio)
    ratios = (low + (high - low) * ratios).exp()
    widths, heights = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (widths > 0) & (widths <= W) & (heights > 0) & (heights <= H)
    ratio = min(max(W / H, recipe.ratio[0]), recipe.ratio[1])
    largest = (round(W / ratio), W) if ratio > W / H else (H, round(H * ratio))
    first = fits.long().argmax(1, keepdim=True)
    found = fits.any(1)
    height = torch.where(found, heights.gather(1, first)[:, 0], max(1, min(H, largest[0])))
    width = torch.where(found, widths.gather(1, first)[:, 0], max(1, min(W, largest[1])))
    return height, width


def resized_crops(
    x: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
    size: Sequence[int],
    flip: torch.Tensor,
) -> torch.Tensor:
    """A crop of every image, resized (bicubic with antialiasing) and mirrored: two matrix products.

    Args:
        x: Images (B, C, H, W).
        top: First row of each crop (B,).
        left: First column (B,).
        height: Rows (B,).
        width: Columns (B,).
        size: Height and width of the result.
        flip: Which to mirror (B,).

    Returns:
        (B, C, *size).
    """
    rows = _resampling(top.to(x), height.to(x), size[0], x.shape[-2])
    columns = _resampling(left.to(x), width.to(x), size[1], x.shape[-1])
    columns = torch.where(flip.to(x.device)[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ (x @ columns.mT[:, None])


def _resampling(start: torch.Tensor, length: torch.Tensor, new: int, old: int) -> torch.Tensor:
    """Matrices (B, new, old) that take `length` samples from `start` to `new` ones.

    Keys' cubic with a = −1/2, stretched where samples become fewer, as PIL does.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / new
    centre = start + (torch.arange(new, device=start.device)[None, :, None] + 0.5) * scale
    at = torch.arange(old, device=start.device)[None, None, :]
    t = ((at + 0.5 - centre) / scale.clamp(min=1)).abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    weights = weights * ((at >= start) & (at < start + length))
    return weights / weights.sum(-1, keepdim=True)


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Every image blurred with its own σ, over a window of a tenth of the height; weights at the border sum to 1.

    Args:
        x: Images (B, C, H, W).
        sigma: Standard deviations (B,), in pixels.

    Returns:
        As x.
    """
    radius = x.shape[-2] // 20
    sigma = sigma.to(x)[:, None, None]

    def matrix(size: int) -> torch.Tensor:
        at = torch.arange(size, device=x.device)
        gap = at[:, None] - at[None, :]
        weights = (-0.5 * (gap / sigma) ** 2).exp() * (gap.abs() <= radius)
        return (weights / weights.sum(-1, keepdim=True))[:, None]

    H, W = x.shape[-2:]
    rows = matrix(H)
    return rows @ (x @ (rows if W == H else matrix(W)).mT)


def _on(x: torch.Tensor, which: torch.Tensor, function) -> None:
    """Replace some of the images in place."""
    if which.all():
        x.copy_(function(x))
    elif which.any():
        index = which.nonzero()[:, 0].to(x.device)
        x[index] = function(x[index]).expand(len(index), *x.shape[1:])


def _jitter(x: torch.Tensor, draws: _Draws) -> None:
    """Brightness, contrast, saturation and hue of each image in its own order, in place."""
    kinds: List[Tuple[Any, torch.Tensor]] = [(_brightness, draws.brightness), (_contrast, draws.contrast)]
    if x.shape[1] == len(GREY):
        kinds += [(_saturation, draws.saturation), (_hue, draws.hue)]
    for position in range(draws.order.shape[1]):
        for kind, (function, amount) in enumerate(kinds):
            which = draws.jitter & (draws.order[:, position] == kind)
            amounts = amount[which].to(x)[:, None, None, None]
            _on(x, which, lambda part, f=function, a=amounts: f(part, a).clamp_(0, 1))


def _brightness(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return x + shift


def _contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    mean = x.mean((-2, -1), keepdim=True)
    return mean + factor * (x - mean)


def _saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Saturation of HSV times a factor, at most 1: the distances from the largest channel, stretched."""
    value = x.amax(1, keepdim=True)
    saturation = (value - x.amin(1, keepdim=True)) / value.clamp(min=1e-12)
    return value - (value - x) * (factor * saturation).clamp(max=1) / saturation.clamp(min=1e-12)


def _hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Hue of HSV turned."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    r, g, b = x.unsqueeze(2).unbind(1)
    scale = 1 / chroma.clamp(min=1e-12)
    blue = torch.where(g == value, (b - r) * scale + 2, (r - g) * scale + 4)
    hue = torch.where(r == value, (g - b) * scale, blue) + 6 * turn  # in sixths
    # each channel falls and rises around a hue of its own, at 0, 2 and 4 sixths
    k = hue + x.new_tensor([5.0, 3.0, 1.0])[None, :, None, None]
    k -= 6 * (k / 6).floor_()
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
