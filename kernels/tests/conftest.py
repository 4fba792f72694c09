"""Runs the kernels wherever the tests run: on a GPU, in Triton's interpreter, or under `make test-kernels`."""

import os
from typing import List

import pytest
import torch

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
if INTERPRETED:
    import triton_interpreter

    triton_interpreter.install()
pytest.register_assert_rewrite('gates')


@pytest.fixture
def device() -> torch.device:
    """Where kernels run."""
    return torch.device('cpu' if INTERPRETED else 'cuda')


@pytest.fixture(scope='session')
def guard(pytestconfig) -> int:
    """Elements between memory and the end of its storage: none where an access beyond that end is an error itself."""
    return 0 if pytestconfig.pluginmanager.has_plugin('execution.plugin') else 64


@pytest.fixture
def forced(monkeypatch) -> None:
    """Send every call that a kernel can take to the kernel, on any device; what it raises is raised."""
    from timm_extra_kernels import _dispatch

    monkeypatch.setattr(_dispatch, 'why_not', _dispatch.unsupported)
    monkeypatch.setattr(_dispatch, 'may_run_kernels', lambda device: True)
    monkeypatch.setattr(_dispatch, 'not_faster', lambda slower, named: None)
    monkeypatch.setattr(_dispatch, 'RAISED', (Exception,))


@pytest.fixture
def launches(forced, monkeypatch, guard) -> List[str]:
    """Calls go to kernels as with `forced`; the names of those that were launched.

    Memory that launchers allocate lies between guards and is full of NaN at first; a write beside it fails the test.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    launched = []
    kind = InterpretedFunction if INTERPRETED else JITFunction
    run = kind.run

    def noted(self, *args, **kwargs):
        launched.append(self.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(kind, 'run', noted)
    buffers = []
    monkeypatch.setattr(torch.Tensor, 'new_empty', lambda self, *a, **k: _guarded_empty(guard, buffers, self, *a, **k))
    yield launched
    for buffer, used, fill in buffers:
        outside = torch.cat([buffer[:guard], buffer[guard + used :]]).float()
        assert outside.isnan().all() if buffer.is_floating_point() else (outside == fill).all(), 'a write beside memory'


def _guarded_empty(guard, buffers, like, *shape, dtype=None, device=None):
    shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    dtype = dtype or like.dtype
    used = torch.Size(shape).numel()
    fill = float('nan') if dtype.is_floating_point else dtype == torch.bool or 77
    buffer = torch.full((used + 2 * guard,), fill, dtype=dtype, device=device or like.device)
    buffers.append((buffer, used, fill))
    return buffer[guard : guard + used].view(shape)


@pytest.fixture
def guarded(guard):
    """Copy a tensor, strides and all, between guards of NaN; reading them gives NaN, writing them fails the test."""
    made = []

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        reach = sum((s - 1) * d for s, d in zip(tensor.shape, tensor.stride(), strict=True))
        span = reach + 1 if tensor.numel() else 0
        fill = float('nan') if tensor.is_floating_point() else True
        buffer = torch.full((span + 2 * guard,), fill, dtype=tensor.dtype, device=tensor.device)
        view = buffer[guard : guard + span].as_strided(tensor.shape, tensor.stride())
        if 0 not in tensor.stride():
            view.copy_(tensor)
        else:  # an expanded tensor is written through its one copy
            once = tuple(slice(0, 1) if d == 0 else slice(None) for d in tensor.stride())
            view[once].copy_(tensor[once])
        made.append((buffer, buffer.clone()))
        return view

    yield copied
    for buffer, before in made:
        assert torch.equal(buffer.nan_to_num(123.0), before.nan_to_num(123.0)), 'a kernel wrote to its inputs'
