"""Every kernel compiles for every target without spills, within its shared memory, and to what is committed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

AOT = Path(__file__).with_name('triton_aot.py')
COMMITTED = Path(__file__).with_name('resources.json')
LIMITS = {'sm_80': 163 * 1024, 'sm_90': 227 * 1024, 'sm_100': 227 * 1024, 'gfx942': 64 * 1024}  # bytes a block may have
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('compile')]  # compiled once


@pytest.fixture(scope='module')
def tables():
    """What is compiled now: resources by kernel, case and dtype for each target."""
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    code = f'import json, triton_aot; print(json.dumps(triton_aot.compile_all({list(LIMITS)})))'
    environment['PYTHONPATH'] = os.pathsep.join([str(AOT.parent), environment.get('PYTHONPATH', '')])
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(1600)
@pytest.mark.parametrize('target', LIMITS)
def test_kernels_fit(target, tables):
    assert tables[target]
    for kernel, found in tables[target].items():
        assert found['spills'] == 0, f'{kernel} spills: {found}'
        assert found['shared'] <= LIMITS[target], f'{kernel} needs more shared memory than there is: {found}'


@pytest.mark.timeout(1600)
@pytest.mark.parametrize('target', LIMITS)
def test_resources_are_those_committed(target, tables):
    committed = json.loads(COMMITTED.read_text())
    if committed['triton'] != triton.__version__:
        pytest.skip(f'resources.json is of triton {committed["triton"]}, this is {triton.__version__}')
    assert tables[target] == committed['targets'][target], 'after a change that is meant: triton_aot.py --write'
