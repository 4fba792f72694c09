"""Two results: what counts as slower, and what does not."""

import json

import pytest

from benchmarks.__main__ import main as benchmarks
from benchmarks.compare import main

HERE = dict(device='CPU', threads=2, torch='2.11', commit='a', date='x')


def spread(median, width=0.02):
    return dict(median=median, p10=median * (1 - width), p90=median * (1 + width))


def row(name='a/b', ms=10.0, mib=None, rounds=12, width=0.02, kind='speed', **speeds):
    ours = dict(words='', ms=spread(ms, width), **({} if mib is None else dict(peak_mib=mib)))
    peers = {peer: dict(words='', ms=spread(ms * s, width), speed=spread(s, width)) for peer, s in speeds.items()}
    found = dict(name=name, kind=kind, device='cpu', reference=next(iter(speeds), None), correct=True)
    return dict(found, sides=dict(ours=ours, **peers), **(dict(rounds=rounds) if rounds else {}))


def wrong(name='a/b', **ours):
    sides = dict(ours=dict(words='', **(ours or dict(difference=0.5, wrong=True))))
    return dict(name=name, kind='speed', device='cpu', reference='plain', correct=False, sides=sides)


@pytest.fixture
def compare(tmp_path, capsys):
    def run(before, after, *options, environment=None):
        for name, rows, env in (('A', before, HERE), ('B', after, environment or HERE)):
            (tmp_path / f'{name}.json').write_text(json.dumps(dict(environment=env, rows=rows, slopes={})))
        status = main([str(tmp_path / 'A.json'), str(tmp_path / 'B.json'), *options])
        return status, capsys.readouterr().out.splitlines()

    return run


def test_equal_results_have_a_summary_alone(compare):
    rows = [row(plain=1.3, mib=100), row('c', plain=2.0)]
    assert compare(rows, rows) == (0, ['2 in both: 0 wrong, 0 slower, 0 larger; 0 new, 0 not measured again'])


def test_a_ratio_that_falls_out_of_its_interval_is_slower(compare):
    status, lines = compare([row(plain=1.3)], [row(plain=1.1)])
    assert status == 1
    assert lines[0].startswith('slower     a/b (cpu): 1.30')
    assert '1.10' in lines[0]


def test_a_slower_machine_is_no_slower_code(compare):
    slow = dict(HERE, device='another CPU', threads=1, torch='2.12', commit='b', date='y')
    status, lines = compare([row(plain=1.3)], [row(ms=30.0, plain=1.3)], environment=slow)
    assert status == 0
    assert lines[:-1] == [
        'device: CPU before, another CPU now',
        'threads: 2 before, 1 now',
        'torch: 2.11 before, 2.12 now',
    ]


def test_noise_is_no_slowdown(compare):
    assert compare([row(plain=1.3, width=0.15)], [row(plain=1.1, width=0.15)])[0] == 0


def test_what_is_within_the_tolerance_does_not_count(compare):
    before, after = [row(plain=1.0, width=0.001)], [row(plain=0.96, width=0.001)]
    assert compare(before, after)[0] == 0
    assert compare(before, after, '--tolerance', '0.03')[0] == 1


def test_a_peer_that_alone_got_faster_is_no_slowdown_of_ours(compare):
    assert compare([row(plain=2.0, deit=1.0)], [row(plain=1.5, deit=1.0)])[0] == 0
    assert compare([row(plain=2.0, deit=1.0)], [row(plain=1.5, deit=0.75)])[0] == 1


def test_our_own_code_on_another_route_is_no_peer(compare):
    before, after = [row(ms=10.0, plain=2.0)], [row(ms=13.0, plain=2.0)]
    assert compare(before, after)[0] == 0
    for one in (*before, *after):
        one['sides']['plain']['own'] = True
    assert compare(before, after)[0] == 1


def test_faster_is_told_and_does_not_fail(compare):
    status, lines = compare([row(plain=1.1)], [row(plain=1.3)])
    assert status == 0
    assert lines[0].startswith('faster')
    assert '1 faster' in lines[-1]


def test_without_a_common_peer_times_decide_on_one_machine(compare):
    before, after = [row(plain=1.3)], [row(ms=13.0, other=1.0)]
    assert compare(before, after)[0] == 1
    status, lines = compare(before, after, environment=dict(HERE, threads=1))
    assert status == 0
    assert any(line.startswith('not judged a/b') for line in lines)


@pytest.mark.parametrize('rounds', [None, 1])
def test_single_times_have_a_wide_tolerance(compare, rounds):
    def once(ms, speed):
        return [row(ms=ms, rounds=rounds, width=0.0, plain=speed)]

    assert compare(once(10.0, 2.0), once(12.0, 1.6))[0] == 0
    assert compare(once(10.0, 2.0), once(13.0, 2.0))[0] == 1
    assert compare(once(10.0, 2.0), once(7.0, 2.0))[1][0].startswith('faster')


def test_a_smaller_share_of_a_whole_is_no_slowdown(compare):
    parts = [row(kind='share', attention=0.5)], [row(kind='share', attention=0.3)]
    assert compare(*parts)[0] == 0
    assert compare([row(kind='share', attention=0.5)], [row(ms=20.0, kind='share', attention=0.5)])[0] == 1


@pytest.mark.parametrize('before, after, status', [(100, 109, 0), (20, 27, 0), (100, 115, 1), (100, 10, 0)])
def test_memory_may_grow_a_little(compare, before, after, status):
    found, lines = compare([row(plain=1.0, mib=before)], [row(plain=1.0, mib=after)])
    assert found == status
    assert lines[0].startswith('larger') == bool(status)


def test_a_case_that_became_wrong_fails_and_says_how(compare):
    status, lines = compare([row(plain=1.0), row('c', plain=1.0)], [wrong(), wrong('c', failed='out of memory')])
    assert status == 1
    assert lines[0] == 'wrong      a/b (cpu): differs from plain by 0.5'
    assert lines[1] == 'wrong      c (cpu): failed: out of memory'


def test_a_case_that_was_wrong_before_does_not_fail(compare):
    status, lines = compare([wrong(), wrong('c')], [wrong(), row('c', plain=1.0)])
    assert status == 0
    assert lines[0] == 'not judged a/b (cpu): wrong in both: differs from plain by 0.5'
    assert lines[1].startswith('right      c')


def test_missing_cases_are_named_and_new_ones_counted(compare):
    status, lines = compare([row(plain=1.0), row('gone', plain=1.0)], [row(plain=1.0), row('new', plain=9.0)])
    assert status == 0
    assert lines == [
        'not measured again: gone (cpu)',
        '1 in both: 0 wrong, 0 slower, 0 larger; 1 new, 1 not measured again',
    ]


def test_devices_are_not_mixed_up(compare):
    status, lines = compare([row(plain=1.0)], [row(plain=1.0), dict(row(plain=0.1), device='cuda')])
    assert status == 0
    assert '1 in both' in lines[-1]


def test_results_that_only_compared_are_not_judged(compare):
    quick = row(plain=1.0)
    del quick['sides']['ours']['ms'], quick['sides']['plain']['speed']
    status, lines = compare([row(plain=1.0)], [quick])
    assert status == 0
    assert lines[0].startswith('not judged')


@pytest.mark.parametrize(
    'text, told',
    [
        (None, 'No such file'),
        ('{', 'not JSON'),
        ('[]', 'not a result'),
        ('{"rows": []}', 'not a result'),
        ('{"environment": {}, "rows": [{"name": "a"}]}', 'row 0'),
        ('{"environment": {}, "rows": [{"name": "a", "device": "cpu", "correct": true, "ours": "x"}]}', "'a'"),
        ('{"environment": {}, "rows": []}', 'has no rows'),
    ],
)
def test_what_cannot_be_compared_is_named_in_one_line(tmp_path, capsys, text, told):
    good, bad = tmp_path / 'good.json', tmp_path / 'bad.json'
    good.write_text(json.dumps(dict(environment=HERE, rows=[row(plain=1.0)])))
    if text is not None:
        bad.write_text(text)
    assert main([str(good), str(bad)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'bad.json' in line
    assert told in line


def test_the_command_has_it(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmarks(['compare', '--help'])
    assert stop.value.code == 0
    assert 'example' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(['a', 'b', '--tolerance', '5'])
    assert stop.value.code == 2
    assert "not '5'" in capsys.readouterr().err
