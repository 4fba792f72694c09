"""What a training shows: a bar on terminals, few plain lines elsewhere, nothing from other processes."""

import io
import sys

import pytest

from timm_extra.training import progress
from timm_extra.training.progress import Progress, print_summary


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: seconds[0])
    return seconds


def train(clock, steps, each, shown=True, start=0):
    with Progress(start + steps, start, shown) as bar:
        for step in range(start, start + steps):
            clock[0] += each
            bar.update()
            bar.show(f'loss {step}')
            if step == 1:
                bar.line('step 2: accuracy 50 %')


def test_without_a_terminal_there_are_few_lines(clock, capsys):
    train(clock, steps=1000, each=0.125)
    out, lines = capsys.readouterr()
    assert out == '' and '\r' not in lines
    lines = lines.splitlines()
    assert len(lines) == 15  # one in ten seconds, the last, and what is said in a line of its own
    assert lines[0] == 'step 1/1000  loss 0  00:00 passed, 02:04 left'
    assert lines[1] == 'step 2: accuracy 50 %'
    assert lines[-1] == 'step 1000/1000  loss 999  02:05 passed, 00:00 left'


def test_what_is_left_is_counted_from_where_it_went_on(clock, capsys):
    train(clock, steps=10, each=60, start=990)
    assert capsys.readouterr().err.splitlines()[0] == 'step 991/1000  loss 990  01:00 passed, 09:00 left'


def test_a_terminal_has_a_bar(clock, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    train(clock, steps=20, each=0.1)
    shown = sys.stderr.getvalue()
    assert '\r' in shown and '20/20' in shown and 'step 2: accuracy 50 %\n' in shown


@pytest.mark.parametrize('stream', [io.StringIO, Terminal])
def test_other_processes_show_nothing(stream, clock, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', stream())
    train(clock, steps=20, each=20, shown=False)
    assert sys.stderr.getvalue() == ''


def test_a_summary_has_a_line_for_each_thing_there_is(capsys):
    print_summary(dict(model='ceit_tiny', probes='', device='cpu'))
    assert capsys.readouterr().err == 'model   ceit_tiny\ndevice  cpu\n'
