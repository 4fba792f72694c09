"""Pictures: what a model predicts and looks at, and how training went. Needs matplotlib (extra `plot`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.data import create_transform
from torch import nn

from .images import PathLike, preprocessing, read_image
from .islands import adjusted_rand_index, island_labels, neighbour_cosine
from .models.ceit import CeiT
from .models.glom import GLOM
from .models.perceiver import Perceiver
from .predict import class_labels


def lca_attention(model: CeiT, x: torch.Tensor) -> torch.Tensor:
    """Weights that layer-wise class-token attention gives to the class tokens of the layers.

    Args:
        model: CeiT with LCA, in evaluation mode.
        x: Images (B, in_chans, height, width).

    Returns:
        (B, H, L), non-negative, summing to 1 over the L layers.

    Raises:
        ValueError: The model has no LCA, or is in training mode.
    """
    if getattr(model, 'lca', None) is None:
        raise ValueError(f'this {type(model).__name__} has no layer-wise class-token attention to show')
    if model.training:
        raise ValueError('the model is in training mode, where images change its statistics: call model.eval() first')
    attn, fused = model.lca.attn, model.lca.attn.fused_attn
    seen: List[torch.Tensor] = []
    hook = attn.attn_drop.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        attn.fused_attn = False  # the fused path never forms the weights
        with torch.no_grad():
            model(x)
    finally:
        attn.fused_attn = fused
        hook.remove()
    return seen[0][:, :, 0]  # (B, H, L) of (B, H, 1, L)


def latent_attention(
    model: Perceiver, x: torch.Tensor, latents: Sequence[int], block: int = 0, mask: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """What latents look at: their weights over the inputs in one of the cross-attends.

    Only the maps asked for are formed; a map of every latent would be as large as all latents times all inputs.

    Args:
        model: Perceiver or Perceiver IO, in evaluation mode.
        x: Inputs (B, in_chans, *spatial), or (B, N, in_chans) for points and tokens.
        latents: Indices of L latents.
        block: Block whose cross-attend is shown; negative ones count from the last.
        mask: As in `Perceiver.forward`.

    Returns:
        (B, H, L, *grid), or (B, H, L, N) for points and tokens: non-negative, summing to 1 over the inputs.

    Raises:
        ValueError: The block has no cross-attend, a latent does not exist, or the model is in training mode.
    """
    count = model.num_cross_attends
    if not -count <= block < count:
        raise ValueError(f'blocks with a cross-attend are 0 to {count - 1}, got {block}')
    if model.training:
        raise ValueError('the model is in training mode, where dropout disturbs what is seen: call model.eval() first')
    outside = [i for i in latents if not 0 <= i < model.latents.shape[0]]
    if outside:
        raise ValueError(f'latents are 0 to {model.latents.shape[0] - 1}, got {outside[0]}')
    block %= count
    used = min(block, len(model.cross_attends) - 1)
    attn = model.cross_attends[used].attn
    seen: List[Tuple[Any, ...]] = []
    hook = attn.register_forward_pre_hook(lambda module, args: seen.append(args))
    try:
        with torch.no_grad():
            model.forward_features(x, mask)
    finally:
        hook.remove()
    queries, *inputs = seen[block - used]  # a shared set of weights is called once for each of its blocks
    with torch.no_grad():
        weights = attn.attention_weights(queries[:, list(latents)], *inputs)  # (B, H, L, N)
        grid = model.stem(x)[-1]
    return weights.unflatten(-1, grid)


def latent_sheet(images: torch.Tensor, attention: torch.Tensor, path: PathLike, names: Sequence[str] = ()) -> Path:
    """Draw images and beside each the maps of what latents look at, one latent a column.

    Args:
        images: (B, 1 or 3, height, width) with values in 0 to 1.
        attention: (B, H, L, height, width) of `latent_attention`; heads are averaged.
        path: PNG to write.
        names: Titles of the L columns; numbers when empty.

    Returns:
        The path.
    """
    maps = attention.mean(1).cpu()  # (B, L, height, width)
    B, L = maps.shape[:2]
    figure = new_figure(1.3 * (L + 1), 1.3 * B + 0.4)
    axes = figure.subplots(B, L + 1, squeeze=False)
    for i in range(B):
        image = images[i].permute(1, 2, 0).squeeze(-1).cpu().numpy()
        axes[i, 0].imshow(image, cmap='gray' if image.ndim == 2 else None, vmin=0, vmax=1)
        for j in range(L):
            axes[i, j + 1].imshow(maps[i, j].numpy(), cmap='magma', vmin=0)  # a scale of its own: maps differ in peak
            if i == 0:
                axes[i, j + 1].set_title(names[j] if names else f'latent {j}', fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return _write(figure, path)


def plot_attention(
    model: nn.Module,
    image: PathLike,
    path: PathLike,
    *,
    latents: Optional[Sequence[int]] = None,
    block: int = -1,
    input_size: Optional[Sequence[int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
) -> str:
    """Show a model an image as in evaluation and draw the attention it has: of a CeiT over layers, of a Perceiver's
    latents over the image.

    Args:
        model: CeiT with LCA, Perceiver or Perceiver IO of 1 or 3 channels, in evaluation mode.
        image: Image file.
        path: PNG to write.
        latents: Which latents of a Perceiver; six from first to last when None.
        block: Which cross-attend of a Perceiver, negative from the last.
        input_size: As in `timm_extra.views.view_config`, like `mean` and `std`.
        mean: What the image is normalised with.
        std: Likewise.

    Returns:
        What was drawn, in words.

    Raises:
        ValueError: The model has no such attention or is in training mode, the file cannot be read, or a value is out
            of range.
    """
    if not isinstance(model, (CeiT, Perceiver)):
        raise ValueError(f'CeiT and Perceivers have attention to draw, got {type(model).__name__}')
    if isinstance(model, CeiT) and latents is not None:
        raise ValueError('a CeiT has no latents')
    prepare = preprocessing(model, input_size, mean, std)
    x = prepare(read_image(image))[None]
    shown, x = prepare.visible(x), x.to(next(model.parameters()))
    if isinstance(model, CeiT):
        attention = lca_attention(model, x)
        with torch.no_grad():
            logits = model(x) if model.num_classes else None
        prediction_sheet(shown, None, logits, attention.float(), path, class_labels(model))
        return f'layer-wise class-token attention, {attention.shape[1]} heads over {attention.shape[2]} layers'
    count = model.latents.shape[0]
    if latents is None:
        latents = torch.linspace(0, count - 1, min(count, 6)).round().long().tolist()
    maps = latent_attention(model, x, latents, block)
    latent_sheet(shown, maps.float(), path, [f'latent {i}' for i in latents])
    return f'attention of latents {", ".join(map(str, latents))} over {maps.shape[-2]}×{maps.shape[-1]} inputs'


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
        input_size: As in `timm_extra.views.view_config`, like `mean` and `std`.
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
        iterations = torch.linspace(0, T - 1, min(T, 6)).round().long().tolist()
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
    shown = image.detach().permute(1, 2, 0).squeeze(-1).cpu().numpy()
    top.imshow(shown, cmap='gray' if shown.ndim == 2 else None, vmin=0, vmax=1)
    top.set_axis_off()
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
    return _write(figure, path)


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


def prediction_sheet(
    images: torch.Tensor,
    labels: Optional[Sequence[int]],
    logits: Optional[torch.Tensor],
    attention: Optional[torch.Tensor],
    path: PathLike,
    class_names: Sequence[str] = (),
) -> Path:
    """Draw images with their predicted classes, and below each its layer-wise class-token attention.

    Args:
        images: (B, 1 or 3, height, width) with values in 0 to 1.
        labels: B true classes; None if they are not known.
        logits: (B, num_classes); None of a model without classes.
        attention: (B, H, L) of `lca_attention`; None for images alone.
        path: PNG to write.
        class_names: Names of the classes; their numbers when empty.

    Returns:
        The path.
    """
    if logits is not None:
        probability, predicted = logits.softmax(-1).max(-1)
    columns = len(images)
    rows = 1 if attention is None else 2
    figure = new_figure(1.35 * columns + 1, 1.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={'height_ratios': [2, 1.5][:rows]})

    def name(index: int) -> str:
        return class_names[index] if class_names else str(index)

    for i in range(columns):
        image = images[i].permute(1, 2, 0).squeeze(-1).cpu().numpy()
        axes[0, i].imshow(image, cmap='gray' if image.ndim == 2 else None, vmin=0, vmax=1)
        axes[0, i].set_axis_off()
        if logits is None:
            continue
        text, colour = f'{name(int(predicted[i]))}  {100 * float(probability[i]):.0f} %', 'black'
        if labels is not None:
            right = int(predicted[i]) == int(labels[i])
            text = text if right else f'{text}\ntrue: {name(int(labels[i]))}'
            colour = '#1a7f37' if right else '#c62828'
        axes[0, i].set_title(text, fontsize=9, color=colour)
    if attention is not None:
        _draw_lca(figure, axes[1], attention)
    return _write(figure, path)


def _draw_lca(figure, axes, attention: torch.Tensor) -> None:
    """Weights (B, H, L) of layer-wise class-token attention in a row of axes."""
    top = float(attention.max())
    for i, axis in enumerate(axes):
        shown = axis.imshow(attention[i].cpu().numpy(), cmap='viridis', vmin=0, vmax=top, aspect='auto')
        axis.set_xticks(range(attention.shape[2]), range(1, attention.shape[2] + 1), fontsize=7)
        axis.set_yticks(range(attention.shape[1]), [] if i else range(1, attention.shape[1] + 1), fontsize=7)
    axes[0].set_ylabel('head', fontsize=8)
    figure.supxlabel('layer whose class token is read (layer-wise class-token attention)', fontsize=9)
    figure.colorbar(shown, ax=axes.tolist(), pad=0.01, fraction=0.02)


def learning_curve(history: Sequence[Dict[str, Any]], path: PathLike) -> Path:
    """Draw training loss and accuracy over epochs.

    Args:
        history: One entry an epoch, with `train_loss` and `top1` (per cent).
        path: PNG to write.

    Returns:
        The path.
    """
    epochs = range(1, len(history) + 1)
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [e['train_loss'] for e in history], marker='.')
    left.set(xlabel='epoch', ylabel='training loss')
    right.plot(epochs, [e['top1'] for e in history], marker='.', color='#1a7f37')
    right.set(xlabel='epoch', ylabel='held-out accuracy, %')
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return _write(figure, path)


def new_figure(width: float, height: float):
    """An empty figure in inches, which leaves the caller's pyplot and its backend alone.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('drawing needs matplotlib: pip install "timm-extra[plot]"') from e
    return Figure(figsize=(width, height), layout='constrained')


def _write(figure, path: PathLike) -> Path:
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path
