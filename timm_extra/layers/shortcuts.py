"""When a layer may hand its work to an operator of `timm_extra_kernels`, and when its modules must be called."""

import torch
from torch import nn


def operators_usable() -> bool:
    """Whether the operators can be called here: TorchScript, traces and ONNX are to run without this package, and the
    transforms of `torch.func` have no rule for them."""
    if torch.jit.is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return False
    return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()


def has_hooks(*modules: nn.Module) -> bool:
    """Whether any of the modules must be called for the sake of whoever listens."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)
