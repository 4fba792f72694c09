"""The one rule for shortcuts: work that is done another way than by calling each module on the whole batch."""

import torch
from timm.layers import is_exportable
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all

PLAIN_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)


def may_shortcut(*modules: nn.Module, operators: bool = True) -> bool:
    """Whether the work of some modules may be done another way than by calling each, with the same result.

    A shortcut skips modules, folds their weights into others, or calls them once for all items of a batch. It stands
    back for whoever looks at the modules or has changed them: hooks on one of them, on a module inside or on all
    modules, a `forward` replaced on an instance (as Accelerate does), and weights that are a subclass of a tensor (as
    torchao's and DTensor). One that calls an operator of `timm_extra_kernels` stands back too where there is none:
    TorchScript traces, ONNX and what is made under timm's `set_exportable` are to run without this package, and neither
    the transforms of `torch.func` nor forward-mode differentiation have a rule for operators.

    Args:
        *modules: The modules that would not be called as usual; those inside count too.
        operators: The shortcut calls operators of `timm_extra_kernels`.
    """
    if operators and not _operators_usable():
        return False
    return not _all_are_hooked() and all(map(_is_plain, modules))


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
    if is_exportable():
        return False
    if torch.jit.is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return False
    if torch.compiler.is_compiling():
        return True
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


def _all_are_hooked() -> bool:
    return bool(
        hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or hooks_of_all._global_backward_hooks
        or hooks_of_all._global_backward_pre_hooks
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether nobody looks at a module or at one inside, and nobody has changed them."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if 'forward' in module.__dict__:
        return False
    if not all(_is_plain_tensor(p) for p in module._parameters.values() if p is not None):
        return False
    return all(_is_plain(child) for child in module._modules.values() if child is not None)


def _is_plain_tensor(tensor: torch.Tensor) -> bool:
    kind = type(tensor)  # torch's own tracers put their tensors in the place of parameters
    return kind in PLAIN_TENSORS or kind.__module__.startswith('torch._subclasses.')
