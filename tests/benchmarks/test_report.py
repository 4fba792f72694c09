"""The report: what a result file says in Markdown, in pictures and on pages."""

import copy
import json
import struct

import pytest

from benchmarks import asked as goals
from benchmarks import floors as floor_tables
from benchmarks import pages, plots, report
from benchmarks.environment import environment
from benchmarks.harness import slopes

MEMORY_ERROR = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 2.6e10 bytes | <abort>"


def spread(median, by=0.05):
    return dict(median=round(median, 4), p10=round(median * (1 - by), 4), p90=round(median * (1 + by), 4))


def side(words, ms, ours=None, mib=None, **about):
    """A side that ran: times, the ratio where `ours` says what ours took, extra peak memory."""
    out = dict(words=words, **about, ms=spread(ms))
    if about.get('same', True):
        out['difference'] = 1e-6
    if ours is not None:
        out['speed'] = spread(ms / ours)
    if mib is not None:
        out['peak_mib'] = mib
    return out


def row(name, sides, kind='speed', correct=True, rounds=12, **parts):
    reference = next((n for n, s in sides.items() if n != 'ours' and s.get('same', True) and 'difference' in s), None)
    out = dict(
        name=name, kind=kind, device='cpu', reference=reference, atol=1e-3, correct=correct, sides=sides, **parts
    )
    return out | (dict(rounds=rounds) if correct and rounds else {})


def asked(what, value, peer=''):
    return dict(what=what, value=value, peer=peer, on='cpu')


def model_rows():
    for size, ms in (('tiny', 60.0), ('small', 160.0)):
        for case, times in (('inference', 1.12), ('training-step', 1.34)):
            sides = dict(
                ours=side(f'ceit_{size} as created, batch 4 at 224 × 224', ms, mib=28.0),
                plain=side("the paper's modules in plain PyTorch", ms * times, ms, mib=371.0),
                deit=side(f"timm's deit_{size}_patch16_224", ms * 0.81, ms, mib=25.0, same=False),
            )
            yield row(f'ceit/{size}/{case}', sides)
    fused = dict(ours=side('ceit_small after fuse()', 120.0), plain=side('plain PyTorch', 168.0, 120.0))
    yield row('ceit/small/inference/fused', fused, asked=[asked('speed', 1.25, 'plain')])
    base = dict(
        ours=side('perceiver_io_base, batch 1', 210.0, mib=31.0),
        transformers=side("transformers' classifier", 580.0, 210.0, mib=371.4),
        plain=side('itself with plain attention', 480.0, 210.0, mib=400.0),
    )
    memory = [asked('memory', 10, 'transformers'), asked('memory', 20, 'plain')]
    yield row('perceiver/io_base/inference', base, asked=memory)
    lucid = dict(
        ours=side('perceiver_base', 300.0, mib=31.0),
        lucidrains=dict(words='perceiver-pytorch', failed='TypeError: forward() takes 2 arguments'),
        plain=side('itself with plain attention', 410.0, 300.0, mib=400.0),
    )
    yield row('perceiver/base/training-step', lucid, asked=[asked('speed', 2, 'lucidrains')])
    glom = dict(
        ours=side('glom_base, batch 4', 900.0, mib=120.0),
        lucidrains=side('glom-pytorch with the same weights', 3200.0, 900.0, mib=610.0),
    )
    yield row('glom/inference', glom)
    broken = dict(
        ours=dict(words='glom_base, broken', difference=0.31, wrong=True),
        lucidrains=dict(words='glom-pytorch', difference=0.0),
    )
    yield row('glom/broken', broken, correct=False, asked=[asked('speed', 1, 'lucidrains')])
    byol = dict(
        ours=side('BYOL, resnet18', 700.0),
        copies=side('with a second copy', 690.0, 700.0),
        lucidrains=dict(words='byol-pytorch', missing='byol_pytorch is not installed'),
        plain=dict(words='a loop in plain PyTorch', difference=0.3, wrong=True),
    )
    yield row('ssl/byol/step', byol)


def share_and_start_rows():
    step = dict(
        ours=side('a pretraining step', 700.0),
        views=side('drawing the views', 90.0, 700.0, same=False),
        update=side('the moving average', 8.0, 700.0, same=False),
    )
    yield row('pretraining/step', step, kind='share')
    start = dict(ours=side('import timm_extra', 98.0), timm=side('import timm', 4180.0, 98.0, same=False))
    yield row('start/import', start, asked=[asked('ms', 150)])


def resolution_rows():
    for case, first in (('image-to-latents', 72.0), ('resolution', 210.0)):
        for i, size in enumerate((224, 448, 896, 1792, 3584)):
            ours = first * (1.7 if case == 'resolution' else 3.1) ** i
            sides = dict(
                ours=side(f'perceiver_io_base at {size} × {size}', ours, mib=28.0 * 3.4**i),
                transformers=side("transformers' classifier", 2.4 * first * 4.1**i, ours, mib=371.0 * 4**i),
                plain=side('itself with plain attention', 1.9 * first * 4**i, ours, mib=300.0 * 4**i),
            )
            if i >= 3:
                sides['transformers'] = dict(words="transformers' classifier", failed=MEMORY_ERROR)
            if i == 4:
                sides['plain'] = dict(words='itself with plain attention', failed=MEMORY_ERROR)
            last = i == 4 and case == 'resolution'
            parts = dict(asked=[asked('slope', 0.5), asked('peak_gib', 4)]) if last else {}
            over = dict(axis='pixels', value=size * size)
            yield row(f'perceiver/{case}/{size}', sides, rounds=0, over=over, **parts)


def operation_rows():
    inputs = (196, 784, 3136, 12544, 50176)
    axes = dict(L=(4, 12, 24, 48), D=(64, 192, 384), N=inputs, M=(32, 128, 512), C=(96, 384, 1536))
    axes |= dict(pixels=inputs, F=(9, 33, 129), tokens=inputs[:4])
    for operation, over in (
        ('class_attention', ('L', 'D')),
        ('latent_cross_attention', ('N', 'M', 'C', 'N-bfloat16')),
        ('fourier_cross_attention', ('pixels', 'M', 'F')),
        ('leff_depthwise', ('tokens', 'C')),
    ):
        for column in over:
            axis = column.partition('-')[0]
            for value in axes[axis]:
                ours = 0.02 * value**0.9
                sides = dict(
                    ours=side(operation, ours),
                    eager=side('eager PyTorch', 3.1 * ours * value**0.08, ours),
                    compile=side('torch.compile', 1.7 * ours, ours),
                    fused=side("PyTorch's fused attention", 1.4 * ours, ours),
                )
                work = dict(bytes=4e5 * value, flops=2e6 * value, special=1e4 * value)
                where = dict(axis=axis, value=value)
                yield row(f'ops/{operation}/{column.lower()}/{value}', sides, over=where, work=work)


@pytest.fixture(scope='module')
def whole():
    """A result with everything that a report has to cope with."""
    rows = [*model_rows(), *share_and_start_rows(), *resolution_rows(), *operation_rows()]
    environment = dict(
        date='2026-11-22T05:03:14+00:00',
        commit='8e9a042c77feb47149c9a3436fe9a1a9ebf2ebbe with changes',
        device='Intel(R) Xeon(R) Processor @ 2.10GHz',
        threads=2,
        memory_gib=31.3,
        limit_gib=20.0,
        python='3.11.7',
        torch='2.15.0',
    )
    peak = dict(bytes=2e10, flops=1e11, special=1e9)
    return dict(environment=environment, peak=peak, rows=rows, slopes=slopes(rows))


@pytest.fixture(autouse=True)
def floors(monkeypatch):
    """Floors have tests of their own; here the rows that they get are of interest."""
    monkeypatch.setattr(floor_tables, 'sheet', lambda result: [f'floors of {len(result["rows"])} rows'])


@pytest.fixture
def file(whole, tmp_path):
    file = tmp_path / 'cpu.json'
    file.write_text(json.dumps(whole))
    return file


def lines_with(lines, *parts):
    return [line for line in lines if all(part in line for part in parts)]


def cells(lines, *parts):
    """Cells of the only line of a table that holds all parts."""
    (line,) = lines_with([line for line in lines if line.startswith('|')], *parts)
    return [cell.strip() for cell in line.strip('|').split(' | ')]


def without(result, name, *sides):
    """A copy in which a row is only compared: no times of these sides."""
    out = copy.deepcopy(result)
    (found,) = [r for r in out['rows'] if r['name'] == name]
    for one in sides:
        for key in ('ms', 'speed', 'peak_mib'):
            found['sides'][one].pop(key, None)
    return out


def test_the_report_says_where_it_was_measured(whole):
    heading, _, versions, *_ = report.markdown(whole)
    assert heading == (
        '# Benchmarks: 2026-11-22, Intel(R) Xeon(R) Processor @ 2.10GHz, 2 threads, commit 8e9a042c77 with changes'
    )
    assert versions == '31.3 GiB of memory, of which a process may hold 20; python 3.11.7, torch 2.15.0'


def test_what_was_asked_is_judged_by_what_was_measured(whole, monkeypatch):
    short = {('perceiver/io_base/inference', 'memory'): 'the latents | are read twice'}
    monkeypatch.setattr(goals, 'SHORT', short)
    asked_lines = lines_with(report.markdown(whole), '| ')
    assert cells(asked_lines, 'at least 1.25×')[3:] == ['1.40×', 'yes']
    assert cells(asked_lines, 'at least 10× ours')[1:] == [
        'transformers',
        'extra peak memory of the peer at least 10× ours',
        '12.0×',
        'yes',
    ]
    assert cells(asked_lines, 'at least 20× ours')[3:] == ['12.9×', r'no: the latents \| are read twice']
    assert cells(asked_lines, 'start/import', 'at most')[2:] == ['at most 150 ms', '98.0 ms', 'yes']
    slope = whole['slopes']['perceiver/resolution']['ours']
    assert cells(asked_lines, 'to the power of 0.5')[3:] == [f'{slope:.2f}', 'yes']
    assert cells(asked_lines, 'at most 4 GiB')[3:] == ['3.65 GiB', 'yes']
    assert '5 of 8 met, 2 not measured.' in report.markdown(whole)


def test_what_was_asked_and_not_measured_says_why(whole):
    lines = report.markdown(whole)
    assert cells(lines, 'at least 2×')[3:] == [
        'not measured: lucidrains: failed: TypeError: forward() takes 2 arguments',
        '–',
    ]
    assert 'ours: wrong: differs from lucidrains by 0.31' in cells(lines, 'glom/broken', 'at least')[3]
    compared = report.markdown(without(whole, 'perceiver/resolution/3584', 'ours') | dict(slopes={}))
    assert cells(compared, 'to the power of 0.5')[3] == 'not measured: fewer than three sizes have a time'
    assert cells(compared, 'at most 4 GiB')[3] == 'not measured: ours: results compared only'
    lost = copy.deepcopy(whole)
    (found,) = [r for r in lost['rows'] if r['name'] == 'perceiver/io_base/inference']
    del found['sides']['transformers']['peak_mib']
    found['sides']['transformers']['memory_failed'] = 'killed by signal 9'
    found['asked'][1]['peer'] = 'nobody'
    lines = report.markdown(lost)
    assert cells(lines, 'at least 10× ours')[3] == 'not measured: transformers: killed by signal 9'
    assert cells(lines, 'at least 20× ours')[3] == "not measured: nobody: there is no side 'nobody'"


def test_times_ratios_and_memory_of_a_case(whole):
    lines = report.markdown(whole)
    assert cells(lines, 'ceit/small/inference`', '| plain')[1:] == [
        'plain',
        '160 ms',
        '179 ms',
        '1.12× (1.06 to 1.18)',
        '28 instead of 371 MiB',
    ]
    assert cells(lines, 'ceit/small/inference`', '| deit')[1] == 'deit, a yardstick'
    assert lines_with(lines, '- `ceit/small/inference`', "plain: the paper's modules in plain PyTorch")
    assert cells(lines, 'glom/inference')[2:4] == ['900 ms', '3.20 s']


def test_sides_without_figures_say_why(whole):
    lines = report.markdown(whole)
    assert cells(lines, 'base/training-step', 'lucidrains', '300 ms')[3:] == [
        '–',
        'failed: TypeError: forward() takes 2 arguments',
        '–',
    ]
    assert cells(lines, 'ssl/byol/step', '| lucidrains')[4] == 'byol_pytorch is not installed'
    assert cells(lines, 'ssl/byol/step', '| plain')[4] == 'wrong: differs from copies by 0.3, allowed 0.001'


def test_a_wrong_row_has_its_difference_and_no_speed(whole):
    ours, reference, *figures = 'ours wrong: differs from lucidrains by 0.31, allowed 0.001', 'lucidrains', '–', '–'
    lines = report.markdown(whole)
    assert cells(lines, 'glom/broken', 'ours wrong') == ['`glom/broken`', reference, *figures, ours, '–']
    assert not lines_with([line for line in lines if 'glom/broken' in line], '×', 'ours wrong')
    shapes = copy.deepcopy(whole)
    (found,) = [r for r in shapes['rows'] if r['name'] == 'glom/broken']
    found['sides']['ours']['difference'] = None
    assert 'not finite' in cells(report.markdown(shapes), 'glom/broken', 'ours wrong')[4]


def test_a_group_is_a_table_over_its_axis(whole):
    lines = report.markdown(whole)
    begin = lines.index('## perceiver/image-to-latents, over pixels')
    table = lines[begin + 2 : begin + 10]
    assert table[0] == '| pixels | ours | transformers | plain |'
    assert table[2] == '| 224² | 72.0 ms, 28 MiB | 173 ms, 371 MiB | 137 ms, 300 MiB |'
    assert table[5] == '| 1792² | 2.14 s, 1,101 MiB | out of memory | 8.76 s, 19,200 MiB |'
    assert table[6].startswith('| 3584² | 6.65 s, 3,742 MiB (no peer to compare the result with) |')
    found = whole['slopes']['perceiver/image-to-latents']
    assert table[7] == f'| slope | {found["ours"]:.2f} | {found["transformers"]:.2f} | {found["plain"]:.2f} |'
    assert any('process of its own' in line for line in lines[begin + 10 : begin + 13])


def test_the_values_of_an_axis_are_in_order(whole):
    turned = dict(whole, rows=whole['rows'][::-1])
    values = [line.split()[1] for line in report.markdown(turned, 'leff_depthwise/tokens/') if line.startswith('| ')]
    assert values == ['tokens', '196', '784', '3136', '12544', 'slope']


def test_parts_of_a_whole_are_shares(whole):
    lines = report.markdown(whole)
    assert cells(lines, 'pretraining/step', 'views')[2:] == ['700 ms', '90.0 ms', '12.9 % (12.2 to 13.5)']
    assert not lines_with(lines, 'pretraining/step', '×')


def test_only_keeps_rows_and_hands_these_to_the_floors(whole):
    lines = report.markdown(whole, 'leff_depthwise/c')
    assert lines_with(lines, '## ops/leff_depthwise/c, over C') and not lines_with(lines, 'ceit')
    assert 'floors of 3 rows' in lines
    assert not lines_with(report.markdown(whole, 'ceit/'), 'floors')


def filled(name, result, file):
    """Lines of one section of a page that lies beside the result."""
    text = pages.splice(f'<!-- benchmarks: {name} -->\nold\n<!-- /benchmarks -->', result, file, file.parent)
    first, _, *lines, _, last = text.split('\n')
    assert (first, last) == (f'<!-- benchmarks: {name} -->', '<!-- /benchmarks -->')
    return lines


def test_the_summary_has_peers_that_compute_the_same(whole, file):
    lines = filled('summary', whole, file)
    assert '2026-11-22' in lines[0] and '2 threads' in lines[0] and '8e9a042c77' in lines[0]
    for name in plots.PICTURES:
        assert lines_with(lines, f'(cpu-{name}.png)')
    assert cells(lines, 'perceiver/io_base/inference', 'transformers')[2:] == [
        '2.76× (2.62 to 2.90)',
        '31 instead of 371 MiB',
    ]
    assert cells(lines, 'ssl/byol/step', '| lucidrains')[2] == 'byol_pytorch is not installed'
    for absent in ('deit', 'ops/', 'resolution/', 'start/', 'pretraining/', 'broken'):
        assert not lines_with([line for line in lines if line.startswith('|')], absent), absent


def test_a_section_of_a_family_is_its_table(whole, file):
    lines = filled('ceit/', whole, file)
    assert len(lines_with(lines, '| `ceit/')) == 5
    assert not lines_with(lines, '.png') and not lines_with(lines, '| `ssl/')


def test_the_summary_shows_no_picture_that_is_not_drawn(whole, file):
    rows = [r for r in whole['rows'] if r['name'].startswith('ceit')]
    assert len(lines_with(filled('summary', dict(whole, rows=rows), file), '.png')) == 1


def test_pictures_are_found_from_the_page(whole, tmp_path):
    text = '<!-- benchmarks: summary -->\n<!-- /benchmarks -->'
    done = pages.splice(text, whole, tmp_path / 'benchmarks' / 'results' / 'cpu.json', tmp_path / 'docs')
    assert '](../benchmarks/results/cpu-speed.png)' in done


def test_splice_replaces_the_sections_alone_and_once(whole, file):
    ceit, glom = (f'<!-- benchmarks: {name} -->\nold\n<!-- /benchmarks -->\n' for name in ('ceit/', 'glom/'))
    text = f'# A\n\n{ceit}b\n{glom}'
    once = pages.splice(text, whole, file, file.parent)
    assert once.startswith('# A\n\n<!-- benchmarks: ceit/ -->\n\nMeasured') and 'old' not in once
    assert '<!-- /benchmarks -->\nb\n<!-- benchmarks: glom/ -->\n\nMeasured' in once
    assert pages.splice(once, whole, file, file.parent) == once


@pytest.mark.parametrize(
    'text, named',
    [
        ('nothing', 'no section'),
        ('<!-- benchmarks: ceit/ -->', "'ceit/' has no <!-- /benchmarks -->"),
        ('<!-- benchmarks: ceit/ -->\n<!-- benchmarks: glom/ -->\n<!-- /benchmarks -->', "'glom/' has no"),
        ('<!-- benchmarks: none/ -->\n<!-- /benchmarks -->', "'none/'"),
    ],
)
def test_what_is_wrong_with_a_section_is_named(text, named, whole, file):
    with pytest.raises(ValueError) as error:
        pages.splice(text, whole, file, file.parent)
    assert named in str(error.value)


def width(png):
    data = png.read_bytes()
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    return struct.unpack('>I', data[16:20])[0]


@pytest.mark.parametrize('name', plots.PICTURES)
def test_pictures_are_drawn_or_skipped(name, whole, tmp_path):
    picture = tmp_path / 'picture.png'
    draw = plots.PICTURES[name].draw
    nothing = [r for r in whole['rows'] if r['kind'] == 'share' or not r['correct']]
    assert draw(dict(whole, rows=nothing, slopes={}), picture) is False
    assert not picture.exists()
    assert draw(whole, picture) is True
    assert width(picture) == 1350


def drawn(draw, result, monkeypatch):
    """The figure that a function draws, with every text in it."""
    figures = []

    class Figure(type(plots.new_figure(1, 1))):
        def savefig(self, file, **kwargs):
            figures.append(self)

    monkeypatch.setattr(plots, 'new_figure', lambda w, h: Figure(figsize=(w, h), layout='constrained'))
    assert draw(result, None)
    (figure,) = figures
    figure.draw_without_rendering()
    return figure, [t.get_text().strip() for t in figure.findobj(lambda artist: hasattr(artist, 'get_text'))]


def test_the_picture_of_ratios_has_a_bar_or_a_reason_for_every_peer(whole, monkeypatch):
    figure, texts = drawn(plots.speed, whole, monkeypatch)
    (axis,) = figure.axes
    bars = [p for p in axis.patches if p.get_height() > 0]
    assert [round(b.get_x() + b.get_width(), 2) for b in bars[:2]] == [1.12, 0.81]
    assert [bool(b.get_hatch()) for b in bars[:2]] == [False, True]
    assert {'1.12×', '0.81×', 'failed', 'not installed', 'wrong result', 'ceit', 'byol/step  vs  copies'} <= set(texts)
    assert any('2026-11-22' in text for text in texts)
    assert not [text for text in texts if 'broken' in text or 'import' in text]


def test_the_picture_of_sizes_marks_what_ran_out_of_memory(whole, monkeypatch):
    figure, texts = drawn(plots.resolution, whole, monkeypatch)
    assert len(figure.axes) == 4
    assert texts.count('out of memory') == 8  # of two peers, for time and memory of two groups
    assert f'ours ({whole["slopes"]["perceiver/resolution"]["ours"]:.2f})' in texts
    assert '3584²' in texts


def test_the_picture_of_operations_has_a_panel_for_every_axis(whole, monkeypatch):
    figure, texts = drawn(plots.operations, whole, monkeypatch)
    assert len([axis for axis in figure.axes if axis.lines]) == 11
    assert {'class_attention\nms', 'latent_cross_attention\nms', 'leff_depthwise\nms', 'N, bfloat16'} <= set(texts)
    assert texts.count(f'eager ({whole["slopes"]["ops/leff_depthwise/c"]["eager"]:.2f})') >= 1


def test_the_report_and_its_pictures_lie_beside_the_result(file, whole):
    assert pages.main([str(file)]) == 0
    drawn = {f'cpu-{name}.png' for name in plots.PICTURES}
    assert {p.name for p in file.parent.iterdir()} == {'cpu.json', 'cpu.md', *drawn}
    text = (file.parent / 'cpu.md').read_text()
    assert text.splitlines() == pages.page(whole, file)
    assert all(f']({name})' in text for name in drawn)


def test_a_part_is_printed(file, whole, capsys):
    assert pages.main([str(file), '--only', 'ceit/']) == 0
    assert capsys.readouterr().out.splitlines() == report.markdown(whole, 'ceit/')
    assert [p.name for p in file.parent.iterdir()] == ['cpu.json']


def test_pages_are_filled(file, whole, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- benchmarks: glom/ -->\n<!-- /benchmarks -->\nafter\n')
    assert pages.main([str(file), '--into', str(page)]) == 0
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and '| `glom/inference` |' in text


def test_a_page_without_sections_is_named_and_nothing_is_written(file, tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text('nothing\n')
    assert pages.main([str(file), '--into', str(page)]) == 2
    assert str(page) in capsys.readouterr().err
    assert page.read_text() == 'nothing\n' and not (tmp_path / 'cpu.md').exists()


@pytest.mark.parametrize('text', [None, 'no JSON', '[]', '{"rows": []}', '{"environment": {}, "rows": []}'])
def test_what_is_no_result_is_named_in_one_line(text, tmp_path, capsys):
    file = tmp_path / 'other.json'
    if text is not None:
        file.write_text(text)
    assert pages.main([str(file)]) == 2
    err = capsys.readouterr().err
    assert str(file) in err and err.count('\n') == 1


def test_a_part_that_no_row_has_is_named(file, capsys):
    assert pages.main([str(file), '--only', 'nowhere']) == 2
    assert "'nowhere'" in capsys.readouterr().err


def test_results_know_the_peers_and_the_memory():
    about = environment('cpu')
    assert about['memory_gib'] > 0
    assert {'torch', 'timm', 'triton', 'perceiver-pytorch', 'glom-pytorch', 'byol-pytorch'} <= about.keys()
