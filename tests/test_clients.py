"""The suite of other people's tools, tests/clients: its lock file, and that the other suites leave it alone."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(path):
    """Versions by name of a file in which every line pins one exactly."""
    lines = [line.split('#')[0].split(';')[0].strip() for line in (ROOT / path).read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        match = re.fullmatch(r'([\w.-]+)==([\w.]+)', line)
        assert match, f'{path} pins no exact version in {line!r}'
        found[re.sub(r'[-_.]+', '-', match[1]).lower()] = match[2]
    return found


def test_versions_are_those_of_the_other_tests():
    others, clients = pins('constraints.txt'), pins('tests/clients/requirements.txt')
    shared = others.keys() & clients.keys()
    assert {'torch', 'timm', 'transformers', 'onnxruntime'} <= shared
    assert {name: clients[name] for name in shared} == {name: others[name] for name in shared}


def test_every_client_of_the_docs_has_the_version_of_the_lock_file():
    page = (ROOT / 'docs' / 'clients.md').read_text()
    clients = pins('tests/clients/requirements.txt')
    stated = re.findall(r'^\| \[?([\w-]+)\]?[^|]* \| (\d[\w.]*) \|', page, re.MULTILINE)
    assert len(stated) >= 12
    for name, version in stated:
        assert clients[re.sub(r'[-_.]+', '-', name).lower()] == version, name


def test_the_other_suites_collect_none_of_its_tests():
    others = [
        f'--ignore={path}' for path in (ROOT / 'tests').iterdir() if path.name not in ('clients', Path(__file__).name)
    ]
    command = [sys.executable, '-m', 'pytest', '--collect-only', '-q', 'tests', *others, '-p', 'no:cacheprovider']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'tests/test_clients.py' in done.stdout
    assert 'tests/clients/' not in done.stdout + done.stderr
