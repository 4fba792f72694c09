"""Run timm's own tests/test_models.py, of the installed timm version, on this package's models.

The tests are not in timm's wheel: they are taken from its source distribution, once, into build/.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import timm

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / 'build'


def timm_tests() -> Path:
    """Folder with the tests and the pytest settings of the installed timm."""
    name = f'timm-{timm.__version__}'
    target = BUILD / name
    if target.exists():
        return target
    download, unpacked = BUILD / 'download', BUILD / 'unpacked'
    for folder in (download, unpacked):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', 'timm', '-d', download,
         f'timm=={timm.__version__}'],
        check=True,
    )  # fmt: skip
    with tarfile.open(download / f'{name}.tar.gz') as archive:
        archive.extractall(unpacked, filter='data')
    shutil.rmtree(unpacked / name / 'timm')  # the installed timm is the one to test
    (unpacked / name).rename(target)
    return target


def main() -> int:
    environment = dict(
        os.environ,
        HF_HUB_OFFLINE='1',
        TRITON_INTERPRET='1',  # none of these tests needs a GPU
        GITHUB_ACTIONS='1',  # leaves out the test that downloads weights
        PYTHONPATH=os.pathsep.join([str(HERE), os.environ.get('PYTHONPATH', '')]),
    )
    command = [sys.executable, '-m', 'pytest', '-p', 'plugin', '-p', 'no:cacheprovider', '-q', 'tests/test_models.py']
    return subprocess.run([*command, *sys.argv[1:]], cwd=timm_tests(), env=environment).returncode


if __name__ == '__main__':
    sys.exit(main())
