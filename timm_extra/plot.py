"""Pictures: what a model predicts and looks at, and how training went. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch

from .models.ceit import CeiT
from .models.perceiver import Perceiver

PathLike = Union[str, Path]


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


def prediction_sheet(
    images: torch.Tensor,
    labels: Sequence[int],
    logits: torch.Tensor,
    attention: Optional[torch.Tensor],
    path: PathLike,
    class_names: Sequence[str] = (),
) -> Path:
    """Draw images with their predicted classes, and below each its layer-wise class-token attention.

    Args:
        images: (B, 1 or 3, height, width) with values in 0 to 1.
        labels: B true classes.
        logits: (B, num_classes).
        attention: (B, H, L) of `lca_attention`; None for images alone.
        path: PNG to write.
        class_names: Names of the classes; their numbers when empty.

    Returns:
        The path.
    """
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
        right = int(predicted[i]) == int(labels[i])
        text = f'{name(int(predicted[i]))}  {100 * float(probability[i]):.0f} %'
        axes[0, i].set_title(
            text if right else f'{text}\ntrue: {name(int(labels[i]))}',
            fontsize=9,
            color='#1a7f37' if right else '#c62828',
        )
        axes[0, i].set_axis_off()
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
