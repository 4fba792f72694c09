"""Every kernel compiles for every target without spills, within its shared memory, and to what is committed.

Compiled here are so many cases and dtypes as launch every kernel once for each target, others for each; all of them
stand in resources.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

HERE = Path(__file__).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
ENVIRONMENT['PYTHONPATH'] = os.pathsep.join([str(HERE), ENVIRONMENT.get('PYTHONPATH', '')])
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('compile')]  # compiled once


def of_triton(expression):
    """A value from triton_aot, in a process that is not interpreted."""
    code = f'import json; from triton_aot import *; print(json.dumps({expression}))'
    done = subprocess.run([sys.executable, '-c', code], env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def known():
    """What is committed, the targets, and what they have of shared memory."""
    return of_triton('dict(committed=committed(), shared=SHARED)')


@pytest.fixture(scope='module')
def tables():
    """What is compiled now: resources by target, kernel, and case and dtype."""
    return of_triton('compile_all(NAMES, few=True)')


def lines(tables):
    for target, table in tables.items():
        for kernel, found in table.items():
            for key, resources in found.items():
                yield target, kernel, key, resources


@pytest.mark.timeout(1600)
def test_kernels_fit(tables, known):
    assert set(tables) == set(known['shared'])
    for target, kernel, key, found in lines(tables):
        assert found['spills'] == 0, f'{kernel} ({key}) spills on {target}: {found}'
        assert found['shared'] <= known['shared'][target], f'{kernel} ({key}) does not fit on {target}: {found}'


@pytest.mark.timeout(1600)
def test_resources_are_those_committed(tables, known):
    committed = known['committed']
    if committed['triton'] != triton.__version__:
        pytest.skip(f'resources.json is of triton {committed["triton"]}, this is {triton.__version__}')
    for target, kernel, key, found in lines(tables):
        expected = committed['targets'][target][kernel][key]
        assert {**dict.fromkeys(expected, 0), **found} == expected, (
            f'{kernel} ({key}) on {target}: after a change that is meant, triton_aot.py --write'
        )


def test_what_is_committed_fits(known):
    for target, kernel, key, found in lines(known['committed']['targets']):
        assert found['spills'] == 0, f'{kernel} ({key}) spills on {target}: {found}'
        assert found['shared'] <= known['shared'][target], f'{kernel} ({key}) does not fit on {target}: {found}'


@pytest.mark.timeout(1600)
def test_every_kernel_is_compiled_for_every_target(tables, known):
    for target, table in known['committed']['targets'].items():
        assert set(tables[target]) == set(table)
