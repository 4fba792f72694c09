"""What models attend to: layers of a CeiT, inputs of a Perceiver."""

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike
from timm_extra.images import preprocessing
from timm_extra.models import CeiT, Perceiver, PerceiverIO
from timm_extra.models.info import class_labels

from .sheets import evenly_spaced, latent_sheet, prediction_sheet


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
    _check_evaluates(model, 'images change its statistics')
    attn, fused = model.lca.attn, model.lca.attn.fused_attn
    try:
        attn.fused_attn = False  # the fused path never forms the weights
        ((weights,),) = _arguments(attn.attn_drop, model, x)
    finally:
        attn.fused_attn = fused
    return weights[:, :, 0]  # (B, H, L) of (B, H, 1, L)


def latent_attention(
    model: Perceiver, x: torch.Tensor, latents: Sequence[int], block: int = 0, mask: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """What latents look at: their weights over the inputs in one of the cross-attends.

    Only the requested maps are formed; a map of every latent would be as large as all latents times all inputs.

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
    _check_evaluates(model, 'dropout disturbs what is seen')
    outside = [i for i in latents if not 0 <= i < model.latents.shape[0]]
    if outside:
        raise ValueError(f'latents are 0 to {model.latents.shape[0] - 1}, got {outside[0]}')
    block %= count
    used = min(block, len(model.cross_attends) - 1)
    attn = model.cross_attends[used].attn
    # a shared set of weights is called once for each of its blocks
    queries, inputs = _arguments(attn, model.forward_features, x, mask)[block - used]
    with torch.no_grad():
        weights = attn.attention_weights(queries[:, list(latents)], inputs)  # (B, H, L, N)
        grid = model.stem(x)[-1]
    return weights.unflatten(-1, grid)


def decoder_attention(
    model: PerceiverIO, x: torch.Tensor, mask: Optional[torch.Tensor] = None, queries: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """What the queries of a decoder look at: their weights over the latents.

    Args:
        model: Perceiver IO, in evaluation mode.
        x: As in `PerceiverIO.forward`, like `mask` and `queries`.
        mask: Likewise.
        queries: Likewise.

    Returns:
        (B, H, Q, M), non-negative, summing to 1 over the M latents.

    Raises:
        ValueError: The model has no decoder, or is in training mode.
    """
    if getattr(model, 'decoder', None) is None:
        raise ValueError(f'this {type(model).__name__} has no decoder to look at')
    _check_evaluates(model, 'dropout disturbs what is seen')
    attn = model.decoder.attn
    arguments = _arguments(attn, model, x, mask, queries)[0]
    with torch.no_grad():
        return attn.attention_weights(*arguments)


def _arguments(module: nn.Module, run: Callable, *inputs: Any) -> List[Tuple[Any, ...]]:
    """What a module is called with, each time, while something runs without gradients."""
    seen: List[Tuple[Any, ...]] = []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args))
    try:
        with torch.no_grad():
            run(*inputs)
    finally:
        hook.remove()
    return seen


def _check_evaluates(model: nn.Module, why: str) -> None:
    if model.training:
        raise ValueError(f'the model is in training mode, where {why}: call model.eval() first')


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
        input_size: As in `timm_extra.images.input_config`, like `mean` and `std`.
        mean: What the image is normalised with.
        std: Likewise.

    Returns:
        What was drawn, as text.

    Raises:
        ValueError: The model has no such attention or is in training mode, the file cannot be read, or a value is out
            of range.
    """
    if not isinstance(model, (CeiT, Perceiver)):
        raise ValueError(f'CeiT and Perceivers have attention to draw, got {type(model).__name__}')
    if isinstance(model, CeiT) and latents is not None:
        raise ValueError('a CeiT has no latents')
    prepare = preprocessing(model, input_size, mean, std)
    x = prepare.read(image)[None]
    shown, x = prepare.visible(x), x.to(next(model.parameters()))
    if isinstance(model, CeiT):
        attention = lca_attention(model, x)
        with torch.no_grad():
            logits = model(x) if model.num_classes else None
        prediction_sheet(shown, None, logits, attention.float(), path, class_labels(model))
        return f'layer-wise class-token attention, {attention.shape[1]} heads over {attention.shape[2]} layers'
    count = model.latents.shape[0]
    if latents is None:
        latents = evenly_spaced(count)
    maps = latent_attention(model, x, latents, block)
    latent_sheet(shown, maps.float(), path, [f'latent {i}' for i in latents])
    return f'attention of latents {", ".join(map(str, latents))} over {maps.shape[-2]}×{maps.shape[-1]} inputs'
