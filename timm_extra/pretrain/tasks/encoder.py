"""Embeddings: what a model computes before its classifier."""

import copy
from typing import Optional, Sequence, Union

import torch
from torch import nn

HiddenLayer = Optional[Union[str, int]]


class Encoder(nn.Module):
    """A model as a map from images (B, C, H, W) to embeddings (B, D).

    Args:
        model: Any timm model, or any module together with `hidden_layer`. It is held, not changed.
        hidden_layer: None takes `forward_head(forward_features(x), pre_logits=True)`, what timm's classifiers see. A
            name (as in `named_modules()`) or an index among the children takes that layer's output, flattened; -1 is
            the output of the model itself.

    Raises:
        ValueError: There is no such layer, or the model has no timm interface and `hidden_layer` is None.
    """

    def __init__(self, model: nn.Module, hidden_layer: HiddenLayer = None):
        super().__init__()
        self.model = model
        self.hidden_layer = hidden_layer
        if hidden_layer is None:
            missing = [m for m in ('forward_features', 'forward_head') if not hasattr(model, m)]
            if missing:
                raise ValueError(
                    f'{type(model).__name__} has no {" and no ".join(missing)}: give `hidden_layer`, the name or index '
                    f'of the layer whose output is the embedding; {_choices(model)}'
                )
        else:
            self._layer()

    def _layer(self) -> Optional[nn.Module]:
        """The layer whose output is the embedding; None for the model itself."""
        if isinstance(self.hidden_layer, int):
            children = list(self.model.children())
            if self.hidden_layer == -1:
                return None
            if not -len(children) <= self.hidden_layer < len(children):
                raise ValueError(
                    f'`hidden_layer={self.hidden_layer}` is out of range, {type(self.model).__name__} has '
                    f'{len(children)} children; {_choices(self.model)}'
                )
            return children[self.hidden_layer]
        layers = dict(self.model.named_modules())
        if not self.hidden_layer or self.hidden_layer not in layers:
            raise ValueError(
                f'{type(self.model).__name__} has no layer {self.hidden_layer!r}; '
                f'{_choices(self.model)} or one within them'
            )
        return layers[self.hidden_layer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings.

        Args:
            x: Images (B, C, H, W).

        Returns:
            (B, D).

        Raises:
            ValueError: What comes out is no tensor, or not one vector per image.
        """
        if self.hidden_layer is None:
            out = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        else:
            out = self._hidden(x)
        if not isinstance(out, torch.Tensor):
            raise ValueError(
                f'{self._place()} gives a {type(out).__name__}, not a tensor: choose a `hidden_layer` whose output is '
                f'the embedding; {_choices(self.model)}'
            )
        if self.hidden_layer is not None:
            out = out.flatten(1)
        if out.ndim != 2 or len(out) != len(x):
            raise ValueError(
                f'{self._place()} gives shape {tuple(out.shape)} for {len(x)} images, not one vector each: '
                'create the model with a global pooling, or choose a `hidden_layer`'
            )
        return out

    def _hidden(self, x: torch.Tensor):
        layer = self._layer()
        if layer is None:
            return self.model(x)
        outputs = []
        handle = layer.register_forward_hook(lambda module, args, out: outputs.append(out))
        try:
            self.model(x)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise ValueError(f'{self._place()} ran {len(outputs)} times in a forward pass, its output is no embedding')
        return outputs[0]

    def _place(self) -> str:
        name = type(self.model).__name__
        if self.hidden_layer is None or self.hidden_layer == -1:
            return name
        return f'`hidden_layer={self.hidden_layer!r}` of {name}'


def embedding_size(encoder: Encoder, input_size: Sequence[int]) -> int:
    """Number of features of an encoder, found with a copy of the model: neither it nor any random state changes.

    Args:
        encoder: Encoder.
        input_size: Channels, height and width of an image.

    Returns:
        D of its embeddings (B, D).

    Raises:
        ValueError: The model does not take images of this size, or gives no embeddings.
    """
    return output_shape(encoder, encoder.model, input_size)[1]


def output_shape(module: nn.Module, model: nn.Module, input_size: Sequence[int]) -> torch.Size:
    """Shape of the output of a module for two images, found with a copy.

    Args:
        module: Module on images (B, C, H, W).
        model: The model in it, for errors to name.
        input_size: Channels, height and width of an image.

    Returns:
        The shape, whose first number is 2.

    Raises:
        ValueError: The model does not take images of this size.
    """
    tensor = next(module.parameters())
    devices = [tensor.device] if tensor.device.type == 'cuda' else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        probe = copy.deepcopy(module).eval()
        images = torch.zeros(2, *input_size, device=tensor.device, dtype=tensor.dtype)
        try:
            return probe(images).shape
        except (AssertionError, RuntimeError) as e:
            size = '×'.join(map(str, input_size))
            raise ValueError(f'{type(model).__name__} does not take inputs of {size}: {e}') from e


def _choices(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()]
    return f'its layers are {", ".join(names)}' if names else 'it has no layers of its own'
