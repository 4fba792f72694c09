"""Running cases: what is refused, what is measured, what the command says."""

import json
import shlex
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import runner
from benchmarks.__main__ import main
from benchmarks.case import OURS, Case, Implementation, Ready
from benchmarks.cases import CASES
from benchmarks.environment import slug
from benchmarks.isolated import run_isolated
from benchmarks.roofline import Work
from benchmarks.runner import run_case

ONE = torch.ones(3)
FIGURES = {'ratio', 'ms', 'against_ms', 'peak_mib', 'against_peak_mib'}


def by(call, **kwargs):
    return Implementation('words', lambda device: call, **kwargs)


def case(ours, name='x/y', more=(), **others):
    implementations = {OURS: by(ours), **{n: o if isinstance(o, Implementation) else by(o) for n, o in others.items()}}
    return Case(name, implementations, 1e-3, **dict(more))


def rows(one, rounds=3, quick=False):
    return {row['against']: row for row in run_case(one, 'cpu', rounds, quick)}


def one():
    return ONE


def slowly(value, seconds):
    def call():
        time.sleep(seconds)
        return value

    return call


@pytest.fixture(autouse=True)
def no_peak(monkeypatch):
    """What the processor can do takes seconds to measure and matters to the report alone."""
    monkeypatch.setattr(command, 'measured_peak', lambda device: Work(1.0, 1.0, 1.0))


@pytest.mark.parametrize('wrong', [ONE + 0.01, ONE * float('nan'), torch.ones(4)])
def test_a_wrong_result_has_no_time(wrong, capsys):
    row = rows(case(lambda: wrong, plain=one))['plain']
    assert row['correct'] is False and not FIGURES & row.keys()
    assert main([], [case(lambda: wrong, plain=one)]) == 1
    assert 'WRONG' in capsys.readouterr().out


def test_a_wrong_implementation_is_refused_and_the_others_are_measured(capsys):
    found = case(one, reference=one, wrong=lambda: ONE + 1, right=lambda: ONE + 1e-5)
    row = rows(found)
    assert row['wrong']['correct'] is False and not {'ratio', 'against_ms'} & row['wrong'].keys()
    assert all(row[name]['correct'] and row[name]['ratio']['median'] > 0 for name in ('reference', 'right'))
    assert main([], [found]) == 1
    assert 'wrong: differs from reference by 1, allowed 0.001' in capsys.readouterr().out


def test_a_reference_that_is_not_finite_proves_nothing():
    assert rows(case(one, plain=lambda: ONE * float('inf')))['plain']['correct'] is False


def test_a_slow_implementation_shows_in_the_ratio():
    ratio = rows(case(slowly(ONE, 0.002), plain=slowly(ONE + 1e-4, 0.02)), 5)['plain']['ratio']
    assert ratio['median'] > 2 and ratio['p10'] <= ratio['median'] <= ratio['p90']
    row = rows(case(slowly(ONE, 0.02), plain=slowly(ONE + 1e-4, 0.002)), 5)['plain']
    assert row['ratio']['median'] < 0.5 and row['ms'] > row['against_ms'] and row['rounds'] == 5


def test_a_baseline_is_measured_and_not_compared():
    row = rows(case(one, deit=by(lambda: torch.zeros(7), baseline=True)))['deit']
    assert row['correct'] is None and row['ratio']['median'] > 0 and 'error' not in row


def test_implementations_take_turns():
    calls = []

    def named(name):
        def call():
            calls.append(name)
            time.sleep(0.021)  # above the least sample: one call a sample
            return ONE

        return call

    run_case(case(named('a'), plain=named('b')), 'cpu', 4)
    assert ''.join(calls[-6:]) == 'baabba'  # of the first round some calls are for warming up


def test_long_cases_get_fewer_rounds(monkeypatch):
    monkeypatch.setattr(runner, 'CASE_SECONDS', 0.0)
    assert rows(case(one, plain=one), 20)['plain']['rounds'] == runner.FEWEST_ROUNDS
    assert rows(case(one, plain=one), 3)['plain']['rounds'] == 3


def test_what_draws_at_random_or_measures_itself():
    ready = Ready(lambda: torch.randn(3), checked=one, seconds=lambda: 0.5)
    row = rows(case(ready, plain=one))['plain']
    assert row['correct'] and row['ms'] == 500


def test_quick_compares_everything_and_measures_nothing(capsys):
    found = case(one, plain=lambda: ONE + 1e-4, deit=by(None, baseline=True), more=dict(isolated=True, memory=True))
    (row,) = rows(found, quick=True).values()
    assert row['correct'] and not FIGURES & row.keys()
    assert rows(case(one, plain=lambda: ONE + 1), quick=True)['plain']['correct'] is False
    large = case(lambda: ONE + 1, plain=one, name='large/y', more=dict(large=True))
    assert main(['--quick'], [case(one, plain=one), large]) == 0
    assert 'large/y' not in capsys.readouterr().out
    assert main(['--quick', '--only', 'large'], [large]) == 2


@pytest.mark.parametrize('failing', ['ours', 'other'])
def test_what_raises_leaves_its_reason(failing):
    def fail():
        raise RuntimeError('no room\nfor this')

    found = case(fail, plain=one) if failing == 'ours' else case(one, plain=fail)
    row = rows(found)['plain']
    assert row['correct'] is False and 'RuntimeError: no room for this' in row['error'] and 'ratio' not in row
    assert main([], [found]) == 1


def test_what_fails_while_it_is_measured_has_no_time():
    calls = []

    def breaks():
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError('worn out')
        return slowly(ONE, 0.021)()

    row = rows(case(one, plain=breaks), 9)['plain']
    assert row['ms'] and 'against_ms' not in row and 'worn out' in row['error']
    calls.clear()
    assert not FIGURES & rows(case(breaks, plain=one), 9)['plain'].keys()


def test_a_package_that_is_not_installed_leaves_out_its_rows(capsys):
    missing = by(one, package='nosuchpackage')
    assert main([], [case(one, other=missing)]) == 2
    assert (
        'x/y is left out, as nosuchpackage is not installed (pip install "timm-extra[bench]")'
        in capsys.readouterr().out
    )
    assert main([], [case(one, other=missing), case(one, plain=one, name='x/z')]) == 0
    row = rows(case(one, first=one, other=missing))
    assert row['other']['correct'] is None and row['other']['error'] == 'other: not installed'
    assert row['first']['ratio']['median'] > 0


def test_fresh_processes_are_compared_too(monkeypatch):
    def isolated(**found):
        monkeypatch.setattr(runner, 'run_isolated', lambda case, name, device: found['ours' if name == OURS else name])
        return rows(case(None, plain=None, name='x/100', more=dict(isolated=True, axis=('pixels', 100))))['plain']

    ours = dict(result=ONE, seconds=1.0, peak_mib=10.0)
    row = isolated(ours=ours, plain=dict(result=ONE + 1e-4, seconds=3.0, peak_mib=45.0))
    assert row['correct'] and row['ratio']['median'] == 3.0
    assert (row['peak_mib'], row['against_peak_mib']) == (10.0, 45.0)
    row = isolated(ours=ours, plain=dict(result=ONE + 1, seconds=3.0, peak_mib=45.0))
    assert row['correct'] is False and 'against_ms' not in row
    row = isolated(ours=ours, plain=dict(error='out of memory'))
    assert row['correct'] is None and row['error'] == 'plain: out of memory' and row['ms'] == 1000
    assert isolated(ours=dict(error='out of memory'), plain=ours)['correct'] is False


def test_memory_is_that_of_a_fresh_process(monkeypatch):
    monkeypatch.setattr(runner, 'run_isolated', lambda case, name, device: dict(peak_mib=3.0 if name == OURS else 7.0))
    row = rows(case(one, plain=one, more=dict(memory=True)))['plain']
    assert (row['peak_mib'], row['against_peak_mib']) == (3.0, 7.0)


def test_a_registered_case_runs_in_a_fresh_process():
    out = run_isolated('perceiver/io_base/cross-attend', OURS, 'cpu')
    assert out['result'].shape == (1, 512, 1024)
    assert out['seconds'] > 0 and 5 < out['peak_mib'] < 100
    assert 'ValueError' in run_isolated('nosuch', OURS, 'cpu')['error']


def test_results_say_where_they_were_measured(tmp_path):
    assert main(['--rounds', '3', '--out', str(tmp_path / 'new')], [case(one, plain=one)]) == 0
    (file,) = (tmp_path / 'new').glob('*.json')
    result = json.loads(file.read_text())
    about = result['environment']
    assert file.stem == slug(about['processor'])
    assert {'date', 'commit', 'threads', 'load_at_start', 'load_at_end', 'torch', 'timm', 'triton'} <= about.keys()
    assert {'perceiver-pytorch', 'glom-pytorch', 'byol-pytorch'} <= about.keys()
    assert about['memory_gib'] > 0
    assert result['rows'][0]['rounds'] == 3 and result['peak'] == dict(bytes=1.0, flops=1.0, special=1.0)
    assert '| `x/y` | plain |' in (tmp_path / 'new' / 'README.md').read_text()


def test_files_are_named_after_processors():
    assert slug('Intel(R) Xeon(R) Processor @ 2.10GHz') == 'intel-xeon'
    assert slug('AMD EPYC') == 'amd-epyc' and slug('NVIDIA H100 80GB HBM3') == 'nvidia-h100-80gb-hbm3'


@pytest.mark.parametrize(
    'argv, named', [(['--only', 'nosuch'], "'nosuch'"), (['--rounds', '0'], 'not 0'), (['--help'], 'report')]
)
def test_the_command_names_what_it_cannot_do(argv, named, capsys):
    try:
        assert main(argv) == 2
    except SystemExit as stop:
        assert stop.code == (0 if argv == ['--help'] else 2)
    assert named in ''.join(capsys.readouterr())


def test_commands_on_pages_name_cases():
    root = Path(__file__).resolve().parents[2]
    pages = [root / 'README.md', *(root / 'docs').glob('*.md')]
    lines = [
        line for page in pages for line in page.read_text().splitlines() if line.startswith('python -m benchmarks ')
    ]
    assert len(lines) > 5
    for line in lines:
        only = command.arguments(shlex.split(line, comments=True)[3:]).only
        assert all(any(part in one.name for one in CASES) for part in only), line


def test_cases_are_listed_with_what_they_are_measured_against(capsys):
    assert main(['--only', 'ceit', '--list']) == 0
    assert 'NCHW' in capsys.readouterr().out
    assert len({c.name for c in CASES}) == len(CASES)
    assert all(next(iter(c.implementations)) == OURS and len(c.implementations) > 1 for c in CASES)
