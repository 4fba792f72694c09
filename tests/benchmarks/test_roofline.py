"""Floors: what is counted, what sets them, and the sheet."""

import pytest
import torch

from benchmarks.cases.operations import CASES, counted, relative
from benchmarks.floors import sheet
from benchmarks.harness import Case, Made, Side, run_case
from benchmarks.roofline import A100, H100, Peak, Work, floor_seconds, measured_peak
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels._spec import SPECS

PEAK = Peak(bytes=1e9, flops=1e12, special=1e8)
BY_NAME = {spec.name: spec for spec in SPECS}


def result(*rows, **more):
    return dict(environment=dict(device='Some CPU'), rows=list(rows), **more)


def row(name, ms, work=None, device='cpu'):
    ours = dict(words='', ms=dict(median=ms, p10=ms, p90=ms))
    work = work or dict(bytes=4e6, flops=1e9, special=1e6)
    return dict(name=name, device=device, correct=True, work=work, sides=dict(ours=ours))


def cells(lines, name):
    (line,) = [line for line in lines if f'`{name}`' in line]
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


@pytest.mark.parametrize(
    'work, expected',
    [
        (Work(2e9, 1e12, 1e8), (2.0, 'bytes')),
        (Work(1e9, 3e12, 1e8), (3.0, 'flops')),
        (Work(1e9, 1e12, 4e8), (4.0, 'special')),
    ],
)
def test_the_slowest_part_sets_the_floor(work, expected):
    assert floor_seconds(work, PEAK) == expected


def test_work_of_class_attention_is_that_of_its_tensors():
    work = counted(BY_NAME['class_attention'], OpCase('x', dict(B=2, H=3, L=5, D=7)), torch.float32)
    queries, keys = 2 * 3 * 7, 2 * 3 * 5 * 7
    assert work == Work(bytes=4 * (2 * queries + 2 * keys), flops=4 * keys, special=2 * 3 * 5)


def test_a_dtype_half_as_wide_moves_half_as_much():
    size = OpCase('x', dict(B=2, M=5, C=8, N=50))
    wide, narrow = (counted(BY_NAME['latent_cross_attention'], size, t) for t in (torch.float32, torch.bfloat16))
    assert narrow == Work(wide.bytes / 2, wide.flops, wide.special)


def test_shared_queries_are_read_once_and_their_results_written_for_every_item():
    spec = BY_NAME['latent_cross_attention']
    shared, own = (counted(spec, OpCase('x', dict(B=4, Q=q, M=5, C=8, N=50)), torch.float32) for q in (1, 4))
    assert own.bytes - shared.bytes == 4 * 3 * 5 * 8
    assert (own.flops, own.special) == (shared.flops, shared.special)


def test_separated_features_cost_as_much_as_their_tables():
    spec = BY_NAME['fourier_cross_attention']
    work = counted(spec, OpCase('x', dict(B=1, M=2, c=3, S=(5, 7), F=(11, 13))), torch.float32)
    assert work.flops == 4 * 2 * (35 * (3 + 1) + 5 * 11 + 7 * 13)
    assert work.special == 2 * 35


def test_a_step_costs_more_of_everything():
    for name, spec in BY_NAME.items():
        forward, step = (counted(spec, spec.compiled[0], torch.bfloat16, step) for step in (False, True))
        assert step.bytes > 2 * forward.bytes, name
        assert (step.flops, step.special) == (3 * forward.flops, 2 * forward.special)


def test_this_machine_is_measured():
    peak = measured_peak('cpu')
    assert 1e8 < peak.bytes < 1e13
    assert 1e8 < peak.flops < 1e15
    assert 1e6 < peak.special < 1e13


def test_the_sheet_has_the_floors_of_two_gpus_without_any_result():
    lines = sheet(result())
    name = 'kernels/leff_depthwise/ceit/forward'
    (work,) = [case.work for case in CASES if case.name == name]
    floors = [1e3 * work.bytes / peak.bytes for peak in (A100, H100)]
    assert cells(lines, name)[3:] == [f'{ms:.3g} (bytes)' for ms in floors]
    assert len({len(line.split('|')) for line in lines if line.startswith('|')}) == 1


def test_times_of_a_gpu_stand_beside_its_floors():
    name, other = (f'kernels/leff_depthwise/{size}/forward' for size in ('ceit', 'ceit-384'))
    (work,) = [case.work for case in CASES if case.name == name]
    peak = Peak(work.bytes, 1e18, 1e18)  # a second to move it all
    lines = sheet(result(row(name, 1500.0, device='cuda'), peak=peak._asdict()))
    assert cells(lines, name)[-3:] == ['1,000 (bytes)', '1,500', '1.5']
    assert cells(lines, other)[-3:] == ['–'] * 3


def test_all_other_rows_are_told_for_this_machine_alone():
    lines = sheet(result(row('ops/x/n/1', 20.0), peak=PEAK._asdict()))
    assert cells(lines, 'ops/x/n/1') == ['4', '1', '1', '10 (special)', '20', '2']
    assert any('Some CPU' in line for line in lines)
    assert 'measured, ms' not in '\n'.join(lines[: next(i for i, line in enumerate(lines) if 'Some CPU' in line)])


def test_a_wrong_row_and_one_without_peaks_have_no_ratio():
    wrong = dict(row('ops/x/n/1', 20.0), correct=False, sides=dict(ours=dict(words='')))
    assert cells(sheet(result(wrong, peak=PEAK._asdict())), 'ops/x/n/1')[-3:] == ['10 (special)', 'wrong', '–']
    assert cells(sheet(result(row('ops/x/n/1', 20.0))), 'ops/x/n/1')[-3:] == ['–', '20', '–']


def operations(case_name):
    (case,) = [case for case in CASES if case.name == case_name]
    return case


@pytest.mark.parametrize(
    'name', ['class_attention/l/12', 'fourier_cross_attention/pixels/784', 'latent_cross_attention/n/1024']
)
def test_a_case_of_an_operation_agrees_with_its_definition(name):
    row = run_case(operations(f'ops/{name}'), 'cpu', 1, quick=True)
    assert row['correct']
    assert set(row['sides']) == {'ours', 'definition', 'library'}
    assert not any('failed' in side or 'wrong' in side for side in row['sides'].values())


@pytest.mark.parametrize('wrong', [lambda t: t * 1.01, lambda t: torch.zeros_like(t), lambda t: t + 0.01 * t.roll(1)])
def test_a_slightly_wrong_operation_is_found(wrong):
    case = operations('ops/latent_cross_attention/n/1024')

    def make(device):
        made = case.ours.make(device)
        return Made(made.call, lambda: relative([wrong(made.call())]))

    row = run_case(Case('x', Side('x', make), case.peers, atol=case.atol), 'cpu', 1, quick=True)
    assert not row['correct']


def test_names_are_paths_without_spaces_and_figures_have_their_peers():
    for case in CASES:
        assert not set(case.name) - set('abcdefghijklmnopqrstuvwxyz0123456789-_/.')
        assert all(not one.peer or one.peer in case.peers for one in case.asked)
    asked = [(case.name, one.what, one.value) for case in CASES for one in case.asked]
    assert len(asked) == 11  # none lost to a renamed size
    assert ('kernels/fourier_cross_attention/2048x2048/memory', 'peak_gib', 0.93) in asked
