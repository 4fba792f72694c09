"""The harness: what it refuses, what it reports."""

import json
import shlex
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.__main__ import main
from benchmarks.alone import run_alone
from benchmarks.asked import SHORT
from benchmarks.cases.registry import CASES
from benchmarks.harness import Case, Made, Over, Side, run_case
from benchmarks.roofline import Peak

ONE = torch.ones(3)


def side(call, **kwargs):
    return Side('words', lambda device: call, **kwargs)


def case(ours, peer, name='x/y', **kwargs):
    return Case(name, side(ours), dict(peer=side(peer)), atol=1e-3, **kwargs)


def slowly(value, seconds):
    def call():
        time.sleep(seconds)
        return value

    return call


@pytest.fixture(autouse=True)
def no_peak(monkeypatch):
    """The machine's peaks take seconds and matter to the report alone."""
    monkeypatch.setattr(command, 'measured_peak', lambda device: Peak(1.0, 1.0, 1.0))


@pytest.mark.parametrize('wrong', [ONE + 0.01, ONE * float('nan'), torch.ones(4)])
def test_a_wrong_result_has_no_speed(wrong, capsys):
    row = run_case(case(lambda: wrong, lambda: ONE), 'cpu', 3)
    assert row['correct'] is False
    assert all('ms' not in about and 'speed' not in about for about in row['sides'].values())
    assert main([], [case(lambda: wrong, lambda: ONE)]) == 1
    assert 'WRONG, no speed reported' in capsys.readouterr().out


def test_a_wrong_peer_is_refused_and_the_others_are_measured(capsys):
    peers = dict(reference=side(lambda: ONE), wrong=side(lambda: ONE + 1), right=side(lambda: ONE + 1e-5))
    one = Case('x/y', side(lambda: ONE), peers, atol=1e-3)
    row = run_case(one, 'cpu', 3)
    assert row['correct']
    assert row['sides']['wrong']['wrong'] is True
    assert row['sides']['wrong']['difference'] == 1
    assert {name for name, about in row['sides'].items() if 'speed' in about} == {'reference', 'right'}
    assert 'ms' not in row['sides']['wrong']
    assert main([], [one]) == 0
    assert 'wrong: differs from reference by 1, allowed 0.001' in capsys.readouterr().out


def test_a_reference_that_is_not_finite_proves_nothing():
    assert run_case(case(lambda: ONE, lambda: ONE * float('inf')), 'cpu', 3)['correct'] is False


def test_a_slow_peer_shows_in_the_ratio():
    row = run_case(case(slowly(ONE, 0.002), slowly(ONE + 1e-4, 0.02)), 'cpu', 5)
    assert row['sides']['peer']['speed']['median'] > 2
    assert (
        row['sides']['ours']['ms']['p10'] <= row['sides']['ours']['ms']['median'] <= row['sides']['ours']['ms']['p90']
    )
    row = run_case(case(slowly(ONE, 0.02), slowly(ONE + 1e-4, 0.002)), 'cpu', 5)
    assert row['sides']['peer']['speed']['median'] < 0.5


def test_a_yardstick_is_measured_and_not_compared():
    peers = dict(other=side(lambda: torch.zeros(7), same=False))
    row = run_case(Case('x/y', side(lambda: ONE), peers), 'cpu', 3)
    assert row['correct'] and row['reference'] is None
    assert row['sides']['other']['speed']['median'] > 0
    assert 'difference' not in row['sides']['other']


def test_the_sides_take_turns():
    calls = []

    def named(name):
        def call():
            calls.append(name)
            time.sleep(0.021)  # above the least sample: one call a sample
            return ONE

        return call

    run_case(case(named('a'), named('b')), 'cpu', 4)
    assert ''.join(calls[-6:]) == 'baabba'  # of the first round some calls are for warming up


def test_long_cases_get_fewer_rounds(monkeypatch):
    monkeypatch.setattr(harness, 'CASE_SECONDS', 0.0)
    assert run_case(case(lambda: ONE, lambda: ONE), 'cpu', 20)['rounds'] == harness.FEWEST_ROUNDS
    assert run_case(case(lambda: ONE, lambda: ONE), 'cpu', 3)['rounds'] == 3


def test_what_draws_at_random_is_compared_by_something_else():
    ours = Side('words', lambda device: Made(lambda: torch.randn(3), checked=lambda: ONE))
    assert run_case(Case('x/y', ours, dict(peer=side(lambda: ONE))), 'cpu', 3)['correct']


def test_a_side_may_measure_itself():
    ours = Side('words', lambda device: Made(lambda: ONE, seconds=lambda: 0.5))
    assert run_case(Case('x/y', ours, dict(peer=side(lambda: ONE))), 'cpu', 3)['sides']['ours']['ms']['median'] == 500


def test_a_call_may_be_several(monkeypatch):
    monkeypatch.setattr(harness, '_seconds', lambda function, repeats, device: 1.0)
    ours = Side('words', lambda device: Made(lambda: ONE, repeats=20))
    assert run_case(Case('x/y', ours, dict(peer=side(lambda: ONE))), 'cpu', 3)['sides']['ours']['ms']['median'] == 50


def test_quick_compares_and_measures_nothing(capsys):
    row = run_case(case(lambda: ONE, lambda: ONE, alone=True), 'cpu', 3, quick=True)
    assert row['correct'] and row['sides']['peer']['difference'] == 0
    assert 'ms' not in row['sides']['ours']
    large = case(lambda: ONE + 1, lambda: ONE, name='large/y', large=True)
    assert main(['--quick'], [case(lambda: ONE, lambda: ONE), large]) == 0
    assert 'large/y' not in capsys.readouterr().out
    assert main(['--quick', '--only', 'large'], [large]) == 2
    assert 'too large for --quick' in capsys.readouterr().err


def test_results_say_where_they_were_measured(tmp_path):
    out = tmp_path / 'new' / 'result.json'
    assert main(['--rounds', '3', '--out', str(out)], [case(lambda: ONE, lambda: ONE)]) == 0
    result = json.loads(out.read_text())
    assert {'date', 'commit', 'device', 'threads', 'torch', 'timm', 'triton'} <= result['environment'].keys()
    assert result['rows'][0]['rounds'] == 3
    assert result['peak'] == dict(bytes=1.0, flops=1.0, special=1.0)


def test_a_run_that_is_cut_off_can_be_resumed(tmp_path, capsys):
    out = tmp_path / 'result.json'

    def stop():
        raise KeyboardInterrupt

    one, two = case(lambda: ONE, lambda: ONE, name='x/1'), case(stop, lambda: ONE, name='x/2')
    with pytest.raises(KeyboardInterrupt):
        main(['--rounds', '3', '--out', str(out)], [one, two])
    assert [file.name for file in tmp_path.iterdir()] == ['result.json.part']
    assert len(json.loads((tmp_path / 'result.json.part').read_text())['rows']) == 1

    two = case(lambda: ONE, lambda: ONE, name='x/2')
    never = case(stop, lambda: ONE, name='x/1')
    assert main(['--rounds', '3', '--out', str(out), '--resume'], [never, two]) == 0
    assert [row['name'] for row in json.loads(out.read_text())['rows']] == ['x/1', 'x/2']
    assert not (tmp_path / 'result.json.part').exists()
    assert main(['--out', str(out), '--resume'], [never, two]) == 2
    assert 'nothing is left to measure' in capsys.readouterr().err


def test_what_failed_is_measured_again_by_a_resumed_run(tmp_path):
    out = tmp_path / 'result.json'
    assert main(['--rounds', '3', '--out', str(out)], [case(lambda: ONE + 1, lambda: ONE)]) == 1
    assert main(['--rounds', '3', '--out', str(out), '--resume'], [case(lambda: ONE, lambda: ONE)]) == 0
    assert [row['correct'] for row in json.loads(out.read_text())['rows']] == [True]


def test_a_run_of_another_machine_is_not_resumed(tmp_path, capsys):
    out = tmp_path / 'result.json'
    assert main(['--rounds', '3', '--out', str(out)], [case(lambda: ONE, lambda: ONE)]) == 0
    result = json.loads(out.read_text())
    result['environment']['device'] = 'Another CPU'
    out.write_text(json.dumps(result))
    text = out.read_text()
    assert main(['--rounds', '3', '--out', str(out), '--resume'], [case(lambda: ONE, lambda: ONE, name='x/z')]) == 2
    assert 'device was Another CPU and is' in capsys.readouterr().err
    assert out.read_text() == text
    assert main(['--out', str(tmp_path / 'none.json'), '--resume'], [case(lambda: ONE, lambda: ONE)]) == 2
    assert 'none.json' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--rounds', '--threads'])
def test_counts_that_are_not_positive_are_named(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([option, '0'])
    assert stop.value.code == 2
    assert "not '0'" in capsys.readouterr().err


def test_unknown_cases_are_named(capsys):
    assert main(['--only', 'nosuch']) == 2
    assert "'nosuch'" in capsys.readouterr().err


def test_help_names_the_verbs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--help'])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert 'python -m benchmarks compare' in out and 'python -m benchmarks report' in out


def test_commands_on_pages_name_cases():
    root = Path(__file__).resolve().parents[2]
    lines = [
        line
        for page in [root / 'README.md', *(root / 'docs').glob('*.md')]
        for line in page.read_text().splitlines()
        if line.startswith('python -m benchmarks ')
    ]
    assert len(lines) > 5
    for line in lines:
        argv = shlex.split(line, comments=True)[3:]
        if argv[0] not in command.VERBS:
            args = command._arguments(argv)
            assert any(args.only in one.name for one in CASES), line


def test_the_registry_lists_what_is_compared(capsys):
    assert main(['--only', 'ceit', '--list']) == 0
    assert 'NCHW' in capsys.readouterr().out
    assert len({c.name for c in CASES}) == len(CASES)
    asked = {(one.name, goal.what) for one in CASES for goal in one.asked}
    assert SHORT.keys() <= asked
    for one in CASES:
        assert 'ours' not in one.peers
        assert {asked.peer for asked in one.asked} <= {'', *one.peers}, one.name


def test_a_case_without_its_reference_is_left_out_by_name(capsys):
    peers = dict(peer=side(lambda: ONE, package='nosuchpackage'))
    assert main([], [Case('x/y', side(lambda: ONE), peers), case(lambda: ONE, lambda: ONE, name='x/z')]) == 0
    out = capsys.readouterr().out
    assert 'nosuchpackage is not installed (pip install "timm-extra[bench]"): x/y' in out
    row = run_case(Case('x/y', side(lambda: ONE), dict(first=side(lambda: ONE), **peers)), 'cpu', 3)
    assert row['sides']['peer']['missing'] == 'nosuchpackage is not installed'
    assert row['sides']['first']['speed']['median'] > 0


def test_a_side_that_raises_leaves_its_reason(capsys):
    def fail():
        raise RuntimeError('no room\nfor this')

    row = run_case(case(lambda: ONE, fail), 'cpu', 3)
    assert row['sides']['peer']['failed'] == 'RuntimeError: no room for this'
    assert row['correct'] is False and 'ms' not in row['sides']['ours']  # nothing was compared
    assert main([], [case(lambda: ONE, fail)]) == 1
    assert 'NOT COMPARED' in capsys.readouterr().out
    assert main([], [case(fail, lambda: ONE)]) == 1
    assert 'ours: failed: RuntimeError: no room for this' in capsys.readouterr().out


def test_a_side_that_fails_while_it_is_measured_loses_its_times_alone():
    calls = []

    def breaks():
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError('worn out')
        return slowly(ONE, 0.021)()

    row = run_case(case(lambda: ONE, breaks), 'cpu', 9)
    assert row['correct'] and row['rounds'] == 9
    assert row['sides']['peer']['failed'] == 'RuntimeError: worn out' and 'ms' not in row['sides']['peer']
    calls.clear()
    row = run_case(case(breaks, lambda: ONE), 'cpu', 9)
    assert row['correct'] is False and 'ms' not in row['sides']['peer']


def test_all_cases_left_out_are_no_run(capsys):
    peers = dict(peer=side(lambda: ONE, package='nosuchpackage'))
    assert main([], [Case('x/y', side(lambda: ONE), peers)]) == 2
    assert 'nosuchpackage' in capsys.readouterr().out


def alone(**sides):
    """Stand-in for processes of their own: what each side gives."""
    return lambda name, side, device: sides[side]


def ran(value, seconds, peak_mib):
    return dict(result=value, seconds=seconds, calls=1, peak_mib=peak_mib)


def large(**kwargs):
    return case(None, None, name='x/100', alone=True, over=Over('pixels', 100), **kwargs)


def test_sides_of_their_own_are_compared_too(monkeypatch):
    monkeypatch.setattr(harness, 'run_alone', alone(ours=ran(ONE, 1.0, 10.0), peer=ran(ONE + 1e-4, 3.0, 45.0)))
    sides = run_case(large(), 'cpu', 3)['sides']
    assert sides['peer']['speed']['median'] == 3.0
    assert (sides['ours']['peak_mib'], sides['peer']['peak_mib']) == (10.0, 45.0)
    monkeypatch.setattr(harness, 'run_alone', alone(ours=ran(ONE, 1.0, 10.0), peer=ran(ONE + 1, 3.0, 45.0)))
    row = run_case(large(), 'cpu', 3)
    assert row['correct'] is False
    assert not {'speed', 'ms', 'peak_mib'} & (row['sides']['ours'].keys() | row['sides']['peer'].keys())


def test_a_process_that_fails_says_why(monkeypatch, capsys):
    failed = dict(failed="can't allocate memory")
    monkeypatch.setattr(harness, 'run_alone', alone(ours=ran(ONE, 1.0, 10.0), peer=failed))
    row = run_case(large(), 'cpu', 3)
    assert row['correct']
    assert row['sides']['peer']['failed'] == "can't allocate memory"
    assert row['sides']['ours']['ms']['median'] == 1000
    monkeypatch.setattr(harness, 'run_alone', alone(ours=failed, peer=failed))
    assert main([], [large()]) == 1
    assert "ours: failed: can't allocate memory" in capsys.readouterr().out


def test_the_slope_over_an_axis():
    def row(n):
        ours, peer = dict(ms=dict(median=5.0 * n**1.5)), dict(failed='x')
        return dict(name=f'a/{n}', over=dict(axis='N', value=n), sides=dict(ours=ours, peer=peer))

    assert harness.slopes([row(n) for n in (10, 20, 40, 80)]) == {'a': {'axis': 'N', 'ours': 1.5}}
    assert harness.slopes([row(10), row(20)]) == {}


def test_a_registered_side_runs_in_a_process_of_its_own():
    out = run_alone('perceiver/io_base/cross-attend', 'ours', 'cpu')
    assert out['result'].shape == (1, 512, 1024)
    assert out['seconds'] > 0
    assert 5 < out['peak_mib'] < 100
    assert 'ValueError' in run_alone('nosuch', 'ours', 'cpu')['failed']
