"""The operations: work that is counted, the roofline, and cases that notice a wrong result."""

import re

import pytest
import torch

from benchmarks.case import OURS, Case, Implementation, Ready
from benchmarks.cases.operations import CASES, counted, relative
from benchmarks.roofline import Work, measured_peak, roofline
from benchmarks.runner import run_case
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels._spec import SPECS

PEAK = Work(bytes=1e9, flops=1e12, special=1e8)
BY_NAME = {spec.name: spec for spec in SPECS}
BY_CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    'work, expected',
    [
        (Work(2e9, 1e12, 1e8), (2.0, 'bytes')),
        (Work(1e9, 3e12, 1e8), (3.0, 'flops')),
        (Work(1e9, 1e12, 4e8), (4.0, 'special')),
    ],
)
def test_the_slowest_part_sets_the_roofline(work, expected):
    assert roofline(work, PEAK) == expected


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


def test_this_processor_is_measured():
    peak = measured_peak('cpu')
    assert 1e8 < peak.bytes < 1e13
    assert 1e8 < peak.flops < 1e15
    assert 1e6 < peak.special < 1e13


@pytest.mark.parametrize(
    'name',
    [
        'class_attention/l/12',
        'fourier_cross_attention/pixels/784',
        'grid_query_attention/pixels/784',
        'latent_cross_attention/n/1024',
    ],
)
def test_a_case_of_an_operation_agrees_with_its_definition(name):
    rows = run_case(BY_CASE[f'ops/{name}'], 'cpu', 1, quick=True)
    assert [row['against'] for row in rows] == ['definition', 'library']
    assert all(row['correct'] for row in rows)


@pytest.mark.parametrize('wrong', [lambda t: t * 1.01, lambda t: torch.zeros_like(t), lambda t: t + 0.01 * t.roll(1)])
def test_a_slightly_wrong_operation_is_found(wrong):
    case = BY_CASE['ops/latent_cross_attention/n/1024']

    def make(device):
        made = case.implementations[OURS].make(device)
        return Ready(made.call, lambda: relative([wrong(made.call())]))

    implementations = {**case.implementations, OURS: Implementation('x', make)}
    rows = run_case(Case('x', implementations, case.tolerance), 'cpu', 1, quick=True)
    assert len(rows) == 2
    for row in rows:
        assert re.search('timm-extra: (differs|values that are not finite)', row['error'])


def test_names_are_paths_without_spaces():
    for case in CASES:
        assert not set(case.name) - set('abcdefghijklmnopqrstuvwxyz0123456789-_/.')
    assert BY_CASE['kernels/fourier_cross_attention/2048x2048/memory'].isolated
