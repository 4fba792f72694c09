"""The harness: what it refuses, what it reports."""

import json
import time

import pytest
import torch

from benchmarks import harness, report
from benchmarks.__main__ import main
from benchmarks.alone import run_alone
from benchmarks.harness import Case, Pair, run_case
from benchmarks.suites import CASES


def case(ours, other, name='x/y', atol=1e-3):
    return Case(name, 'ours', 'other', lambda device: Pair(ours, other), atol)


def slowly(value, seconds):
    def call():
        time.sleep(seconds)
        return value

    return call


ONE = torch.ones(3)


def test_a_wrong_row_reports_no_speed(capsys):
    for wrong in (ONE + 0.01, ONE * float('nan'), torch.ones(4)):
        row = run_case(case(lambda wrong=wrong: wrong, lambda: ONE), 'cpu', 3)
        assert row['correct'] is False
        assert not {'speedup', 'ours_ms', 'other_ms'} & row.keys()
    assert main([], [case(lambda: ONE + 1, lambda: ONE)]) == 1
    assert 'WRONG by 1' in capsys.readouterr().out


def test_a_broken_peer_is_wrong_too():
    assert run_case(case(lambda: ONE, lambda: ONE * float('inf')), 'cpu', 3)['correct'] is False


def test_a_slower_side_shows_in_the_ratio():
    row = run_case(case(slowly(ONE, 0.02), slowly(ONE + 1e-4, 0.002)), 'cpu', 5)
    assert row['correct']
    assert row['speedup']['median'] < 0.5
    assert row['ours_ms']['p10'] <= row['ours_ms']['median'] <= row['ours_ms']['p90']


def test_the_sides_alternate():
    calls = []

    def side(name):
        def call():
            calls.append(name)
            time.sleep(0.021)  # above the least sample: one call a sample
            return ONE

        return call

    run_case(case(side('a'), side('b')), 'cpu', 4)
    assert ''.join(calls[-8:]) == 'abbaabba'


def test_results_say_where_they_were_measured(tmp_path):
    out = tmp_path / 'new' / 'result.json'
    assert main(['--quick', '--out', str(out)], [case(lambda: ONE, lambda: ONE)]) == 0
    result = json.loads(out.read_text())
    assert {'date', 'commit', 'device', 'threads', 'torch', 'timm', 'triton'} <= result['environment'].keys()
    assert result['rows'][0]['rounds'] == 3


@pytest.mark.parametrize('option', ['--rounds', '--threads'])
def test_counts_that_are_not_positive_are_named(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([option, '0'])
    assert stop.value.code == 2
    assert "not '0'" in capsys.readouterr().err


def test_unknown_cases_are_named(capsys):
    assert main(['--only', 'nosuch']) == 2
    assert "'nosuch'" in capsys.readouterr().err


def test_the_registry_lists_what_is_compared(capsys):
    assert main(['--only', 'ceit', '--list']) == 0
    assert 'NCHW' in capsys.readouterr().out
    assert len({c.name for c in CASES}) == len(CASES)


def alone(**sides):
    """Stand-in for processes of their own: what each side gives."""
    return lambda name, side, device: sides[side]


def ran(value, seconds, peak_mib):
    return dict(result=value, seconds=seconds, peak_mib=peak_mib)


def large(pixels=100):
    return Case('x/100', 'ours', 'other', None, 1e-3, alone=True, pixels=pixels)


def test_sides_of_their_own_are_compared_too(monkeypatch):
    monkeypatch.setattr(harness, 'run_alone', alone(ours=ran(ONE, 1.0, 10.0), other=ran(ONE + 1e-4, 3.0, 45.0)))
    row = run_case(large(), 'cpu', 3)
    assert row['speedup']['median'] == 3.0
    assert (row['ours_peak_mib'], row['other_peak_mib'], row['memory_ratio']) == (10.0, 45.0, 4.5)
    monkeypatch.setattr(harness, 'run_alone', alone(ours=ran(ONE, 1.0, 10.0), other=ran(ONE + 1, 3.0, 45.0)))
    row = run_case(large(), 'cpu', 3)
    assert row['correct'] is False
    assert not {'speedup', 'ours_ms', 'memory_ratio'} & row.keys()


def test_a_side_that_fails_says_why(monkeypatch, capsys):
    failed = dict(failed="can't allocate memory")
    monkeypatch.setattr(harness, 'run_alone', alone(ours=ran(ONE, 1.0, 10.0), other=failed))
    row = run_case(large(), 'cpu', 3)
    assert row['correct']
    assert row['other_failed'] == "can't allocate memory"
    assert row['ours_ms']['median'] == 1000
    assert 'speedup' not in row
    monkeypatch.setattr(harness, 'run_alone', alone(ours=failed, other=failed))
    assert main([], [large()]) == 1
    assert "FAILED: can't allocate memory" in capsys.readouterr().out


def test_the_slope_over_pixels():
    rows = [dict(name=f'a/{n}', pixels=n * n, ours_ms=dict(median=5.0 * (n * n) ** 1.5)) for n in (10, 20, 40, 80)]
    assert harness.slopes(rows) == {'a': 1.5}
    assert harness.slopes([dict(name='b/1', pixels=4, correct=False)]) == {}


def test_a_registered_side_runs_in_a_process_of_its_own():
    out = run_alone('perceiver/cross-attend/layer', 'ours', 'cpu')
    assert out['result'].shape == (1, 512, 1024)
    assert out['seconds'] > 0
    assert 5 < out['peak_mib'] < 100
    assert 'ValueError' in run_alone('nosuch', 'ours', 'cpu')['failed']


def test_results_as_markdown():
    spread = dict(median=2.0, p10=1.0, p90=3.0)
    rows = [
        dict(name='a/b', correct=True, rounds=3, speedup=spread, ours_peak_mib=1.0, other_peak_mib=9.6),
        dict(
            name='c/10', correct=True, pixels=100, ours_ms=dict(median=1500.0), ours_peak_mib=2000.0, other_failed='x'
        ),
        dict(name='c/20', correct=False, pixels=400, ours_failed='y'),
    ]
    assert report.markdown(dict(rows=rows)) == [
        '| case | speed | extra peak memory, MiB |',
        '|---|---|---|',
        '| `a/b` | 2.00× | 1 instead of 10 |',
        '',
        '| `c` | ours | other |',
        '|---|---|---|',
        '| 10 × 10 | 1.50 s, 2,000 MiB | fails |',
    ]
