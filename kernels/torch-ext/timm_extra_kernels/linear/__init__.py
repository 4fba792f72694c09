"""The linear layer on CPUs: each of its three products through the library that is faster on this processor.

Not an operator and without a kernel, unlike the other operations: what compiles, exports, traces, transforms or counts
a model is to see PyTorch's own linear layer, which all of that knows. On GPUs it is PyTorch's own too.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from .._dispatch import Path, kernels_enabled
from . import eager
from .processors import Choice, Products, choice

__all__ = ['linear']

PLAIN = (torch.Tensor, torch.nn.Parameter)


def linear(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, on some processors faster: float32 stays float32, rounded in another order.

    Which library takes a product depends on processor and shapes alone, so it is the same in every call and every
    process. Gradients of any order are as PyTorch's.

    Args:
        input: x (…, K).
        weight: W (N, K).
        bias: b (N,).

    Returns:
        x Wᵀ + b (…, N).

    Raises:
        RuntimeError: What PyTorch's function refuses.
    """
    if torch.compiler.is_compiling() or why_not(input, weight, bias) is not None:
        return F.linear(input, weight, bias)
    x = input.reshape(-1, input.shape[-1]).contiguous()  # (M, K)
    # a view of the weight, as PyTorch saves it: of the memory that it has now
    out = _Linear.apply(x, weight.t(), bias) if torch.is_grad_enabled() else _forward(x, weight, bias)
    return out if input.ndim == 2 else torch.ops.aten._unsafe_view(out, (*input.shape[:-1], weight.shape[0]))


def why_not(input: Any, weight: Any, bias: Any = None) -> Optional[str]:
    """Why a call takes PyTorch's own function; None if it does not. (Every call runs it: cheap tests come first.)"""
    rule = choice()
    if not isinstance(rule, Choice):
        return rule
    if torch.jit.is_tracing():  # before any size is looked at: a trace warns of that
        return 'the model is traced'
    if type(input) not in PLAIN or type(weight) not in PLAIN or input.is_nested or weight.is_nested:
        return 'a tensor is not a plain one'
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        return 'the shapes do not fit'
    if not any(_products(input, weight)):
        return 'the product is small'
    for tensor in (input, weight, bias):
        if tensor is None and tensor is bias:
            continue
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_nested:
            return 'a tensor is not a plain one'
        if not tensor.is_cpu:
            return f'the tensors are on {tensor.device}'
        if tensor.dtype is not torch.float32:
            return f'{tensor.dtype} is not float32'
    if not _fits(bias, weight):
        return 'the shapes do not fit'
    if not weight.is_contiguous() or (input.ndim == 2 and not input.is_contiguous()):
        return 'a matrix is not contiguous'
    return _context()


def explain(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> Path:
    """Which libraries a call of `linear` would take, and why."""
    reason = why_not(input, weight, bias)
    form = '' if reason else f'{_products(input, weight)} ({choice().processor})'
    return Path('linear', reason is None, reason or '', form)


def _context() -> Optional[str]:
    """Why no call can take another library than PyTorch's here and now."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return 'a transform or forward-mode differentiation is active'
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return 'a mode watches what is called'
    if torch.is_autocast_enabled('cpu'):
        return 'autocast is on'
    if not torch.backends.mkldnn.enabled:
        return 'oneDNN is turned off'
    if eager.operator() is None:
        return 'this PyTorch has another entry into oneDNN'
    return None if kernels_enabled() else 'TIMM_EXTRA_FUSED=0'


def _fits(bias: Optional[torch.Tensor], weight: torch.Tensor) -> bool:
    return bias is None or (bias.ndim == 1 and bias.shape[0] == weight.shape[0] and bias.is_contiguous())


def _products(x: torch.Tensor, weight: torch.Tensor) -> Products:
    outputs, inputs = weight.shape
    return choice().products(x.numel() // inputs if inputs else 0, inputs, outputs)


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return (eager.forward if _products(x, weight).output else F.linear)(x, weight, bias)


class _Linear(torch.autograd.Function):
    """x (M, K), Wᵀ (K, N) and b (N,), or None, to x Wᵀ + b (M, N). It keeps what PyTorch keeps."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, transposed: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        saved = x if of_weight else None, transposed if of_x else None
        ctx.with_bias = bias is not None
        ctx.save_for_backward(*(saved if ctx.with_bias else saved[::-1]))  # in PyTorch's order, as checkpoints compare
        ctx.products = _products(x, transposed.t())
        return _forward(x, transposed.t(), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        x, transposed = ctx.saved_tensors if ctx.with_bias else ctx.saved_tensors[::-1]
        of_x, of_weight, of_bias = ctx.needs_input_grad
        through = Products()  # PyTorch's products have derivatives themselves, and rules for all that is about
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled()
        if type(grad) is torch.Tensor and not recorded and _context() is None:
            through, grad = ctx.products, grad.contiguous()
        dx = dw = db = None
        if of_x:
            weight = transposed.t()
            dx = eager.input_gradient(grad, weight) if through.input_gradient else grad @ weight
        if of_weight:
            dw = eager.weight_gradient(grad, x) if through.weight_gradient else grad.t() @ x
        if of_bias:
            db = grad.sum(0)
        return dx, None if dw is None else dw.t(), db
