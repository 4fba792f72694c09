"""What is wrong with a kernel fails the test that launches it, with the kernel's name and line."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from execution.plugin import Execution
from gates import EACH, check
from ttsem import memory
from ttsem.sanitize import KernelFault

SIZE, BLOCK = 100, 32


@triton.jit
def _copy_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < SIZE), at < SIZE)


@triton.jit
def _stores_past_the_end_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, at < SIZE)
    tl.store(out + at, values)  # fault


@triton.jit
def _loads_past_the_end_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at)  # fault
    tl.store(out + at, values, at < SIZE)


@triton.jit
def _loads_before_the_start_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at - 1, at < SIZE)  # fault
    tl.store(out + at, values, at < SIZE)


@triton.jit
def _all_store_to_one_address_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x + at, at < SIZE, 0.0))
    tl.store(out, total)  # fault


@triton.jit
def _stores_what_others_load_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    later = tl.load(x + at + BLOCK, at + BLOCK < SIZE, 0.0)
    tl.store(x + at, 2 * later, at < SIZE)  # fault


@triton.jit
def _leaves_the_last_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < SIZE), at < SIZE - 1)


@triton.jit
def _adds_to_what_is_there_kernel(x, out, SIZE, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(out + at, at < SIZE) + tl.load(x + at, at < SIZE), at < SIZE)


def launch(kernel, x):
    out = x.new_empty(x.shape)
    kernel[(triton.cdiv(len(x), BLOCK),)](x, out, len(x), BLOCK=BLOCK)
    return out


@pytest.mark.parametrize(
    'kernel, kind, tensor',
    [
        (_stores_past_the_end_kernel, 'oob_write', 'out'),
        (_loads_past_the_end_kernel, 'oob_read', 'x'),
        (_loads_before_the_start_kernel, 'oob_read', 'x'),
        (_all_store_to_one_address_kernel, 'race', 'out'),
        (_stores_what_others_load_kernel, 'race', 'x'),
    ],
)
def test_faults_are_named_with_kernel_and_line(kernel, kind, tensor, device, launches, guarded):
    x = guarded(torch.randn(SIZE, device=device))
    with pytest.raises(KernelFault) as raised:
        launch(kernel, x)
    lines, first = inspect.getsourcelines(kernel.fn)
    line = next(number for number, text in enumerate(lines, first) if '# fault' in text)
    assert (raised.value.fault.kind, raised.value.fault.buffer) == (kind, tensor)
    assert kernel.__name__ in str(raised.value) and f'{Path(__file__).name}:{line}' in str(raised.value)


@pytest.mark.parametrize(
    'kernel, right',
    [(_copy_kernel, True), (_leaves_the_last_kernel, False), (_adds_to_what_is_there_kernel, False)],
)
def test_memory_that_was_not_written_fails_the_test_of_values(kernel, right, device, launches, guarded):
    class Copy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return launch(kernel, x)

        @staticmethod
        def backward(ctx, grad):
            return grad

    copy = SimpleNamespace(
        inputs=lambda case, dtype, device: [torch.randn(SIZE, dtype=dtype, device=device)],
        operator=Copy.apply,
        outputs=1,
        naive=SimpleNamespace(forward=torch.clone),
    )
    if right:
        check(copy, None, torch.float32, device, guarded)
    else:
        with pytest.raises(AssertionError, match='result 0: error nan'):
            check(copy, None, torch.float32, device, guarded)
    assert launches


def test_an_operation_does_not_take_pytorch_where_its_kernel_has_a_fault(device, launches, monkeypatch):
    spec = EACH[0].values[0]
    monkeypatch.setattr(spec.kernel, 'forward', lambda *args: launch(_stores_past_the_end_kernel, torch.randn(SIZE)))
    with pytest.raises(KernelFault):
        spec.operator(*spec.inputs(spec.cases[0], torch.float32, device))


def test_launches_that_are_not_checked_for_races_are_named(device, monkeypatch):
    monkeypatch.setattr(memory, 'ACCESS_BUDGET', SIZE)
    x = torch.randn(SIZE, device=device)
    execution = Execution()
    execution.begin()
    try:
        launch(_copy_kernel, x)  # no two programs come near each other
        assert str(execution) == 'launches: 1 executed, 1 checked for races'
        launch(_all_store_to_one_address_kernel, x)
    finally:
        execution.end()
    unchecked = '1 not (too many accesses): _all_store_to_one_address_kernel (1)'
    assert str(execution) == f'launches: 2 executed, 1 checked for races, {unchecked}'
