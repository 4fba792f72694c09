"""The environment of `make test-kernels`: its versions, and the Python that it is made with."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OWN = {'torch', 'triton'}  # ttsem 0.1.0 runs on these versions alone


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def pins(path):
    """Versions by name."""
    lines = re.findall(r'^([\w.-]+)==(\S+)$', path.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in lines}


def test_it_has_what_the_lock_file_says():
    installed = {normal(found.name): found.version for found in metadata.distributions(path=[site_packages()])}
    del installed['timm-extra']
    assert installed == pins(HERE / 'requirements.txt')


def test_versions_are_those_of_the_other_tests():
    others, ours = pins(HERE.parents[2] / 'constraints.txt'), pins(HERE / 'requirements.txt')
    shared = others.keys() & ours.keys() - OWN
    assert {'pytest', 'hypothesis', 'numpy'} <= shared
    assert {name: ours[name] for name in shared} == {name: others[name] for name in shared}


def site_packages():
    return str(Path(sys.prefix, 'lib', f'python3.{sys.version_info.minor}', 'site-packages'))


@pytest.fixture
def found(tmp_path):
    """What `find_python` prints where the path has these commands, scripts by name."""

    def find(python312='', **commands):
        for name, script in commands.items():
            path = tmp_path / name
            path.write_text(f'#!/bin/sh\n{script}\n')
            path.chmod(0o755)
        environment = dict(PATH=str(tmp_path), PYTHON312=python312)
        return subprocess.run([HERE / 'find_python'], env=environment, capture_output=True, text=True)

    return find


SHIM = 'echo "pyenv: command not found" >&2; exit 127'
THIS = f'exec {sys.executable} "$@"'
OLD = 'exit 1'


def test_a_python_that_does_not_answer_is_passed_over(found):
    assert found(**{'python3.12': SHIM, 'python3': OLD, 'python': THIS}).stdout == 'python\n'


@pytest.mark.parametrize('tool', [dict(pyenv='echo {}'), dict(uv='echo {}/bin/python')])
def test_what_pyenv_and_uv_installed_is_found(found, tool):
    tool = {name: script.format(sys.prefix) for name, script in tool.items()}
    assert found(**{'python3.12': SHIM}, **tool).stdout == f'{sys.prefix}/bin/python\n'


def test_the_python_that_is_named_is_the_one(found):
    assert found(sys.executable, **{'python3.12': SHIM}).stdout == f'{sys.executable}\n'
    assert found(os.devnull, **{'python3.12': THIS}).returncode == 1


def test_without_a_python_the_message_says_what_to_install(found):
    done = found(**{'python3.12': SHIM, 'python3': OLD})
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == (
        'make test-kernels needs Python 3.12 or 3.13 with venv: install one, '
        'or name it: PYTHON312=/path/to/python3.12\n'
    )
