"""Linear layers whose products go through the library that is faster on this processor."""

import logging
from typing import List

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import nn

from timm_extra_kernels import Path, explain, linear

_logger = logging.getLogger(__name__)


@register_notrace_module  # what runs depends on the processor
class AcceleratedLinear(nn.Linear):
    """`nn.Linear` whose products go through `timm_extra_kernels.linear`, on some CPUs faster; elsewhere the same calls.

    `accelerate` makes such layers.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x (…, K) to x Wᵀ + b (…, N)."""
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript compiles only what such an `if` alone guards
            if 'weight' in self._parameters:  # neither parametrised nor pruned
                return linear(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)

    def explain(self, input: torch.Tensor) -> Path:
        """Which libraries a call would take, and why, without making it."""
        if 'weight' not in self._parameters:
            return Path('linear', False, 'the weight is parametrised or pruned')
        return explain(linear, input, self.weight, self.bias)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer and nothing more, such as an adapter or a quantised one."""
    return type(module) in (nn.Linear, AcceleratedLinear)


def accelerate(model: nn.Module, enable: bool = True) -> nn.Module:
    """Make a model's linear layers faster on processors where PyTorch's own products are slow: AMD with AVX-512.

    Every module that is exactly an `nn.Linear` becomes one of a subclass; parameters, their names, hooks and results
    up to rounding stay as they are. What cannot gain takes PyTorch's own function as before: other processors and
    devices, other dtypes than float32, small products, compiled and exported models, transforms and autocast.
    `AcceleratedLinear.explain` says what a call takes. What was replaced is logged, at the level of information.

    Args:
        model: Any model, changed in place.
        enable: False gives all such layers their own class again.

    Returns:
        The model.
    """
    before, after = (nn.Linear, AcceleratedLinear) if enable else (AcceleratedLinear, nn.Linear)
    names: List[str] = []
    for name, module in model.named_modules():
        if type(module) is before:
            module.__class__ = after
            names.append(name)
    _logger.info('%s: %d layers are %s now: %s', type(model).__name__, len(names), after.__name__, ', '.join(names))
    return model
