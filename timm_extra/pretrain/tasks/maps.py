"""Feature maps: what a model computes for every place of an image."""

from typing import Any, Callable, Sequence, Tuple

import torch
from torch import nn

from .encoder import Encoder, output_shape


class MapEncoder(Encoder):
    """A model as a map from images (B, C, H, W) to embeddings (B, E), with feature maps (B, D, h, w) beside them.

    Maps are those of timm's `forward_intermediates`: of stages of ConvNets and pyramids, of blocks of ViTs and CeiTs
    (the tokens of patches, with the final norm where the model offers it), of levels of a GLOM.

    Args:
        model: Any timm model with feature maps. It is held, not changed.
        feature_index: Which of its maps; negative numbers count from the last.
        input_size: Channels, height and width of the images that the model is tried with.

    Attributes:
        map_shape: Channels, rows and columns of the maps of such images.

    Raises:
        ValueError: The model has no feature maps or no such one, or does not take images of this size.
    """

    def __init__(self, model: nn.Module, feature_index: int, input_size: Sequence[int]):
        super().__init__(model)
        name = type(model).__name__
        if not hasattr(model, 'forward_intermediates'):
            raise ValueError(f'{name} has no feature maps: it has no forward_intermediates')
        output_shape(_Trial(model, type(model).forward_features), model, input_size)  # names images of a wrong size
        if type(feature_index) is not int:
            raise ValueError(f'`feature_index` must be an integer, got {feature_index!r}')
        self.feature_index = feature_index
        for self.norm in (False, True):  # some models have no norm for their maps
            trial = _Trial(model, _maps, feature_index, self.norm)
            try:
                shape = output_shape(trial, model, input_size)
            except ValueError as e:
                if self.norm:
                    self.norm = False
                    continue
                reason = _out_of_range(model, feature_index, input_size) or e.__cause__
                raise ValueError(f'{name} has no feature maps at `feature_index={feature_index}`: {reason}') from e
            if len(shape) != 4:
                raise ValueError(f'{name} has no feature maps: what it computes has the shape {tuple(shape)}')
            self.map_shape: Tuple[int, int, int] = tuple(shape[1:])

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, D, h, w) of images (B, C, H, W); layers behind them are left out."""
        return _maps(self.model, x, self.feature_index, self.norm)

    def maps_and_embeddings(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Feature maps (B, D, h, w) and embeddings (B, E) of images (B, C, H, W), by one forward pass."""
        options = dict(norm=self.norm, output_fmt='NCHW')
        final, (maps,) = self.model.forward_intermediates(x, indices=[self.feature_index], **options)
        return maps, self.model.forward_head(final, pre_logits=True)


def _maps(model: nn.Module, x: torch.Tensor, feature_index: int, norm: bool) -> torch.Tensor:
    options = dict(norm=norm, output_fmt='NCHW', intermediates_only=True, stop_early=True)
    return model.forward_intermediates(x, indices=[feature_index], **options)[0]


def _number(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A tensor with as many elements as the model has maps."""
    return x.new_empty(len(model.forward_intermediates(x, output_fmt='NCHW', intermediates_only=True)))


def _out_of_range(model: nn.Module, feature_index: int, input_size: Sequence[int]) -> str:
    """That the index is out of range, in words; nothing if it is not, or the model has no maps at all."""
    try:
        (count,) = output_shape(_Trial(model, _number), model, input_size)
    except ValueError:
        return ''
    return '' if -count <= feature_index < count else f'it has {count}, with indices from {-count} to {count - 1}'


class _Trial(nn.Module):
    """A function of a model and images as a module, which `output_shape` copies."""

    def __init__(self, model: nn.Module, function: Callable[..., torch.Tensor], *args: Any):
        super().__init__()
        self.model, self.function, self.args = model, function, args

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.model, x, *self.args)
