"""The report: what results say in Markdown, in pictures and on pages."""

import json
import struct

import pytest

from benchmarks import plots, report
from benchmarks.__main__ import main
from benchmarks.results import load, time_text, write


def spread(median):
    return dict(median=median, p10=round(0.9 * median, 3), p90=round(1.1 * median, 3))


def row(case, against='plain', ratio=1.5, correct=True, rounds=9, ms=100.0, mib=None, **more):
    found = dict(case=case, implementation='timm-extra', against=against, correct=correct, ms=ms, **more)
    if ratio:
        found |= dict(ratio=spread(ratio), against_ms=ratio * ms) | (dict(rounds=rounds) if rounds else {})
    return found | (dict(peak_mib=mib, against_peak_mib=4 * mib) if mib else {})


def result(processor, rows, load=(0.5, 1.25), **cases):
    about = dict(date='2026-11-22T05:03:14+00:00', commit='8e9a042c77feb47149c9a3436fe9a1a9ebf2ebbe with changes')
    about |= dict(processor=processor, threads=2, load_at_start=load[0], load_at_end=load[1])
    known = {r['case']: dict(implementations={'timm-extra': 'ours', 'plain': 'theirs'}) for r in rows}
    for name, case in known.items():
        if name.startswith('perceiver/resolution/'):
            case['axis'] = ['pixels', int(name.split('/')[-1]) ** 2]
        if name.startswith('ops/'):
            case['work'] = [4e6, 1e9, 1e6]
    peak = dict(bytes=1e9, flops=1e12, special=1e8)
    return dict(environment=about, cases=known, rows=rows, peak=peak)


@pytest.fixture
def results():
    """Two processors with everything that a report has to cope with."""
    sizes = [row(f'perceiver/resolution/{s}', ms=s * 2.0, rounds=None, mib=float(s)) for s in (10, 20, 40)]
    out = row('perceiver/resolution/80', ratio=None, correct=None, ms=160.0, error='plain: out of memory')
    rows = [
        row('ceit/small/inference', mib=30.0),
        row('ceit/small/inference', 'deit', 0.8, correct=None),
        row('ssl/byol/step', ratio=0.94),
        dict(row('glom/broken', ratio=None, correct=False, error='timm-extra: differs | <by> 1'), ms=None),
        row('ops/leff/model', ms=20.0),
        *sizes,
        out,
    ]
    del rows[3]['ms']
    one = result('Intel(R) Xeon(R) Processor', rows)
    two = result('AMD EPYC', [row('ceit/small/inference', ratio=1.25)], (None, None))
    return {'amd-epyc': two, 'intel-xeon': one}


@pytest.fixture
def folder(results, tmp_path):
    for name, one in results.items():
        write(one, tmp_path / f'{name}.json')
    return tmp_path


def cells(lines, *parts):
    """Cells of the only line of a table that holds all parts."""
    (line,) = [line for line in lines if line.startswith('|') and all(part in line for part in parts)]
    return [cell.strip() for cell in line.strip('|').split(' | ')]


def test_what_is_written_is_read_again(results, folder):
    assert load(folder) == json.loads(json.dumps(results))
    assert len((folder / 'amd-epyc.json').read_text().splitlines()) < 30  # a row to a line


def test_the_report_says_where_and_at_which_load(results):
    text = '\n'.join(report.markdown(results))
    assert 'intel-xeon: Intel(R) Xeon(R) Processor, 2 threads, load 0.5 at the start and 1.25 at the end' in text
    assert 'amd-epyc: AMD EPYC, 2 threads, load not recorded; 2026-11-22, commit 8e9a042c77 with changes' in text


def test_processors_stand_side_by_side(results):
    lines = report.markdown(results)
    head = cells(lines, 'amd-epyc: ratio', 'intel-xeon: memory')
    row = dict(zip(head, cells(lines, '`ceit/small/inference`', '| plain'), strict=True))
    assert row['amd-epyc: ratio'] == '1.25× (1.12 to 1.38)' and row['intel-xeon: ratio'] == '1.50× (1.35 to 1.65)'
    assert row['intel-xeon: time'] == '100 ms / 150 ms' and row['intel-xeon: memory, MiB'] == '30 / 120'
    assert cells(lines, '`ceit/small/inference`', 'deit, a baseline')[2:4] == ['–', '–']


def test_losses_errors_and_the_roofline_are_shown(results):
    lines = report.markdown(results)
    assert '0.94× (0.85 to 1.03)' in cells(lines, 'ssl/byol/step')
    assert r'differs \| &lt;by> 1' in '\n'.join(lines)
    assert '2.0× 10.0 ms (special)' in cells(lines, 'ops/leff/model')


def test_what_grows_has_its_rows_in_order_and_a_slope(results):
    results['intel-xeon']['rows'].reverse()
    lines = report.markdown(results)
    cases = [line.split('`')[1] for line in lines if line.startswith('| `perceiver/')]
    assert cases == [f'perceiver/resolution/{s}' for s in (10, 20, 40, 80)]
    assert 'Time grows to the power of, on intel-xeon: timm-extra 0.50, plain 0.50.' in lines
    assert cells(lines, 'resolution/80')[2:4] == ['plain: out of memory', '160 ms / –']


def test_sections_of_pages_are_filled_alone_and_once(results, tmp_path):
    text = '# A\n<!-- benchmarks: ceit/ -->\nold\n<!-- /benchmarks -->\nb\n<!-- benchmarks: summary -->\n'
    text += '<!-- /benchmarks -->\n'
    once = report.splice(text, results, report.ROOT / 'docs')
    first, second = once.split('\nb\n')
    assert first.startswith('# A\n<!-- benchmarks: ceit/ -->\n') and 'old' not in once
    assert '| `ceit/' in first and 'ssl' not in first and '.png' not in first
    assert '| `ssl/' in second and '](../benchmarks/results/speed.png)' in second and 'resolution/' not in second
    assert report.splice(once, results, report.ROOT / 'docs') == once


def test_a_section_has_what_grows_with_times_and_the_processors_that_it_was_measured_on(results, tmp_path):
    page = '<!-- benchmarks: perceiver/resolution -->\n<!-- /benchmarks -->\n'
    for case in [name for name in results['amd-epyc']['cases'] if name.startswith('perceiver/resolution')]:
        del results['amd-epyc']['cases'][case]
    lines = report.splice(page, results, tmp_path).splitlines()
    assert [line for line in lines if line.startswith('- ')] == report.where({'intel-xeon': results['intel-xeon']})
    assert 'intel-xeon: time' in next(line for line in lines if line.startswith('| case |'))
    assert lines[-3] == 'Time grows to the power of, on intel-xeon: timm-extra 0.50, plain 0.50.'


@pytest.mark.parametrize('name, end', [('ceit/', ''), ('none/', '<!-- /benchmarks -->')])
def test_what_is_wrong_with_a_section_is_named(name, end, results, tmp_path):
    with pytest.raises(ValueError, match='none/' if end else '/benchmarks'):
        report.splice(f'<!-- benchmarks: {name} -->\n{end}', results, tmp_path)


def test_the_report_and_its_pictures_lie_beside_the_results(folder, results):
    assert main(['report', '--out', str(folder)]) == 0
    assert (folder / 'README.md').read_text().splitlines() == report.markdown(results)
    for name in plots.PICTURES:
        data = (folder / name).read_bytes()
        assert data[:8] == b'\x89PNG\r\n\x1a\n' and struct.unpack('>I', data[16:20])[0] == 1350


def test_the_picture_of_sizes_marks_what_ran_out_of_memory(results, monkeypatch, tmp_path):
    figure = plots.new_figure(9, 6)
    monkeypatch.setattr(plots, 'new_figure', lambda *size: figure)
    plots.draw_sizes(results, tmp_path / 'sizes.png')
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ['out of memory'] * 2


def test_a_picture_of_nothing_is_not_drawn(results):
    only = {'amd-epyc': dict(results['amd-epyc'], rows=[])}
    assert not any(select(only) for _, select, _ in plots.PICTURES.values())
    assert '.png' not in '\n'.join(report.markdown(only))


@pytest.mark.parametrize('text', [None, 'no JSON', '[]', '{"rows": []}'])
def test_what_is_no_result_is_named(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / 'other.json').write_text(text)
    assert main(['report', '--out', str(tmp_path)]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_times_have_three_figures():
    assert [time_text(ms) for ms in (0.0123, 1.234, 123.4, 12345.0)] == ['12.3 µs', '1.23 ms', '123 ms', '12.3 s']
