"""What the tests of the operations share: all their cases, results with gradients, and the gate for errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from timm_extra_kernels._dispatch import arguments, unsupported
from timm_extra_kernels._spec import SPECS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EACH = [pytest.param(spec, id=spec.name) for spec in SPECS]
BY_NAME = {spec.name: spec for spec in SPECS}
ALL = [pytest.param(spec, case, id=f'{spec.name}-{case.name}') for spec in SPECS for case in spec.cases]


def tensors(args):
    """The floating-point tensors among arguments, those in lists included."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.is_floating_point():
            yield arg
        elif isinstance(arg, list):
            yield from tensors(arg)


def mapped(function, args):
    """The arguments with a function applied to every tensor."""
    out = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            arg = function(arg)
        elif isinstance(arg, list):
            arg = mapped(function, arg)
        out.append(arg)
    return out


def leaf(tensor, dtype=None):
    """A leaf of the same strides, with a gradient if it can have one."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(dtype or tensor.dtype).requires_grad_()


def beside(tensor, seed):
    """A leaf that is the tensor up to rounding in float32; the tensor itself in a smaller dtype."""
    if not tensor.is_floating_point():
        return tensor
    step = 2 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    moved = tensor.double() * (1 + torch.finfo(torch.float32).eps * step.to(tensor.device))
    return leaf(torch.empty_like(tensor).copy_(moved))


def results(function, args, seed=0):
    """Outputs, and gradients of the first of them with respect to every tensor."""
    outs = outputs(function(*args))
    grad = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grads = torch.autograd.grad(outs[0], list(tensors(args)), grad.to(outs[0].device, outs[0].dtype))
    return [t.detach() for t in (*outs, *grads)]


def check(spec, case, dtype, device, guard):
    """Errors at most twice those of the naive form in the same dtype, beyond a floor.

    Where terms cancel, the error of one run is a matter of luck, which changes with the number of threads: float32
    is compared with the largest error of the naive form on several inputs that are equal up to rounding.
    """
    args = mapped(guard, spec.inputs(case, dtype, device))
    ours = results(lambda *a: public(spec, spec.operator(*a)), mapped(leaf, args))
    exact = results(spec.naive.forward, mapped(lambda t: leaf(t, torch.float64), args))
    naive = [results(spec.naive.forward, mapped(leaf, args))]
    if dtype == torch.float32:
        naive += [results(spec.naive.forward, mapped(lambda t, seed=seed: beside(t, seed), args)) for seed in range(4)]
    assert len(ours) == len(exact)
    for i, (a, b, *several) in enumerate(zip(ours, exact, *naive, strict=True)):
        assert a.shape == b.shape
        if not b.numel():
            continue
        # rounding the result, and what sums of terms of order 1 leave of float32 where they cancel to nothing
        floor = 4 * torch.finfo(dtype).eps * b.abs().max() + 8 * torch.finfo(torch.float32).eps
        error, naive_error = (a - b).abs().max(), max((c - b).abs().max() for c in several)
        assert error <= 2 * naive_error + floor, f'result {i}: error {error:.3g}, naively {naive_error:.3g}'
    return args


def outputs(outs):
    """What an operator returns, as a sequence."""
    return outs if isinstance(outs, (tuple, list)) else (outs,)


def public(spec, outs):
    """What the naive form returns, of what the operator returns."""
    return outputs(outs)[: spec.outputs]


def kernel_dtype(spec, device):
    """The first dtype that the operation's kernels take on a device: float32, unless PyTorch has less work with it."""
    case = spec.cases[0]
    return next(dtype for dtype in DTYPES if limit(spec, 'forward', spec.inputs(case, dtype, device)) is None)


def limit(spec, direction, args):
    """What keeps a call of the 'forward' or 'backward' operator from its kernel on any device, None if nothing does."""
    return unsupported(spec.limits, dict(zip(arguments(getattr(spec.eager, direction)), args, strict=True)))


# The peak that getrusage knows is at least that of the process which started this one.
PEAK = """
import ctypes
import re
from pathlib import Path


def status(field):
    return int(re.search(rf'{field}:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def peak(call):
    getattr(ctypes.CDLL(None), 'malloc_trim', int)(0)  # or a call takes what an earlier one has left
    Path('/proc/self/clear_refs').write_text('5')
    before = status('VmRSS')
    call()
    return status('VmHWM') - before
"""


def printed_by(code):
    """Lines of numbers that code prints in a process of its own; `peak(call)` is the memory, in MiB, of a call."""
    if not Path('/proc/self/clear_refs').exists():
        pytest.skip('memory is measured on Linux alone')
    done = subprocess.run([sys.executable, '-c', PEAK + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [[float(number) for number in line.split()] for line in done.stdout.splitlines()]
