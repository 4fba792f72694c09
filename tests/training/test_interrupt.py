"""Ctrl-C in a loop of steps."""

import signal
import threading

import pytest
from torch.utils.data import DataLoader, Dataset

from timm_extra.training import interrupt
from timm_extra.training.interrupt import ignore_interrupts, interruptible


def test_the_first_ctrl_c_is_noted_and_the_second_interrupts():
    steps = 0
    with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
        assert not interruption.came
        signal.raise_signal(signal.SIGINT)
        assert interruption.came
        steps += 1
        signal.raise_signal(signal.SIGINT)
        steps += 1
    assert steps == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_launcher_that_passes_ctrl_c_on_is_no_second_one(monkeypatch):
    """`torchrun` sends it again to processes that had it from the terminal."""
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interruption.came
        monkeypatch.setattr(interrupt, 'PASSED_ON', 0.0)  # it was later
        signal.raise_signal(signal.SIGINT)
        raise AssertionError('it went on')


def test_afterwards_ctrl_c_interrupts_as_ever():
    with interruptible():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_handler_of_the_program_stays_in_charge():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with interruptible() as interruption:
            signal.raise_signal(signal.SIGINT)
        assert seen == [1] and not interruption.came
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_training_in_another_thread_runs():
    ran = []

    def train():
        with interruptible() as interruption:
            ran.append(interruption.came)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert ran == [False]


class Signalled(Dataset):
    """Numbers, the first of which sends Ctrl-C to the process that reads it."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 0:
            signal.raise_signal(signal.SIGINT)
        return index


def test_workers_of_a_loader_read_on():
    loader = DataLoader(Signalled(), num_workers=1, worker_init_fn=ignore_interrupts)
    assert [int(x) for x in loader] == [0, 1, 2, 3]
