"""The two operators of an operation, registered from the signatures of its `eager.forward` and `eager.backward`."""

import importlib
import inspect
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ._checks import WAY_OUT
from ._dispatch import Limits, arguments, implement, tensors
from ._ops import add_op_namespace_prefix, ops

DIFFERENTIABLE = (torch.Tensor, Sequence[torch.Tensor])  # annotations of arguments that have a gradient
_SAVED = object()  # stands for a tensor that autograd keeps


class Operators:
    """`<name>` and `<name>_backward`, registered when an instance is made.

    `eager.backward` takes the gradient of the first output of `eager.forward`, then arguments and outputs of `forward`
    by their names, then flags. It returns the gradients of the tensors that `forward` takes, in their order; an
    optional tensor has none.

    Args:
        package: Import name of the operation's package, the last part of which names the operators.
        limits: Says what the kernels cannot do.
        fake: `forward` on tensors without data.
        outputs: Names of the outputs of `forward`. Those after the first are for the backward pass and have no
            gradient.
        flags: The boolean arguments of `backward`, each with the arguments of `forward` whose gradients it requests:
            without it they are empty.
    """

    def __init__(
        self,
        package: str,
        limits: Limits,
        fake: Callable,
        outputs: Sequence[str] = ('out',),
        flags: Optional[Dict[str, Sequence[str]]] = None,
    ):
        eager = importlib.import_module('.eager', package)
        self.flags = flags or {}
        self.arguments, self.backward_arguments = arguments(eager.forward), arguments(eager.backward)
        parameters = inspect.signature(eager.forward).parameters
        self.differentiable = [name for name in self.arguments if parameters[name].annotation in DIFFERENTIABLE]
        known = (*self.arguments, *outputs)
        self._kept = [known.index(name) for name in self.backward_arguments[1:] if name not in self.flags]
        name = package.rpartition('.')[2]
        self._backward_name = f'{name}_backward'
        forward, backward = add_op_namespace_prefix(name), add_op_namespace_prefix(self._backward_name)
        for operator, function in ((forward, eager.forward), (backward, eager.backward)):
            torch.library.define(operator, torch.library.infer_schema(function, mutates_args=()))
            implement(operator, package, function, limits)
        torch.library.register_fake(forward, fake)
        torch.library.register_fake(backward, self._fake_backward)
        torch.library.register_autograd(forward, self._backward, setup_context=self._setup_context)
        torch.library.register_autograd(backward, _no_second_derivative)

    def kept(self, args: Sequence[Any], outs: Any) -> List[Any]:
        """What `backward` takes between the gradient and the flags, of arguments and outputs of `forward`."""
        known = (*args, *(outs if isinstance(outs, (tuple, list)) else (outs,)))
        return [known[i] for i in self._kept]

    def _fake_backward(self, *args: Any) -> Tuple[Any, ...]:
        known = dict(zip(self.backward_arguments, args))
        unwanted = {name for flag, names in self.flags.items() if not known[flag] for name in names}
        return tuple(_empty_like(known[name], name not in unwanted) for name in self.differentiable)

    def _setup_context(self, ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
        values = self.kept(inputs, output)
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors(values))
        ctx.values = [_placeholder(value) for value in values]
        ctx.flags = []
        for names in self.flags.values():
            given = tensors(inputs[self.arguments.index(name)] for name in names)
            ctx.flags.append(any(t.requires_grad for t in given))

    def _backward(self, ctx: Any, grad: torch.Tensor, *_: Any) -> Tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        values = [_restored(value, saved) for value in ctx.values]
        results = getattr(ops, self._backward_name)(grad, *values, *ctx.flags)
        grads = {**dict.fromkeys(self.arguments), **dict(zip(self.differentiable, results))}
        for wanted, names in zip(ctx.flags, self.flags.values()):
            if not wanted:
                known = dict(zip(self.backward_arguments[1:], values))
                grads.update((name, _no_gradient(known[name])) for name in names)
        return tuple(grads.values())


def _empty_like(value: Any, wanted: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return value.new_empty(value.shape if wanted else 0)
    return [t.new_empty(t.shape) for t in value] if wanted else []


def _placeholder(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_SAVED for _ in value]
    return _SAVED if isinstance(value, torch.Tensor) else value


def _restored(value: Any, saved: Any) -> Any:
    if isinstance(value, list):
        return [next(saved) for _ in value]
    return next(saved) if value is _SAVED else value


def _no_gradient(value: Any) -> Any:
    """What autograd accepts: as many None as there are tensors."""
    return [None for _ in value] if isinstance(value, list) else None


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    """Backward of the backward operators.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(f'the operations of timm_extra_kernels have no second derivative. {WAY_OUT}')
