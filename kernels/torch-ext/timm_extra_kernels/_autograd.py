"""Gradients of an operator: as `torch.library.register_autograd`, at less than half of what a call costs there.

What is not asked for is also not made: zeros in the place of gradients of outputs that have none.
"""

from typing import Any, Callable, List, Sequence, Tuple

import torch

from ._dispatch import tensors

SetupContext = Callable[[Any, Tuple[Any, ...], Any], None]


def differentiate(operator: str, call: Callable, backward: Callable, setup_context: SetupContext) -> None:
    """Register the gradients of an operator.

    Args:
        operator: Its qualified name.
        call: The operator.
        backward: Takes the context and the gradients of the outputs, None where there is none; returns a gradient for
            each argument, a list of them for a list of tensors.
        setup_context: Keeps what `backward` needs, from the arguments and what the operator returns.
    """
    rules = call, backward, setup_context

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors(args)):
            return _Function.apply(rules, [_length(arg) for arg in args], *_flat(args))
        with torch._C._AutoDispatchBelowAutograd():
            return call(*args)

    torch.library.impl(operator, 'Autograd', run)


class _Function(torch.autograd.Function):
    """Takes the tensors of lists one by one, as it sees none in a list."""

    @staticmethod
    def forward(ctx: Any, rules: Tuple[Callable, Callable, SetupContext], lengths: List[Any], *flat: Any) -> Any:
        call, ctx.backward, setup_context = rules
        args = tuple(_nested(flat, lengths))
        with torch._C._AutoDispatchBelowAutograd():
            out = call(*args)
            setup_context(ctx, args, out)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        return None, None, *_flat(ctx.backward(ctx, *grads))


def _length(arg: Any) -> Any:
    return len(arg) if isinstance(arg, (list, tuple)) else None


def _flat(args: Sequence[Any]) -> List[Any]:
    """Arguments, and in the place of lists what they hold."""
    return [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]


def _nested(flat: Sequence[Any], lengths: Sequence[Any]) -> List[Any]:
    """The reverse of `_flat`."""
    items = iter(flat)
    return [next(items) if n is None else [next(items) for _ in range(n)] for n in lengths]
