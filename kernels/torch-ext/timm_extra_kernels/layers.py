"""The operations as stateless layers, for `kernels.kernelize` to put in the place of functions of equal signature."""

import inspect
from typing import Any, Type

from torch import nn

from ._spec import SPECS, OpSpec

__all__ = [spec.layer for spec in SPECS]


def _layer(spec: OpSpec) -> Type[nn.Module]:
    """A layer without state, whose forward pass is the operation."""
    function = spec.function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    itself = inspect.Parameter('self', inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])
    forward.__doc__ = function.__doc__
    # no other attributes: `kernels` refuses a layer with more
    members = dict(forward=forward, has_backward=True, can_torch_compile=True, __doc__=f'`{spec.name}`.')
    return type(spec.layer, (nn.Module,), {**members, '__module__': __name__})


globals().update({spec.layer: _layer(spec) for spec in SPECS})
