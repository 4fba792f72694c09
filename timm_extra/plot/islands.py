"""How the islands of a GLOM form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.data import create_transform

from timm_extra._files import PathLike
from timm_extra.images import preprocessing, read_image
from timm_extra.models.glom import GLOM, adjusted_rand_index, island_labels, neighbour_cosine

from .sheets import draw_image, evenly_spaced, new_figure, write_figure


@dataclass(frozen=True)
class LevelIslands:
    """Islands of a level of GLOM after the last iteration.

    Attributes:
        level: Which, 0 is the lowest.
        islands: Their number.
        cosine: Mean cosine of neighbouring columns.
        rand_index: Adjusted Rand index with given segments, 1 when they are the islands; None without segments.
    """

    level: int
    islands: int
    cosine: float
    rand_index: Optional[float] = None


def plot_islands(
    model: GLOM,
    image: PathLike,
    path: PathLike,
    *,
    iters: Optional[int] = None,
    threshold: float = 0.9,
    mask: Optional[PathLike] = None,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
) -> List[LevelIslands]:
    """Show GLOM an image as in evaluation, draw how its islands form and measure them.

    Args:
        model: GLOM of 1 or 3 channels, in evaluation mode.
        image: Image file.
        path: PNG to write.
        iters: Iterations; the model's own number when None.
        threshold: Cosine above which neighbouring columns belong to an island.
        mask: Image file of the same size whose pixel values are the numbers of segments.
        input_size: As in `timm_extra.images.input_config`, like `mean` and `std`.
        mean: What the image is normalised with.
        std: Likewise.

    Returns:
        One entry a level, the lowest first.

    Raises:
        ValueError: The model is no GLOM or is in training mode, a file cannot be read, or a value is out of range.
    """
    if not isinstance(model, GLOM):
        raise ValueError(f'only GLOM has islands, got {type(model).__name__}')
    if model.training:
        raise ValueError('the model is in training mode, where dropout disturbs what is seen: call model.eval() first')
    if iters is not None and iters < 1:
        raise ValueError(f'iters must be at least 1, got {iters}')
    prepare = preprocessing(model, input_size, mean, std)
    picture = read_image(image)
    x = prepare(picture)  # (C, height, width)
    segments = None if mask is None else _segments(mask, picture.size, prepare.config)
    grid = model.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))
    with torch.no_grad():
        images = x[None].to(next(model.parameters()))
        states = model.forward_state(images, iters=iters, return_all=True)[:, 0].cpu()  # (T, N, L, D)
    labels = island_labels(states[-1], grid, threshold)  # (L, H, W)
    counts = labels.amax((-2, -1)) + 1
    cosines = neighbour_cosine(states[-1], grid)
    agreement = [None] * len(labels) if segments is None else adjusted_rand_index(labels, segments).tolist()
    island_sheet(prepare.visible(x), states, grid, path, threshold=threshold)
    return [
        LevelIslands(*found)
        for found in zip(range(len(labels)), counts.tolist(), cosines.tolist(), agreement, strict=True)
    ]


def _segments(path: PathLike, size: Tuple[int, int], config: Dict[str, Any]) -> torch.Tensor:
    """Numbers of segments (height, width) in an image file, cut out as the image of that width and height is."""
    picture = read_image(path)
    if len(picture.getbands()) > 1 or picture.mode == 'F':
        raise ValueError(f'the values of a mask are numbers of segments, those of {path} are {picture.mode}')
    if picture.size != size:
        raise ValueError(f'the mask is {picture.size[0]} × {picture.size[1]} pixels, the image {size[0]} × {size[1]}')
    nearest = {**config, 'interpolation': 'nearest', 'mean': (0.0,), 'std': (1.0,)}  # the mean fills borders, too
    return create_transform(**nearest, normalize=False)(picture)[0].long()


def pca_rgb(state: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Colours of columns: three principal components of their vectors, level by level.

    The components of a level are those in which columns differ most from one another, taken over all iterations, so
    that a colour means the same in all of them; what all columns have in common moves much further over iterations and
    would hide the image. Where columns differ in fewer than three directions, the remaining channels are grey.

    Args:
        state: Vectors of the columns of an image at some iterations (T, N, L, D).
        grid: Rows H and columns W of the grid, H × W = N.

    Returns:
        (T, L, H, W, 3), in 0 to 1.

    Raises:
        ValueError: The shapes do not fit one another, or the state is not finite.
    """
    if state.ndim != 4 or len(grid) != 2 or grid[0] * grid[1] != state.shape[1]:
        raise ValueError(f'state must be (T, N, L, D) of a grid {tuple(grid)}, got {tuple(state.shape)}')
    if not state.isfinite().all():
        raise ValueError('the state has values that are not finite')
    T, N, L, _ = state.shape
    x = state.double().permute(2, 0, 1, 3)  # (L, T, N, D)
    noise = 1e-10 * x.square().sum(-1).mean((1, 2))  # what rounding leaves of equal vectors
    apart = (x - x.mean(2, keepdim=True)).flatten(1, 2)  # (L, T·N, D)
    variance, axes = torch.linalg.eigh(apart.mT @ apart / (T * N))  # ascending
    variance, axes = variance[:, -3:].flip(-1), axes[:, :, -3:].flip(-1)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    shade = x.flatten(1, 2) @ (axes * largest.sign())  # (L, T·N, at most 3)
    low, high = shade.amin(1, keepdim=True), shade.amax(1, keepdim=True)
    varies = (variance > noise[:, None])[:, None]
    shade = torch.where(varies, (shade - low) / (high - low), 0.5)
    colours = shade.new_full((L, T * N, 3), 0.5)
    colours[:, :, : shade.shape[-1]] = shade
    return colours.view(L, T, *grid, 3).transpose(0, 1).float()


def island_sheet(
    image: torch.Tensor,
    states: torch.Tensor,
    grid: Sequence[int],
    path: PathLike,
    iterations: Optional[Sequence[int]] = None,
    threshold: float = 0.9,
) -> Path:
    """Draw how the islands of an image form: a map for every level and some iterations, and how far neighbours agree.

    Colours are those of `pca_rgb`, lines the borders of islands.

    Args:
        image: (1 or 3, height, width) with values in 0 to 1.
        states: Vectors of the columns before and after every iteration (T, N, L, D).
        grid: Rows H and columns W of the grid, H × W = N.
        path: PNG to write.
        iterations: Which of the T to draw; at most six from first to last when None.
        threshold: Cosine above which neighbouring columns belong to an island.

    Returns:
        The path.

    Raises:
        ValueError: The shapes do not fit one another, or there is no such iteration.
    """
    T, _, L, _ = states.shape
    if iterations is None:
        iterations = evenly_spaced(T)
    outside = [i for i in iterations if not 0 <= i < T]
    if outside or not iterations:
        raise ValueError(f'iterations are 0 to {T - 1}, got {outside[0] if outside else "none"}')
    states = states.detach().cpu()
    cosines = neighbour_cosine(states, grid)  # (T, L)
    colours = pca_rgb(states, grid)  # (T, L, H, W, 3)
    labels = island_labels(states, grid, threshold)  # (T, L, H, W)

    side = min(1.9, max(1.35, 4.6 / L))
    width = max(3.0, len(iterations) * side * min(1.6, max(0.6, grid[1] / grid[0])))
    height = max(4.8, L * (side + 0.2) + 0.3)
    tall = min(3.0 * image.shape[-2] / image.shape[-1], height - 2.2)
    figure = new_figure(3.2 + width, height)
    left, right = figure.subfigures(1, 2, width_ratios=[3.2, width])
    top, bottom = left.subplots(2, 1, height_ratios=[tall, height - tall - 0.9])  # the rest is legend and labels
    draw_image(top, image)
    _draw_agreement(bottom, cosines)
    axes = right.subplots(L, len(iterations), squeeze=False)
    for row, level in enumerate(reversed(range(L))):
        for column, t in enumerate(iterations):
            axis = axes[row, column]
            _draw_islands(axis, colours[t, level], labels[t, level], min(1.0, 8 * side / max(grid)))
            count = int(labels[t, level].max()) + 1
            axis.set_xlabel(f'{count} · {round(float(cosines[t, level]), 2) + 0.0:.2f}', fontsize=8, labelpad=2)
            if row == 0:
                axis.set_title(f'iteration {t}', fontsize=9)
        axes[row, 0].set_ylabel(f'level {level}', fontsize=9)
    caption = f'number of islands · mean cosine of neighbours\na cosine above {threshold:g} joins neighbours'
    right.supxlabel(caption, fontsize=8, color='#555555')
    return write_figure(figure, path)


def _draw_islands(axis, colours: torch.Tensor, labels: torch.Tensor, width: float) -> None:
    """Colours (H, W, 3) with lines of a width between cells of different labels (H, W)."""
    from matplotlib.collections import LineCollection

    axis.imshow(0.1 + 0.8 * colours.numpy())  # off the corners of the colour cube, where lines are hard to see
    beside = (labels[:, 1:] != labels[:, :-1]).nonzero() + torch.tensor([0, 1])  # cells right of a border
    below = (labels[1:] != labels[:-1]).nonzero() + torch.tensor([1, 0])  # cells under one
    lines = [[(x - 0.5, y - 0.5), (x - 0.5, y + 0.5)] for y, x in beside.tolist()]
    lines += [[(x - 0.5, y - 0.5), (x + 0.5, y - 0.5)] for y, x in below.tolist()]
    axis.add_collection(LineCollection(lines, colors='white', linewidths=width, capstyle='round'))
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_agreement(axis, cosines: torch.Tensor) -> None:
    """Neighbour cosine (T, L) over iterations, a line a level."""
    from matplotlib import colormaps

    T, L = cosines.shape
    for level in range(L):
        colour = colormaps['viridis'](0.9 * level / max(1, L - 1))
        axis.plot(range(T), cosines[:, level].numpy(), color=colour, marker='.', markersize=4, label=level)
    axis.set_xlabel('iteration', fontsize=8)
    axis.set_ylabel('mean cosine of neighbours', fontsize=8)
    axis.tick_params(labelsize=7)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    above = dict(loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=min(L, 6))
    axis.legend(title='level', fontsize=7, title_fontsize=7, frameon=False, handlelength=1, columnspacing=1, **above)
