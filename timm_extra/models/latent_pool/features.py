"""What a timm model's `forward_features` gives, and which of its layers that needs: found without computing."""

import copy
from dataclasses import dataclass
from typing import Any, Dict, Tuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .._size import input_size


@dataclass(frozen=True)
class Features:
    """Features of a model.

    Attributes:
        layout: 'NLC' (tokens), 'NCHW' or 'NHWC' (maps).
        channels: Channels C.
        unused: Children of the model none of whose parameters have an influence on the features: its pooling and head.
    """

    layout: str
    channels: int
    unused: Tuple[str, ...]


@torch.inference_mode(False)
def find_features(model: nn.Module) -> Features:
    """Run `forward_features` on tensors without memory, on a copy whose classifier is removed.

    Args:
        model: A timm model.

    Returns:
        What was found.

    Raises:
        ValueError: The model has no features, or they are neither tokens nor a map, or its weights cannot learn.
    """
    name = type(model).__name__
    missing = [m for m in ('forward_features', 'reset_classifier') if not hasattr(model, m)]
    if missing:
        raise ValueError(f'{name} has no {" and no ".join(missing)}: a latent pool needs a timm model')
    if any(t.is_inference() for t in model.parameters()):
        raise ValueError(f'{name} was made in torch.inference_mode(): its weights cannot be learned, make it outside')
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    memo: Dict[int, Any] = {id(t): fake.from_tensor(t) for t in (*model.parameters(), *model.buffers())}
    clone = copy.deepcopy(model, memo).eval()
    remove_classifier(clone)
    parameters = {n: p for n, p in clone.named_parameters() if p.is_floating_point()}
    like = next(iter(parameters.values()))
    with fake, torch.enable_grad():
        for p in parameters.values():
            p.requires_grad_()
        out = clone.forward_features(torch.empty(2, *input_size(model), device=like.device, dtype=like.dtype))
        layout, channels = _layout(name, out, getattr(model, 'output_fmt', None), model.num_features)
        gradients = torch.autograd.grad(out.sum(), list(parameters.values()), allow_unused=True)
    used = {n.split('.')[0] for n, g in zip(parameters, gradients, strict=True) if g is not None}
    children = [n for n, child in clone.named_children() if next(child.parameters(), None) is not None]
    return Features(layout, channels, tuple(n for n in children if n not in used))


def _layout(name: str, out: Any, output_fmt: Any, num_features: int) -> Tuple[str, int]:
    """Layout and channels of features.

    Raises:
        ValueError: They are neither tokens nor a map.
    """
    if not isinstance(out, torch.Tensor):
        raise ValueError(
            f'{name} gives a {type(out).__name__} of features, where a latent pool needs tokens or one map'
        )
    if out.ndim == 4:
        last = str(output_fmt) == 'NHWC' or num_features not in (None, out.shape[1])
        return ('NHWC', out.shape[3]) if last else ('NCHW', out.shape[1])
    if out.ndim != 3 or out.shape[1] == 1:
        shape = tuple(out.shape)
        raise ValueError(
            f'{name} gives features {shape} of 2 inputs, where a latent pool needs tokens (B, N, C) or a map'
        )
    return 'NLC', out.shape[2]


def to_tokens(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Features of a layout as tokens (B, N, C)."""
    if layout == 'NCHW':
        return x.flatten(2).transpose(1, 2)
    return x.flatten(1, 2) if layout == 'NHWC' else x


def remove_unused(model: nn.Module, unused: Tuple[str, ...]) -> None:
    """Remove children that have no influence on the features.

    Of a head that the model resets itself (`ClassifierHead` of timm) its layers go, and it stays: the model calls its
    methods when classifier or layers are removed, and passes it arguments.

    Args:
        model: A timm model, or such a head.
        unused: Names of children.
    """
    for name in unused:
        child = getattr(model, name)
        if hasattr(child, 'reset') and not list(child.parameters(recurse=False)):
            with_weights = (n for n, layer in child.named_children() if next(layer.parameters(), None) is not None)
            remove_unused(child, tuple(with_weights))
        else:
            setattr(model, name, nn.Identity())


def remove_classifier(model: nn.Module) -> None:
    """Remove a timm model's classifier, and its pooling where that may be absent.

    Models that skip work for a pooled token (CeiT) compute all tokens then.
    """
    try:
        model.reset_classifier(0, '')
    except AssertionError:  # the model always pools, in `forward_head`
        model.reset_classifier(0)
