"""The harness: what it refuses, what it reports."""

import json
import time

import pytest
import torch

from benchmarks.__main__ import main
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
