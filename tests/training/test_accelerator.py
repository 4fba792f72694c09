"""Trackers, and which process speaks."""

import pytest

from timm_extra.training.accelerator import TRACKERS, create_accelerator, in_first_process


@pytest.mark.parametrize('tracker', TRACKERS)
def test_a_tracker_that_is_missing_is_named_with_its_package(tracker, monkeypatch):
    monkeypatch.setattr('accelerate.tracking.get_available_trackers', list)
    with pytest.raises(ModuleNotFoundError, match=f'`log_with=.{tracker}.` needs {tracker}: pip install {tracker}'):
        create_accelerator(None, cpu=True, log_with=tracker)


@pytest.mark.parametrize('rank, speaks', [(None, True), ('0', True), ('1', False)])
def test_the_first_process_speaks(rank, speaks, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    if rank:
        monkeypatch.setenv('RANK', rank)
    assert in_first_process() == speaks
