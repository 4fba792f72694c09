"""The one rule for shortcuts: work that is done another way than by calling each module."""

import torch
from timm.layers import is_exportable
from torch import nn


def may_shortcut(*modules: nn.Module, operators: bool = True) -> bool:
    """Whether the work of some modules may be done without calling them, by a way that gives the same result.

    A shortcut stands back for hooks on any of the modules. One that calls an operator of `timm_extra_kernels` stands
    back too where there is none: TorchScript traces and ONNX are to run without this package, so is what is made under
    timm's `set_exportable`, and the transforms of `torch.func` have no rule for operators.

    Args:
        *modules: The modules that would not be called.
        operators: The shortcut calls operators of `timm_extra_kernels`.
    """
    if operators and not _operators_usable():
        return False
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules
    )


def _operators_usable() -> bool:
    if is_exportable():
        return False
    if torch.jit.is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return False
    return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()
