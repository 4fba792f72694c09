"""A model with the contract of `perceiver_io_flow` whose answer is known: brightness as if it were motion."""

import timm
import torch
from timm.models import build_model_with_cfg, register_model
from torch import nn

SIZE = (3, 2, 368, 496)
default_cfgs = {
    'standin_flow': dict(url='', num_classes=2, input_size=(3, 368, 496), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
}


class BrightnessFlow(nn.Module):
    """Flow (B, 2, H, W) of frames (B, 3, 2, H, W): `scale` times the red of the first, and the green of the second."""

    def __init__(self, scale: float = 1.0, num_classes: int = 2, in_chans: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self._traits = dict(input_size=SIZE)  # as Perceivers state what timm's configuration cannot
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.stack([x[:, 0, 0], x[:, 1, 1]], 1)


@register_model
def standin_flow(pretrained=False, **kwargs):
    return build_model_with_cfg(BrightnessFlow, 'standin_flow', pretrained, **kwargs)


def create_standin(scale: float = 1.0) -> nn.Module:
    """The model in evaluation mode."""
    return timm.create_model('standin_flow', scale=scale).eval()
