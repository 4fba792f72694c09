"""What happens where a kernel cannot be compiled, launched or run: PyTorch, one warning, and `explain` says why."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from gates import EACH, kernel_dtype, leaf, mapped, results

from timm_extra_kernels import _dispatch, explain
from timm_extra_kernels._cases import Case

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def out_of_resources():
    from triton.runtime.errors import OutOfResources

    return OutOfResources(300_000, 232_448, 'shared memory')


def assembler():
    from triton.runtime.errors import PTXASError

    return PTXASError('ptxas fatal: register allocation failed')


FAILURES = {
    'no compiler': lambda: RuntimeError('Failed to find C compiler. Please specify via CC environment variable.'),
    'no driver': lambda: AssertionError('libcuda.so cannot be found'),
    'no cache': lambda: PermissionError(13, 'Permission denied', '/.triton'),
    'compiler fails': lambda: subprocess.CalledProcessError(1, ['gcc', 'main.c']),
    'assembler': assembler,
    'out of resources': out_of_resources,
}


@pytest.fixture
def kernels(monkeypatch, launches):
    """Kernels are taken wherever they can be, and may fail."""
    monkeypatch.setattr(_dispatch, 'RAISED', (torch.OutOfMemoryError,))
    monkeypatch.setattr(_dispatch, 'FAILED', {})


def failing(error):
    def kernel(*args):
        raise error

    return kernel


@pytest.mark.parametrize('failure', FAILURES)
@pytest.mark.parametrize('spec', EACH)
def test_a_kernel_that_fails_leaves_the_call_to_pytorch(spec, failure, device, kernels, monkeypatch, caplog):
    args = mapped(leaf, spec.inputs(spec.cases[0], kernel_dtype(spec, device), device))
    with monkeypatch.context() as off:
        off.setattr(_dispatch, 'why_not', lambda limits, named: 'no kernels')
        expected = results(spec.operator, args)
    monkeypatch.setattr(spec.kernel, 'forward', failing(FAILURES[failure]()))
    monkeypatch.setattr(spec.kernel, 'backward', failing(FAILURES[failure]()))
    found, again = results(spec.operator, args), results(spec.operator, args)
    assert caplog.text.count('its kernel failed on') == len(caplog.records) == 2  # one for each direction
    for a, b, c in zip(expected, found, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    reason = spec.package.OPERATORS.dispatcher.why_not(args)
    assert reason.startswith(f'its kernel failed on {device} ({type(FAILURES[failure]()).__name__}: ')


def test_calls_of_another_kind_keep_their_kernel(device, kernels, monkeypatch, caplog):
    spec = next(param.values[0] for param in EACH)
    small, large = (mapped(lambda t: t, spec.inputs(case, torch.float32, device)) for case in spec.cases[:2])
    forward = spec.kernel.forward
    calls = []

    def sometimes(*args):
        calls.append(args)
        if len(calls) == 1:
            raise out_of_resources()
        return forward(*args)

    monkeypatch.setattr(spec.kernel, 'forward', sometimes)
    spec.operator(*small)
    assert 'OutOfResources: out of resource' in caplog.text
    spec.operator(*small)
    assert len(calls) == 1
    spec.operator(*large)
    assert len(calls) == 2


def test_memory_that_runs_out_is_an_error(device, kernels, monkeypatch):
    """PyTorch's own way takes no less of it, and a user is to see it."""
    spec = next(param.values[0] for param in EACH)
    args = spec.inputs(spec.cases[0], kernel_dtype(spec, device), device)
    monkeypatch.setattr(spec.kernel, 'forward', failing(torch.OutOfMemoryError('out of memory')))
    with pytest.raises(torch.OutOfMemoryError):
        spec.operator(*args)
    assert not _dispatch.FAILED


@pytest.mark.parametrize('failure', FAILURES)
def test_a_machine_that_runs_no_kernel_is_found_out_once(failure, monkeypatch, caplog):
    from timm_extra_kernels import _probe

    tried = []

    def run(device):
        tried.append(device)
        raise FAILURES[failure]()

    monkeypatch.setattr(_probe, 'run', run)
    monkeypatch.setattr(_dispatch, '_current', lambda device: contextlib.nullcontext())  # there is no such GPU
    _dispatch.cannot_run.cache_clear()
    device = torch.device('cuda', 3)
    try:
        reasons = {_dispatch.cannot_run(device) for _ in range(3)}
    finally:
        _dispatch.cannot_run.cache_clear()
    assert caplog.text.count('PyTorch takes all calls there') == len(tried) == len(reasons) == 1
    assert reasons.pop().startswith(f'Triton runs no kernel on cuda:3 ({type(FAILURES[failure]()).__name__}')


@pytest.mark.parametrize(
    'capability, probed, runs',
    [((9, 0), None, True), ((9, 0), 'Triton runs no kernel on cuda:3 (no compiler)', False), ((7, 5), None, False)],
)
def test_what_chooses_between_operations_knows_where_no_kernel_runs(capability, probed, runs, monkeypatch):
    monkeypatch.delenv('TIMM_EXTRA_FUSED', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    monkeypatch.setattr(_dispatch, 'cannot_run', lambda device: probed)
    device = torch.device('cuda', 3)
    assert _dispatch.runs_kernels(device) == runs
    assert not _dispatch.runs_kernels(torch.device('cpu'))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('fused', ['0', '1'])
def test_what_chooses_between_operations_can_be_compiled(fused, monkeypatch):
    monkeypatch.setenv('TIMM_EXTRA_FUSED', fused)
    device = torch.device('cuda', 3)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x + _dispatch.runs_kernels(device), backend='eager', fullgraph=True)
    assert compiled(torch.zeros(())) == int(fused)


def test_memory_that_runs_out_in_the_probe_says_nothing_of_kernels(monkeypatch):
    from timm_extra_kernels import _probe

    monkeypatch.setattr(_dispatch, '_current', lambda device: contextlib.nullcontext())
    monkeypatch.setattr(_probe, 'run', failing(torch.OutOfMemoryError('CUDA out of memory')))
    device = torch.device('cuda', 3)
    _dispatch.cannot_run.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        _dispatch.cannot_run(device)
    monkeypatch.setattr(_probe, 'run', lambda device: None)
    assert _dispatch.cannot_run(device) is None
    _dispatch.cannot_run.cache_clear()


def test_a_kernel_that_fails_is_not_tried_again_for_other_sizes(device, kernels, monkeypatch, caplog):
    for spec, sizes in ((param.values[0], param.values[0].sizes) for param in EACH):
        monkeypatch.setattr(spec.kernel, 'forward', failing(out_of_resources()))
        caplog.clear()
        least = {name: least for name, (least, _) in sizes.items()}
        for name in set(sizes) & set('BHWYXNML'):
            args = spec.inputs(Case('drawn', {**least, 'B': 2, name: 3}), kernel_dtype(spec, device), device)
            spec.operator(*args)
        assert len(caplog.records) == 1, spec.name


def test_the_probe_runs_a_kernel(device):
    _dispatch.cannot_run.cache_clear()
    assert _dispatch.cannot_run(device) is None


def test_the_probe_finds_out_that_there_is_no_driver():
    if torch.cuda.is_available():
        pytest.skip('there is a driver')
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    code = (
        "import torch\nfrom timm_extra_kernels import _dispatch\nprint(_dispatch.cannot_run(torch.device('cuda', 0)))\n"
    )
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith('Triton runs no kernel on cuda:0 (')


def test_explain_names_a_kernel_that_failed(device, kernels, monkeypatch):
    spec = next(param.values[0] for param in EACH)
    args, kwargs = spec.example(device)
    assert explain(spec.function, *args, **kwargs).fused
    monkeypatch.setattr(spec.kernel, 'forward', failing(out_of_resources()))
    spec.function(*args, **kwargs)
    assert 'OutOfResources' in explain(spec.function, *args, **kwargs).reason
