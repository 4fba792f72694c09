"""Every kernel compiles for every target without spills, within its shared memory, and to what is committed.

Compiled here are so many cases and dtypes as launch every kernel once for each target, others for each; they stand in
resources.json.
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
    """What is committed: the version of Triton, and tables by target."""
    return of_triton('committed()')


@pytest.fixture(scope='module')
def compiled():
    """What is compiled now: resources by target, kernel, and case and dtype; and what is wrong with them."""
    return of_triton('(lambda tables: [tables, faults(tables)])(compile_all(NAMES, few=True))')


@pytest.mark.timeout(1600)
def test_kernels_fit(compiled):
    tables, faults = compiled
    assert tables and not faults, '\n'.join(faults)


@pytest.mark.timeout(1600)
def test_resources_are_those_committed(compiled, known):
    if known['triton'] != triton.__version__:
        pytest.skip(f'resources.json is of triton {known["triton"]}, this is {triton.__version__}')
    for target, table in compiled[0].items():
        assert set(table) == set(known['targets'][target]), f'kernels of {target}'
        for kernel, lines in table.items():
            for key, found in lines.items():
                expected = known['targets'][target][kernel][key]
                assert {**dict.fromkeys(expected, 0), **found} == expected, (
                    f'{kernel} ({key}) on {target}: after a change that is meant, triton_aot.py --write'
                )


def test_what_is_committed_fits():
    faults = of_triton("faults(committed()['targets'])")
    assert not faults, '\n'.join(faults)
