"""The command for a GPU: other libraries in the operations' place, its order, its gate, other tiles."""

import json
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import gpu
from benchmarks.case import OURS, Case, Implementation, Ready
from benchmarks.cases.operations import CASES
from benchmarks.environment import processor
from benchmarks.peers import PEERS
from benchmarks.roofline import Work
from benchmarks.runner import run_case
from benchmarks.tuning import best, tune
from timm_extra_kernels._spec import SPECS

ATTENTION = [spec for spec in SPECS if spec.benchmark.attention]


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """As flash-attn 2.8 has it: tokens in front of heads."""
    out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale=softmax_scale)
    return out.transpose(1, 2)


def flash_attn_3_func(q, k, v, softmax_scale=None, causal=False, qv=None):
    """As FlashAttention 3 has it, with what it returned at first."""
    return flash_attn_func(q, k, v, softmax_scale=softmax_scale), None


def ffpa_attn_func(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """As ffpa-attn 0.2 has it."""
    assert query.shape[-1] % 64 == 0
    return F.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)


STUBS = {
    'flash_attn': dict(flash_attn_func=flash_attn_func),
    'flash_attn_interface': dict(flash_attn_func=flash_attn_3_func),
    'ffpa_attn': dict(ffpa_attn_func=ffpa_attn_func),
}


def eager_flex(q, k, v, score_mod=None, scale=None):
    """flex_attention(query, key, value, score_mod, block_mask, scale) on single scores."""
    scores = q @ k.mT * scale
    if score_mod:
        scores = score_mod(scores, *torch.meshgrid(*map(torch.arange, scores.shape), indexing='ij'))
    return scores.softmax(-1) @ v


@pytest.fixture
def installed(monkeypatch):
    """Modules with the signatures of the libraries, whose attention is PyTorch's."""
    for name, functions in STUBS.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr('benchmarks.peers._compiled', lambda: eager_flex)


@pytest.mark.parametrize('peer', [name for name in PEERS if name not in ('flash', 'cudnn')])
@pytest.mark.parametrize('spec', [pytest.param(spec, id=spec.name) for spec in ATTENTION])
def test_a_peer_computes_the_operation_or_says_why_not(spec, peer, installed):
    one = PEERS[peer]
    route = one.route(spec.benchmark.attention)
    for case in spec.cases:
        args = spec.inputs(case, torch.float32, torch.device('cpu'))
        q, _, v, mask, _ = spec.benchmark.attention(*args)
        width = max(q.shape[-1], v.shape[-1])
        if not one.above < width <= one.most:
            with pytest.raises(ValueError, match=f'not {width}'):
                route.function(*args)
        elif mask is not None and not one.masks:
            with pytest.raises(ValueError, match='mask'):
                route.function(*args)
        else:
            torch.testing.assert_close(route.function(*args), spec.naive.forward(*args), rtol=1e-4, atol=1e-4)


def test_every_attention_has_all_peers_beside_it_on_a_gpu():
    names = {spec.name for spec in ATTENTION}
    assert len(names) == 4
    for case in CASES:
        if case.name.startswith('kernels/') and case.name.split('/')[1] in names and not case.isolated:
            assert {name for name, one in case.implementations.items() if one.peer} == set(PEERS), case.name


def test_a_peer_that_refuses_or_errs_is_named_and_is_no_failure():
    def refuses():
        raise ValueError('takes heads of 1 to 256 channels, not 261')

    def by(call, **kwargs):
        return Implementation('words', lambda device: Ready(call), **kwargs)

    one = torch.ones(3)
    others = dict(plain=by(lambda: one), refuses=by(refuses, peer=True), errs=by(lambda: one + 1, peer=True))
    case = Case('x/y', {OURS: by(lambda: one), **others, 'absent': by(None, peer=True, package='nosuch')}, 1e-3)
    rows = {row['against']: row for row in run_case(case, 'cpu', 2)}
    assert rows['plain']['correct'] and 'ratio' in rows['plain']
    for name, reason in dict(refuses='not 261', errs='differs', absent='not installed').items():
        assert rows[name]['correct'] is None and reason in rows[name]['error'] and 'ratio' not in rows[name]


def test_every_operation_is_measured_before_any_is_measured_twice():
    ordered = gpu.first_things_first([case for case in CASES if case.name.startswith('kernels/')])
    names = [case.name.split('/')[1] for case in ordered]
    assert len(ordered) == len({case.name for case in ordered}) > 40
    assert max(names.index(spec.name) for spec in SPECS) < len(SPECS) + 2  # and two models


def test_nothing_is_measured_behind_a_red_gate(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, 'gate', lambda: False)
    assert gpu.run_gpu(CASES, lambda *args: pytest.fail('measured'), tmp_path, 1.0) == 1
    assert 'red' in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize('test, green', [('assert 1 == 2', False), ('pass', True)])
def test_the_gate_is_that_of_the_tests(test, green, monkeypatch, tmp_path):
    (tmp_path / 'test_it.py').write_text(f'def test_it():\n    {test}\n')
    monkeypatch.setattr(gpu, 'ROOT', tmp_path)
    monkeypatch.setattr(gpu, 'GATE', 'test_it.py')
    monkeypatch.setattr(gpu.importlib.util, 'find_spec', lambda name: None)  # no workers for one test
    assert gpu.gate() is green


@pytest.mark.skipif(torch.cuda.is_available(), reason='of machines without a GPU')
def test_without_a_gpu_one_line_says_so(capsys):
    assert command.main(['gpu']) == 2
    line = capsys.readouterr().err
    assert 'no GPU' in line and line.count('\n') == 1


def test_a_run_ends_in_time_and_names_what_is_left(capsys):
    case = Case('x/y', {OURS: Implementation('words', lambda device: torch.zeros(1))})
    assert command.run([case], 'cpu', 1, True, None, time.monotonic() - 1) == []
    assert 'no time was left for x/y' in capsys.readouterr().out


class Tiles(NamedTuple):
    rows: int
    keys: int
    stages: int
    warps: int


def test_other_tiles_are_tried_and_wrong_ones_have_no_time():
    kernel = SimpleNamespace(config=lambda role, channels: Tiles(32, 32, 2, 4))
    ran = []

    def call():
        ran.append(kernel.config('fwd', 64))
        if ran[-1].warps == 8:
            raise RuntimeError('out of resources')
        return torch.ones(2) * (1 + (ran[-1].keys == 16))

    def measure(call):
        call()
        return 1.0 if ran[-1].rows == 64 else 2.0

    rows = list(tune('kernels/x', kernel, Ready(call, call), measure, 0.1, time.monotonic() + 60))
    assert rows[0]['present'] and rows[0]['tiles'] == Tiles(32, 32, 2, 4)._asdict()
    assert len(rows) == 8 and all(('ms' in row) != ('error' in row) for row in rows)
    assert kernel.config('fwd', 64) == Tiles(32, 32, 2, 4)
    (line,) = best(rows)
    assert 'of 7 others 5 run' in line and 'fastest 1 ms with rows 64' in line
    late = tune('kernels/x', kernel, Ready(call, call), measure, 0.1, time.monotonic() - 1)
    assert [row.get('present') for row in late] == [True]


def test_operations_without_tiles_are_left_as_they_are():
    kernel = SimpleNamespace(config=lambda layout: (1, 2))
    ready = Ready(lambda: kernel.config('x'), lambda: torch.ones(1) * kernel.config('x')[0])
    assert list(tune('x', kernel, ready, lambda call: 1.0, 0.1, time.monotonic() + 60)) == []


def test_all_of_a_run_is_in_one_file(monkeypatch, tmp_path):
    kernel = SimpleNamespace(config=lambda role: Tiles(32, 32, 2, 4))

    def ready(device):
        return Ready(lambda: torch.ones(1), lambda: torch.ones(1) * (kernel.config('fwd').rows > 0))

    implementations = {OURS: Implementation('words', ready), 'plain': Implementation('words', ready)}
    cases = [Case('other/x', implementations), Case('kernels/tiled/x/forward', implementations)]
    monkeypatch.setattr(gpu, 'gate', lambda: True)
    monkeypatch.setattr(gpu, 'SPECS', [SimpleNamespace(name='tiled', kernel=kernel)])
    monkeypatch.setattr(gpu.torch.cuda, 'get_device_name', processor)
    monkeypatch.setattr('triton.testing.do_bench', lambda call: 1.0)
    monkeypatch.setattr(command, 'measured_peak', lambda device: Work(1.0, 1.0, 1.0))

    def on_the_cpu(chosen, device, *args):
        assert device == 'cuda'
        return command.run(chosen, 'cpu', *args)

    assert gpu.run_gpu(cases, on_the_cpu, tmp_path, 5.0) == 0
    (file,) = tmp_path.glob('*.json')
    result = json.loads(file.read_text())
    assert [row['case'] for row in result['rows']] == ['kernels/tiled/x/forward']
    assert len(result['tuning']) == 8 and result['tuning'][0]['present']
    assert {'processor', 'torch', 'triton', 'ffpa-attn', 'flash-attn'} <= result['environment'].keys()
    assert '| `kernels/tiled/x/forward` | plain |' in (tmp_path / 'README.md').read_text()
