"""The README is a promise: its Python blocks run as written, its figures are what the code counts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers.ceit import OfficialCeiT
from timm_extra.info import list_names, model_info

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_nothing_is_left_to_fill_in():
    assert '@@' not in README


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the file that the README converts: random weights in the authors' layout."""
    folder = tmp_path_factory.mktemp('readme')
    torch.save({'model': OfficialCeiT(384, 6).state_dict()}, folder / 'ceit_small_patch16_224.pth')
    return folder


@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_blocks_run_as_written(number, folder):
    done = subprocess.run([sys.executable, '-c', BLOCKS[number]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f'{BLOCKS[number]}\n{done.stderr}'


@pytest.mark.parametrize('name', list_names())
def test_the_model_table_states_what_is_counted(name):
    row = next(line for line in README.splitlines() if line.startswith(f'| `{name}` '))
    info = model_info(name)
    cells = [c.strip() for c in row.split('|')]
    assert cells[2] == f'{info.params:,}'
    assert float(cells[3]) == pytest.approx(info.gmacs, abs=0.005)
    assert cells[4] == '×'.join(map(str, info.input_size[1:]))


def test_stated_results_are_those_committed():
    results = ROOT / 'benchmarks' / 'results'
    rows = json.loads((results / 'ceit-cpu.json').read_text())['rows']
    for row in rows:
        assert row['correct']
        assert f'{row["speedup"]["median"]:.2f}×' in README
    runs = json.loads((results / 'learning-fashion-mnist.json').read_text())['runs']
    for variant in ('CeiT', 'DeiT'):
        last = [r['curve'][-1]['top1'] for r in runs if r['variant'] == variant]
        assert f'{sum(last) / len(last):.1f} %' in README


def test_every_link_into_the_repository_leads_somewhere():
    for file in [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]:
        for target in re.findall(r'\]\(([^)#]+)\)', file.read_text()):
            if not target.startswith('http'):
                assert (file.parent / target).exists(), f'{file.name} links to {target}'
