"""Sheets of images with predictions and attention maps, and learning curves."""

import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from timm_extra._files import PathLike, atomic_file

LABEL_WIDTH = 18  # letters above an image of a prediction sheet
LINE = 0.17  # inches, of a line of a label
NARROWEST = 5.0  # inches, in which the label below fits


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
        draw_image(axes[i, 0], images[i])
        for j in range(L):
            axes[i, j + 1].imshow(maps[i, j].numpy(), cmap='magma', vmin=0)  # a scale of its own: maps differ in peak
            if i == 0:
                axes[i, j + 1].set_title(names[j] if names else f'latent {j}', fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return write_figure(figure, path)


def class_token_sheet(
    image: torch.Tensor,
    attention: torch.Tensor,
    layers: Optional[torch.Tensor],
    path: PathLike,
    title: str = '',
    layer: Optional[int] = None,
) -> Path:
    """Draw an image, where the class token looks in it, and which layers' class tokens are read.

    Args:
        image: (1 or 3, height, width) with values in 0 to 1.
        attention: (H, rows, columns) of `class_token_attention`; heads are averaged.
        layers: (H, L) of `lca_attention`; None of a model without.
        path: PNG to write.
        title: What stands above the image; long ones are broken into lines.
        layer: Number of the layer that `attention` is of, from 1.

    Returns:
        The path.
    """
    panels = 2 if layers is None else 3
    title = _lines(title, 34)
    figure = new_figure(3.5 * panels, 4.0 + LINE * title.count('\n'))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    draw_image(axes[0], image)
    axes[0].set_title(title, fontsize=9)
    weights = attention.mean(0).cpu().numpy()
    _, height, width = image.shape
    draw_image(axes[1], image.mean(0, keepdim=True))
    # each patch over its own pixels, the darkest where the token looks least
    shown = axes[1].imshow(weights, cmap='magma', vmin=0, alpha=0.7, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    number = '' if layer is None else f' (layer {layer})'
    axes[1].set_title(f'where the class token looks{number},\nmean of {len(attention)} heads', fontsize=9)
    figure.colorbar(shown, ax=axes[1], pad=0.01, fraction=0.05, anchor=(0, 0)).ax.tick_params(labelsize=7)
    for axis in axes[:2]:
        axis.set_anchor('S')  # all that is left of the height is for the title, which the layout does not count
    if layers is not None:
        _draw_lca(figure, axes[2:], layers[None])
        axes[2].set_title('layers whose class tokens are read', fontsize=9)
        axes[2].set_xlabel('layer', fontsize=8)
        axes[2].set_box_aspect(1)
        axes[2].set_anchor('S')
    return write_figure(figure, path)


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
    titles = [('', 'black')] * len(images) if logits is None else _predicted(logits, labels, class_names)
    lines = max(text.count('\n') for text, _ in titles)
    columns = len(images)
    rows = 1 if attention is None else 2
    width = max(1.35 * columns + 1, 0 if attention is None else NARROWEST)
    heights = [2.0 + LINE * lines, 1.6][:rows]
    figure = new_figure(width, sum(heights))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={'height_ratios': heights})
    for axis, image, (text, colour) in zip(axes[0], images, titles, strict=True):
        draw_image(axis, image)
        axis.set_anchor('S')  # as in `class_token_sheet`
        axis.set_title(text, fontsize=9, color=colour)
    if attention is not None:
        _draw_lca(figure, axes[1], attention)
        figure.supxlabel('layer whose class token is read (layer-wise class-token attention)', fontsize=9)
    return write_figure(figure, path)


def _predicted(
    logits: torch.Tensor, labels: Optional[Sequence[int]], class_names: Sequence[str]
) -> List[Tuple[str, str]]:
    """Title and its colour for the logits (B, num_classes) of every image."""
    probability, predicted = logits.softmax(-1).max(-1)

    def named(index: int, before: str = '', after: str = '') -> str:
        return _lines(f'{before}{class_names[index] if class_names else index}{after}', LABEL_WIDTH)

    titles = []
    for i, index in enumerate(predicted.tolist()):
        text = named(index, after=f'  {100 * float(probability[i]):.0f} %')
        if labels is None:
            titles.append((text, 'black'))
        elif index == int(labels[i]):
            titles.append((text, '#1a7f37'))
        else:
            titles.append((text + '\n' + named(int(labels[i]), before='true: '), '#c62828'))
    return titles


def _lines(text: str, width: int) -> str:
    """Text in lines of at most that many letters."""
    return '\n'.join(textwrap.wrap(text, width))


def _draw_lca(figure, axes, attention: torch.Tensor) -> None:
    """Weights (B, H, L) of layer-wise class-token attention in a row of axes."""
    top = float(attention.max())
    L = attention.shape[2]
    step = 1 if len(axes) == 1 else 1 + (L - 1) // 8  # numbers of more layers would run into one another
    for i, axis in enumerate(axes):
        shown = axis.imshow(attention[i].cpu().numpy(), cmap='viridis', vmin=0, vmax=top, aspect='auto')
        axis.set_xticks(range(0, L, step), range(1, L + 1, step), fontsize=7)
        axis.set_yticks(range(attention.shape[1]), [] if i else range(1, attention.shape[1] + 1), fontsize=7)
    axes[0].set_ylabel('head', fontsize=8)
    bar = figure.colorbar(shown, ax=list(axes), pad=0.01, fraction=0.02 if len(axes) > 1 else 0.05, anchor=(0, 0))
    bar.ax.tick_params(labelsize=7)


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
    return write_figure(figure, path)


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


def draw_image(axis, image: torch.Tensor) -> None:
    """Draw an image (1 or 3, height, width) with values in 0 to 1, without ticks."""
    shown = image.detach().permute(1, 2, 0).squeeze(-1).cpu().numpy()
    axis.imshow(shown, cmap='gray' if shown.ndim == 2 else None, vmin=0, vmax=1)
    axis.set_axis_off()


def evenly_spaced(count: int) -> List[int]:
    """At most six indices below `count`, from first to last."""
    return torch.linspace(0, count - 1, min(count, 6)).round().long().tolist()


def write_figure(figure, path: PathLike) -> Path:
    """Write a figure as the kind of file that the extension names."""
    path = Path(path)
    with atomic_file(path) as aside:
        figure.savefig(aside, dpi=120)
    return path
