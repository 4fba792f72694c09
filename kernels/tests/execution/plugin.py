"""Pytest plugin of `make test-kernels`: tests launch kernels on a GPU that is not there, and every launch is checked.

ttsem compiles a launch as Triton does for sm_90 and executes its TTIR on a CPU. The test that launched it fails where
it accesses memory that it was not given, or where one program writes what another one reads or writes; the message
names the kernel and the line. Memory is NaN until it is written. Launches with too many accesses for ttsem to look for
races are counted and named at the end.
"""

import contextlib
import functools
from collections import Counter

import pytest
from ttsem import harness, mlir, sanitize
from xdist import is_xdist_controller

EXECUTION = pytest.StashKey()
KEPT = 64  # parsed modules, for launches that are alike
HERE = 'execution'
LEFT_OUT = {'test_dispatch.py'}  # what becomes of a call whose kernel fails


class Execution:
    """Executes launches and counts them.

    Attributes:
        executed: How many there were.
        unchecked: How many of them were not checked for races, by the kernel's name.
    """

    def __init__(self):
        self.executed, self.unchecked = 0, Counter()
        self._kernel, self._modules = '', {}
        self._undo = contextlib.ExitStack()

    def begin(self):
        """From here on, launches of this process are executed."""
        mlir.enable_generic_printing()
        patch = self._undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(harness, 'ir_for_launch', self._ir_for_launch)
        patch.setattr(mlir, 'parse', functools.lru_cache(KEPT)(mlir.parse))
        self._undo.enter_context(sanitize.session(on_launch=self._count, on_unchecked=self._count_unchecked))

    def end(self):
        """Undo `begin`."""
        self._undo.close()

    def __str__(self):
        unchecked = self.unchecked.total()
        text = f'launches: {self.executed} executed, {self.executed - unchecked} checked for races'
        if not unchecked:
            return text
        names = ', '.join(f'{name} ({count})' for name, count in self.unchecked.most_common())
        return f'{text}, {unchecked} not (too many accesses): {names}'

    def _count(self, launches):
        self.executed = launches

    def _count_unchecked(self):
        self.unchecked[self._kernel] += 1

    def _ir_for_launch(self, record, stage, target):
        """The function of this name in ttsem, but once for launches that are alike, and without compiling further."""
        self._kernel = record.fn_name
        key = record.fn, stage, *map(repr, harness._specialize(record.fn, record.args, record.kwargs, target))
        if key not in self._modules:
            self._modules[key] = harness._stage_text(record, stage, target)
        return self._modules[key]


def pytest_configure(config):
    config.stash[EXECUTION] = Execution()


def pytest_sessionstart(session):
    if not is_xdist_controller(session):
        session.config.stash[EXECUTION].begin()


def pytest_collection_modifyitems(config, items):
    """Of the tests of operations, those whose calls are sent to the kernels, and the tests of this folder."""
    chosen = [
        item
        for item in items
        if item.path.parent.name == HERE or ('forced' in item.fixturenames and item.path.name not in LEFT_OUT)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_sessionfinish(session):
    execution = session.config.stash[EXECUTION]
    if not is_xdist_controller(session):
        execution.end()
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['launches'] = execution.executed, dict(execution.unchecked)


def pytest_testnodedown(node, error):
    if error is None:
        executed, unchecked = node.workeroutput['launches']
        execution = node.config.stash[EXECUTION]
        execution.executed += executed
        execution.unchecked.update(unchecked)


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(str(config.stash[EXECUTION]))
