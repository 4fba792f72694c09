"""What models attend to: patches and layers of a CeiT, inputs of a Perceiver."""

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike
from timm_extra.images import preprocessing
from timm_extra.layers import Attention
from timm_extra.models import CeiT, Perceiver, PerceiverIO
from timm_extra.models.info import class_labels

from .sheets import class_token_sheet, evenly_spaced, latent_sheet


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
    return _weights(model.lca.attn, model, x)[:, :, 0]  # (B, H, L) of (B, H, 1, L)


def class_token_attention(model: CeiT, x: torch.Tensor, block: int = -1) -> torch.Tensor:
    """Where the class token looks in an image: its weights on the patches, in one of the blocks.

    With q of the class token and k of the class token and all N patches, these are entries 1 to N of
    softmax(q kᵀ / √D), head by head. What is missing to 1 is the class token's weight on itself.

    Args:
        model: CeiT, in evaluation mode.
        x: Images (B, in_chans, height, width).
        block: Which block; negative ones count from the last.

    Returns:
        (B, H, rows, columns) of the patches, non-negative, summing to at most 1.

    Raises:
        ValueError: There is no such block, or the model is in training mode.
    """
    count = len(model.blocks)
    if not -count <= block < count:
        raise ValueError(f'blocks are 0 to {count - 1}, got {block}')
    weights = _weights(model.blocks[block].attn, model, x)[:, :, 0, 1:]  # (B, H, N)
    return weights.unflatten(-1, model.patch_embed.dynamic_feat_size(tuple(x.shape[-2:])))


def _weights(attn: Attention, model: CeiT, x: torch.Tensor) -> torch.Tensor:
    """Weights (B, H, queries, N) that an attention of a CeiT forms."""
    _check_evaluates(model, 'images change its statistics')
    fused = attn.fused_attn
    try:
        attn.fused_attn = False  # the fused path never forms the weights
        ((weights,),) = _arguments(attn.attn_drop, model, x)
    finally:
        attn.fused_attn = fused
    return weights


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
    if not len(latents):
        raise ValueError('latents must name at least one, got none')
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


def _plot_ceit(model: CeiT, shown: torch.Tensor, x: torch.Tensor, block: int, path: PathLike) -> str:
    """Draw where the class token of a CeiT looks in one image, and which layers it reads."""
    maps = class_token_attention(model, x, block)
    layers = None if model.lca is None else lca_attention(model, x)
    title = ''
    if model.num_classes and model.global_pool:
        with torch.no_grad():
            probability, predicted = model(x).float().softmax(-1)[0].max(-1)
        title = f'{class_labels(model)[int(predicted)]}  {100 * float(probability):.0f} %'
    number = 1 + block % len(model.blocks)
    class_token_sheet(shown[0], maps[0].float(), None if layers is None else layers[0].float(), path, title, number)
    over = f'class-token attention of block {number - 1} over {maps.shape[2]}×{maps.shape[3]} patches'
    if layers is None:
        return over
    return f'{over}; layer-wise class-token attention, {layers.shape[1]} heads over {layers.shape[2]} layers'


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
    """Show a model an image as in evaluation and draw the attention it has.

    Of a CeiT's class token over the image (`class_token_attention`) and, with LCA, over the layers; of a Perceiver's
    latents over the image.

    Args:
        model: CeiT, Perceiver or Perceiver IO of 1 or 3 channels, in evaluation mode.
        image: Image file.
        path: PNG to write.
        latents: Which latents of a Perceiver; six from first to last when None.
        block: Which block of a CeiT, or cross-attend of a Perceiver; negative from the last.
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
        return _plot_ceit(model, shown, x, block, path)
    count = model.latents.shape[0]
    if latents is None:
        latents = evenly_spaced(count)
    maps = latent_attention(model, x, latents, block)
    latent_sheet(shown, maps.float(), path, [f'latent {i}' for i in latents])
    return f'attention of latents {", ".join(map(str, latents))} over {maps.shape[-2]}×{maps.shape[-1]} inputs'
