"""The one rule for shortcuts: work that is done another way than by calling each module on the whole batch."""

import torch
from timm.layers import is_exportable
from torch import nn
from torch.autograd import forward_ad

PLAIN_TENSORS = (nn.Parameter, torch.Tensor)


def may_shortcut(*modules: nn.Module, operators: bool = True) -> bool:
    """Whether the work of some modules may be done another way than by calling each, with the same result.

    A shortcut skips modules, folds their weights into others, or calls them once for all items of a batch. It stands
    back where modules are watched or changed: for hooks on one of them or on a module inside, for a `forward` replaced
    on an instance (as Accelerate does), and for weights that are a subclass of a tensor (as torchao's and DTensor).
    Hooks on all modules of a process do not count: PyTorch's counter of operations sets such, and is to count what
    runs without it. One that calls an operator of `timm_extra_kernels` stands back too where there is none:
    TorchScript traces, ONNX and what is made under timm's `set_exportable` are to run without this package, and neither
    the transforms of `torch.func` nor forward-mode differentiation have a rule for operators.

    Args:
        *modules: The modules that would not be called as usual; those inside count too.
        operators: The shortcut calls operators of `timm_extra_kernels`.
    """
    if operators and not _operators_usable():
        return False
    return all(map(_is_plain, modules))


def shared(x: torch.Tensor, batch: int, module: nn.Module) -> torch.Tensor:
    """What all items of a batch share, for a module that takes it.

    Args:
        x: (B or 1, N, C).
        batch: B.
        module: Module that would be called once for all items.

    Returns:
        x, or (B, N, C) where the module is to be called for each item.
    """
    return x if may_shortcut(module, operators=False) else x.expand(batch, -1, -1)


def _operators_usable() -> bool:
    if is_exportable() or forward_ad._current_level >= 0:
        return False
    if torch.jit.is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return False
    return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()


def _is_plain(module: nn.Module) -> bool:
    """Whether a module and those inside are neither watched nor changed. (Loops: every call runs it.)"""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if 'forward' in module.__dict__:
        return False
    for parameter in module._parameters.values():
        kind = type(parameter)  # torch's own tracers put their tensors in the place of parameters
        if parameter is not None and kind not in PLAIN_TENSORS and not kind.__module__.startswith('torch._subclasses.'):
            return False
    for child in module._modules.values():  # noqa: SIM110, as above
        if child is not None and not _is_plain(child):
            return False
    return True
