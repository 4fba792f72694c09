"""Gradients of an operator: as `torch.library.register_autograd`, at less than half of what a call costs there.

What is not asked for is also not made: zeros in the place of gradients of outputs that have none.
"""

from typing import Any, Callable, List, Sequence, Tuple

import torch

from ._dispatch import tensors

SetupContext = Callable[[Any, Tuple[Any, ...], Any], None]


def differentiate(operator: str, call: Callable, backward: Callable, setup_context: SetupContext) -> Callable:
    """Register the gradients of an operator.

    Args:
        operator: Its qualified name.
        call: The operator.
        backward: Takes the context and the gradients of the outputs, in lists where these are, None where there is
            none; returns a gradient for each argument, a list of them for a list of tensors.
        setup_context: Keeps what `backward` needs, from the arguments and what the operator returns.

    Returns:
        What calls the operator so that it has gradients: as calling it does, with one dispatch less.
    """
    rules = call, backward, setup_context

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors(args)):
            if torch._C._are_functorch_transforms_active():
                raise NotImplementedError(f'{operator} has no rule for transforms of torch.func, its function has')
            lengths: List[Any] = []  # of what is returned
            outs = _Function.apply(rules, [_length(arg) for arg in args], lengths, *_flat(args))
            return tuple(_nested(outs, lengths)) if isinstance(outs, tuple) else outs
        with torch._C._AutoDispatchBelowAutograd():
            return call(*args)

    torch.library.impl(operator, 'Autograd', run)
    return run


class _Function(torch.autograd.Function):
    """Takes and returns the tensors of lists one by one, as it sees none in a list."""

    @staticmethod
    def forward(ctx: Any, rules: Tuple[Callable, Callable, SetupContext], taken: list, returned: list, *flat: Any):
        call, ctx.backward, setup_context = rules
        args = tuple(_nested(flat, taken))
        with torch._C._AutoDispatchBelowAutograd():
            outs = call(*args)
            setup_context(ctx, args, outs)
        ctx.set_materialize_grads(False)
        if isinstance(outs, torch.Tensor):
            return outs
        returned += map(_length, outs)
        ctx.returned = returned
        return tuple(_flat(outs))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        if hasattr(ctx, 'returned'):
            grads = _nested(grads, ctx.returned)
        return None, None, None, *_flat(ctx.backward(ctx, *grads))


def _length(arg: Any) -> Any:
    return len(arg) if isinstance(arg, (list, tuple)) else None


def _flat(args: Sequence[Any]) -> List[Any]:
    """Arguments, and in the place of lists what they hold."""
    return [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]


def _nested(flat: Sequence[Any], lengths: Sequence[Any]) -> List[Any]:
    """The reverse of `_flat`."""
    items = iter(flat)
    return [next(items) if n is None else [next(items) for _ in range(n)] for n in lengths]
