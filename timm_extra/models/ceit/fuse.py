"""Folding BatchNorms into the layers before them."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def fold_batchnorm(owner: nn.Module, layer: str, norm: str) -> None:
    """Fold a BatchNorm into the convolution or linear layer before it and put the identity in its place.

    Args:
        owner: Module that holds both.
        layer: Name of the `nn.Conv2d` or `nn.Linear`.
        norm: Name of the BatchNorm; nothing happens where there is none.

    Raises:
        RuntimeError: The BatchNorm is in training mode, where it normalises by the batch.
    """
    before, bn = getattr(owner, layer), getattr(owner, norm)
    if isinstance(bn, nn.Identity):
        return
    if owner.training or bn.training:
        raise RuntimeError(f'{type(owner).__name__}.fuse() needs evaluation mode: call model.eval() first')
    fuse = fuse_linear_bn_eval if isinstance(before, nn.Linear) else fuse_conv_bn_eval
    fused = fuse(before, bn)
    fused.bias.requires_grad_(fused.weight.requires_grad)
    setattr(owner, layer, fused)
    setattr(owner, norm, nn.Identity())
