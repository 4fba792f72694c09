"""The operators of an operation, registered from the signatures of its `eager.forward` and `eager.backward`."""

import importlib
import inspect
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ._autograd import differentiate
from ._checks import has_tangent
from ._dispatch import Dispatcher, Limits, arguments, tensors
from ._ops import add_op_namespace_prefix, ops
from ._tiles import compute_dtype, without_autocast

DIFFERENTIABLE = (torch.Tensor, Sequence[torch.Tensor])  # annotations of arguments that have a gradient
_SAVED = object()  # stands for a tensor that autograd keeps


class Operators:
    """`<name>`, `<name>_backward` and `<name>_exported`, registered when an instance is made.

    The last is what programs of `torch.export` hold. It calls `<name>`, but for `ExportedProgram.run_decompositions`,
    where it becomes the operators of PyTorch that the naive form consists of: runtimes that know no others call that.

    `eager.backward` takes the gradient of the first output of `eager.forward`, then arguments and outputs of `forward`
    by their names, then flags. It returns the gradients of the tensors that `forward` takes, in their order; an
    optional tensor has none.

    Args:
        package: Import name of the operation's package, the last part of which names the operators.
        limits: Says what the kernels cannot do.
        fake: `forward` on tensors without data.
        outputs: Names of the outputs of `forward`. Those after the first have no gradient.
        returned: How many of them the naive form has, and callers get; what follows is for the backward pass.
        flags: The boolean arguments of `backward`, each with the arguments of `forward` whose gradients it requests:
            without it they are empty.
        slower: Says where the kernel of the forward pass would not be faster.
    """

    def __init__(
        self,
        package: str,
        limits: Limits,
        fake: Callable,
        outputs: Sequence[str] = ('out',),
        returned: int = 1,
        flags: Optional[Dict[str, Sequence[str]]] = None,
        slower: Optional[Limits] = None,
    ):
        eager = importlib.import_module('.eager', package)
        self._naive_form = without_autocast(importlib.import_module('.naive', package).forward)
        self.package, self.fake, self.returned, self.flags = package, fake, returned, flags or {}
        self.arguments, self.backward_arguments = arguments(eager.forward), arguments(eager.backward)
        parameters = inspect.signature(eager.forward).parameters
        self.differentiable = [name for name in self.arguments if parameters[name].annotation in DIFFERENTIABLE]
        known = (*self.arguments, *outputs)
        self._kept = [known.index(name) for name in self.backward_arguments[1:] if name not in self.flags]
        self.name = package.rpartition('.')[2]
        self._backward_name, self._exported_name = f'{self.name}_backward', f'{self.name}_exported'
        names = self.name, self._backward_name, self._exported_name
        forward, backward, exported = map(add_op_namespace_prefix, names)
        for operator, function in ((forward, eager.forward), (backward, eager.backward)):
            torch.library.define(operator, torch.library.infer_schema(function, mutates_args=()))
        self.dispatcher = Dispatcher(forward, package, eager.forward, limits, slower)
        Dispatcher(backward, package, eager.backward, limits)
        torch.library.register_fake(forward, fake)
        torch.library.register_fake(backward, self._fake_backward)
        self._operator, backward_operator = (getattr(ops, name).default for name in names[:2])
        self._call = differentiate(forward, self._operator, self._backward, self._setup_context)
        differentiate(backward, backward_operator, self._second_backward, self._keep_inputs)
        takes = torch.library.infer_schema(eager.forward, mutates_args=()).rpartition(' -> ')[0]
        torch.library.define(exported, f'{takes} -> ({", ".join(["Tensor"] * returned)})')
        torch.library.impl(exported, 'CompositeImplicitAutograd', self._exported)

    def __call__(self, *args: Any) -> Any:
        """What callers get of the outputs of `forward`."""
        if torch.compiler.is_exporting():
            return getattr(ops, self._exported_name)(*args)
        if _transformed(args):
            return self._naively(args)
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        call = self._operator if recorded else self._call
        return self._of_outputs(call(*args))

    def outputs(self, args: Sequence[Any]) -> Tuple[torch.Tensor, ...]:
        """All outputs of `forward`, without gradients: for what takes the inputs part by part."""
        with torch.no_grad():
            return self._operator(*args)

    def gradients(self, grad: torch.Tensor, args: Sequence[Any], outs: Sequence[torch.Tensor], *flags: bool) -> Any:
        """What `backward` returns; `outs` may be those over more inputs than `args` has."""
        with torch.no_grad():
            return getattr(ops, self._backward_name)(grad, *self.kept(args, outs), *flags)

    def _of_outputs(self, outs: Any) -> Any:
        if not isinstance(outs, tuple):
            return outs
        return outs[0] if self.returned == 1 else outs[: self.returned]

    def _exported(self, *args: Any) -> Any:
        """The exported operator. It has a decomposition in Python while a table of decompositions that has it is in
        use: `run_decompositions` puts it there."""
        kernels = getattr(ops, self._exported_name).default.py_kernels
        if torch._C.DispatchKey.CompositeImplicitAutograd not in kernels:
            return self._of_outputs(self._operator(*args))
        return self._naively(args)

    def _naive(self, args: Sequence[Any]) -> Tuple[torch.Tensor, ...]:
        """Outputs of the naive form, in the dtype of the arithmetic."""
        outs = self._naive_form(*_in_dtype(compute_dtype(*tensors(args)), args))
        return outs if isinstance(outs, tuple) else (outs,)

    def _naively(self, args: Sequence[Any]) -> Any:
        """What callers get, in operators of PyTorch alone: all that PyTorch can do with those can be done with it."""
        expected = self.fake(*args)
        first, *rest = zip(self._naive(args), expected if isinstance(expected, tuple) else (expected,))
        outs = first[0].to(first[1].dtype), *(out.detach().to(like.dtype) for out, like in rest)
        return outs[0] if self.returned == 1 else outs

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
        if _transformed([grad]) or _batched(grad):
            return self._naive_backward(grad, dict(zip(self.backward_arguments[1:], values)))
        results = getattr(ops, self._backward_name)(grad, *values, *ctx.flags)
        grads = {**dict.fromkeys(self.arguments), **dict(zip(self.differentiable, results))}
        for wanted, names in zip(ctx.flags, self.flags.values()):
            if not wanted:
                known = dict(zip(self.backward_arguments[1:], values))
                grads.update((name, _no_gradient(known[name])) for name in names)
        return tuple(grads.values())

    def _naive_backward(self, grad: torch.Tensor, known: Dict[str, Any]) -> Tuple[Any, ...]:
        """Gradients of the naive form, for a transform that goes through the gradient of the output alone."""

        def forward(*given: torch.Tensor) -> torch.Tensor:
            found = iter(given)
            named = {name: _each(lambda _: next(found), known[name]) for name in self.differentiable}
            return self._naive([{**known, **named}[name] for name in self.arguments])[0]

        with torch.autocast(grad.device.type, enabled=False):
            out, pull = torch.func.vjp(forward, *tensors(known[name] for name in self.differentiable))
            found = iter(pull(grad.to(out.dtype)))
        grads = {name: _each(lambda t: next(found), known[name]) for name in self.differentiable}
        return tuple({**dict.fromkeys(self.arguments), **grads}.values())

    def _keep_inputs(self, ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*tensors(inputs))
        ctx.values = [_placeholder(value) for value in inputs]

    def _second_backward(self, ctx: Any, *grads: Any) -> Tuple[Any, ...]:
        with torch.autocast(next(tensors(grads)).device.type, enabled=False):
            return self._second_derivatives(ctx, grads)

    def _second_derivatives(self, ctx: Any, grads: Sequence[Any]) -> Tuple[Any, ...]:
        """Gradients of the backward operator, from the naive form.

        What it takes of the outputs of `forward` is a function of the arguments, and counts as such.
        """
        saved, create_graph = iter(ctx.saved_tensors), torch.is_grad_enabled()
        known = dict(zip(self.backward_arguments, (_restored(value, saved) for value in ctx.values)))
        with torch.enable_grad():
            known.update((name, _each(_cut, known[name])) for name in ('grad', *self.differentiable))
            of = [list(tensors([known[name]])) for name in self.differentiable]
            out = self._naive([known[name] for name in self.arguments])[0]
            flat = [t for ts in of for t in ts]
            first = iter(torch.autograd.grad(out, flat, known['grad'].to(out.dtype), create_graph=True))
        pairs = []
        for ts, grad in zip(of, grads):
            found = [next(first) for _ in ts]
            pairs += [pair for pair in zip(found, grad if isinstance(grad, list) else [grad]) if pair[1] is not None]
        second = torch.autograd.grad(
            [f for f, _ in pairs],
            [known['grad'], *flat],
            [g for _, g in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
        rest = iter(second[1:])
        results = {**dict.fromkeys(self.backward_arguments), 'grad': second[0]}
        for name in self.differentiable:
            value = known[name]
            results[name] = [next(rest) for _ in value] if isinstance(value, list) else next(rest)
        return tuple(results.values())


def _each(function: Callable, value: Any) -> Any:
    """What a function makes of a tensor, or of each in a list."""
    return [function(t) for t in value] if isinstance(value, list) else function(value)


def _cut(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of its own: gradients with respect to it end there."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _transformed(args: Sequence[Any]) -> bool:
    """Whether a transform of `torch.func` is active, or a tensor has a tangent: operators have no rules for them."""
    return torch._C._are_functorch_transforms_active() or has_tangent(tensors(args))


def _batched(grad: torch.Tensor) -> bool:
    """Whether a gradient stands for several, as with `is_grads_batched=True`, where no transform is active."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(grad)


def _in_dtype(dtype: torch.dtype, args: Any) -> List[Any]:
    """Arguments, floating-point tensors among them in that dtype."""
    found = []
    for arg in args:
        if isinstance(arg, (list, tuple)):
            arg = _in_dtype(dtype, arg)
        elif isinstance(arg, torch.Tensor) and arg.is_floating_point():
            arg = arg.to(dtype)
        found.append(arg)
    return found


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
