"""A table of what passed, by client and model."""

from collections import Counter
from pathlib import Path

from tests.clients.zoo import MODELS


def pytest_terminal_summary(terminalreporter):
    """Print passed of run tests for every file and model; skipped tests and expected failures do not count."""
    passed, run = Counter(), Counter()
    for outcome in ('passed', 'failed', 'error'):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome == 'passed' and report.when != 'call':
                continue
            file, _, test = report.nodeid.partition('::')
            words = test.partition('[')[2].rstrip(']').split('-')
            for name in set(words) & set(MODELS):
                cell = Path(file).stem.removeprefix('test_'), name
                run[cell] += 1
                passed[cell] += outcome == 'passed'
    files = sorted({file for file, _ in run})
    width = max(map(len, [*files, 'passed of run']))
    rows = [['passed of run', *MODELS]]
    rows += [[file, *(f'{passed[file, name]}/{run[file, name]}' for name in MODELS)] for file in files]
    for first, *cells in rows:
        terminalreporter.write_line(first.ljust(width) + ''.join(cell.rjust(len(MODELS[3]) + 2) for cell in cells))
