"""Pictures: what a model predicts, what its class token reads, how training went. Needs matplotlib (extra `plot`)."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

import torch

from .models.ceit import CeiT

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


def prediction_sheet(
    images: torch.Tensor,
    labels: Sequence[int],
    logits: torch.Tensor,
    attention: torch.Tensor,
    path: PathLike,
    class_names: Sequence[str] = (),
) -> Path:
    """Draw images with their predicted classes, and below each its layer-wise class-token attention.

    Args:
        images: (B, 1 or 3, height, width) with values in 0 to 1.
        labels: B true classes.
        logits: (B, num_classes).
        attention: (B, H, L) of `lca_attention`.
        path: PNG to write.
        class_names: Names of the classes; their numbers when empty.

    Returns:
        The path.
    """
    probability, predicted = logits.softmax(-1).max(-1)
    columns = len(images)
    figure = new_figure(1.35 * columns + 1, 3.6)
    axes = figure.subplots(2, columns, squeeze=False, gridspec_kw={'height_ratios': [2, 1.5]})

    def name(index: int) -> str:
        return class_names[index] if class_names else str(index)

    top = float(attention.max())
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
        shown = axes[1, i].imshow(attention[i].cpu().numpy(), cmap='viridis', vmin=0, vmax=top, aspect='auto')
        axes[1, i].set_xticks(range(attention.shape[2]), range(1, attention.shape[2] + 1), fontsize=7)
        axes[1, i].set_yticks(range(attention.shape[1]), [] if i else range(1, attention.shape[1] + 1), fontsize=7)
    axes[1, 0].set_ylabel('head', fontsize=8)
    figure.supxlabel('layer whose class token is read (layer-wise class-token attention)', fontsize=9)
    figure.colorbar(shown, ax=axes[1, :].tolist(), pad=0.01, fraction=0.02)
    return _write(figure, path)


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
