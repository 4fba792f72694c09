"""The package carries its types (`py.typed`): calls as users write them pass a type checker, wrong ones do not."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
USAGE = ROOT / 'tests' / 'typing' / 'usage.py'


def mypy(file, cache):
    command = [
        sys.executable,
        '-m',
        'mypy',
        '--follow-imports=silent',
        '--ignore-missing-imports',
        '--cache-dir',
        cache,
    ]
    return subprocess.run([*command, file], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('mypy')


@pytest.mark.xdist_group('typing')  # the second run reads the cache of the first
def test_public_functions_have_the_types_that_users_expect(cache):
    done = mypy(USAGE, cache)
    assert done.returncode == 0, done.stdout


@pytest.mark.xdist_group('typing')
def test_a_wrong_type_is_found(cache, tmp_path):
    wrong = tmp_path / 'wrong.py'
    wrong.write_text("from timm_extra import hub\n\nfolder: int = hub.save('not a model', 'folder')\n")
    done = mypy(wrong, cache)
    assert done.returncode == 1
    assert 'Incompatible types in assignment' in done.stdout and '"save" has incompatible type "str"' in done.stdout
