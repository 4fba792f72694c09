"""README and docs are a promise: their Python blocks run as written, their figures are what the code counts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.learning import dense, flow, pretraining, segmentation
from benchmarks.results import load
from tests.reference.ceit import OfficialCeiT
from timm_extra.models.info import list_names, model_info

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
RESULTS = ROOT / 'benchmarks' / 'results'
MODELS = (ROOT / 'docs' / 'models.md').read_text()
STATING = [ROOT / 'docs' / f'{name}.md' for name in ('benchmarks', 'flow', 'glom', 'pretraining')]
BLOCKS = [
    pytest.param(block, id=f'{page.stem}-{number}')
    for page in PAGES
    for number, block in enumerate(re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL))
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the file that the README converts: random weights in the authors' layout."""
    folder = tmp_path_factory.mktemp('readme')
    torch.save({'model': OfficialCeiT(384, 6).state_dict()}, folder / 'ceit_small_patch16_224.pth')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('block', BLOCKS)
def test_blocks_run_as_written(block, folder):
    """All but those marked `python notest`, which need the network."""
    done = subprocess.run([sys.executable, '-c', block], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f'{block}\n{done.stderr}'


@pytest.mark.parametrize('name', list_names())
def test_the_model_table_states_what_is_counted(name):
    row = next(line for line in MODELS.splitlines() if line.startswith(f'| `{name}` '))
    info = model_info(name)
    cells = [c.strip() for c in row.split('|')]
    assert cells[2] == f'{info.params:,}'
    assert float(cells[3]) == pytest.approx(info.gmacs, abs=0.005)
    shape = info.input_size[1:] if len(info.input_size) == 3 else info.input_size
    assert cells[4] == '×'.join(map(str, shape))


def test_the_table_of_large_images_is_what_was_measured():
    result = json.loads((RESULTS / 'streaming' / 'amd-epyc-zen-5.json').read_text())
    page = (ROOT / 'docs' / 'perceiver.md').read_text()
    for row in result['rows']:
        seconds, pixels = row['seconds'], row['height'] * row['width']
        shown = f'{seconds:.0f} s' if seconds > 100 else f'{seconds:.1f} s'
        size = f'{row["height"]:,} × {row["width"]:,}'
        assert f'| {size} | {shown} | {1e6 * seconds / pixels:.3f} | {row["peak_mib"]:.0f} MiB |' in page


@pytest.mark.parametrize('page', STATING, ids=lambda page: page.stem)
def test_stated_speeds_are_those_committed(page):
    text = page.read_text()
    assert '<!-- benchmarks: ' in text
    assert text == report.splice(text, load(RESULTS), page.parent)


def test_speeds_in_the_readme_are_those_committed():
    rows = {row['case']: row for row in load(RESULTS)['intel-xeon']['rows'] if row['correct']}
    stated = re.findall(r'(\d+\.\d)×\s+as\s+fast[^(]*\(benchmark\s+`([\w/-]+)`\)', README)
    assert len(stated) == 3
    for speed, name in stated:
        assert f'{rows[name]["ratio"]["median"]:.1f}' == speed, name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_committed_report_is_of_the_committed_results():
    assert (RESULTS / 'README.md').read_text().splitlines() == report.markdown(load(RESULTS))


def test_stated_learning_is_what_was_measured():
    runs = json.loads((RESULTS / 'learning' / 'ceit.json').read_text())['runs']
    page = (ROOT / 'docs' / 'learning.md').read_text().splitlines()

    def mean(curves, epoch, key):
        return sum(c[epoch][key] for c in curves) / len(curves)

    for variant in dict.fromkeys(r['kind'] for r in runs):
        curves = [r['curve'] for r in runs if r['kind'] == variant]
        row = next(line for line in page if re.match(rf'\| {re.escape(variant)}( instead of I2T)? \|', line))
        cells = [c.strip() for c in row.split('|')[2:-1]]
        last = mean(curves, -1, 'top1')
        seeds = ', '.join(f'{c[-1]["top1"]:.1f}' for c in curves)
        assert cells == [
            f'{next(r["params"] for r in runs if r["kind"] == variant):,}',
            f'{mean(curves, 1, "top1"):.1f}',
            f'{last:.1f} ({seeds})',
            f'{mean(curves, -1, "train_seconds"):.0f}',
        ]
        if variant in ('CeiT', 'DeiT'):
            assert f'reaches {last:.1f} %' in ' '.join(README.split())


@pytest.mark.parametrize('name', ['pretraining', 'pretraining-long'])
def test_stated_pretraining_is_what_was_measured(name):
    page = (ROOT / 'docs' / 'pretraining.md').read_text()
    runs = json.loads((RESULTS / 'learning' / f'{name}.json').read_text())['runs']
    assert pretraining.table(runs) in page
    assert f'--steps {runs[-1]["steps"]}' in page


@pytest.mark.parametrize('training', [flow, segmentation], ids=lambda training: training.__name__.split('.')[-1])
def test_stated_results_of_dense_outputs_are_what_was_measured(training):
    name = training.__name__.split('.')[-1]
    result = json.loads((RESULTS / 'learning' / f'{name}.json').read_text())
    page = (ROOT / 'docs' / f'{name}.md').read_text()
    assert training.table(result) in page
    assert f'--minutes {result["minutes"]:.0f}' in page


def test_stated_results_of_dense_features_are_what_was_measured():
    result = json.loads((RESULTS / 'learning' / 'dense.json').read_text())
    page = (ROOT / 'docs' / 'pretraining.md').read_text()
    assert dense.table(result['runs']) in page
    assert f'benchmarks.learning.dense --minutes {result["minutes"]:g}' in page


def test_stated_glom_results_are_what_was_measured():
    page = (ROOT / 'docs' / 'glom.md').read_text().splitlines()
    runs = {r['kind']: r for r in json.loads((RESULTS / 'learning' / 'glom.json').read_text())['runs']}
    classes, noise = runs['classes'], runs['noise']
    top1 = classes['curve'][-1]
    minutes = f'{top1["train_seconds"] / 60:.0f} minutes'
    for text in (' '.join(page), ' '.join(README.split())):
        assert f'{top1["top1"]:.1f} %' in text and minutes in text
    for name, found in (
        ('the noisy image', noise['psnr']['identity']),
        ('the best Gaussian blur', noise['psnr']['blur']['psnr']),
        ('GLOM', noise['psnr']['ours']),
    ):
        row = next(line for line in page if line.startswith(f'| {name}'))
        assert row.split('|')[2].strip() == f'{found:.2f} dB'
    for name, found in (('classes', classes['islands']), ('noise', noise['islands'])):
        for level in range(3):
            cells = [f'{found[when][key][level]:{form}}' for when in ('before', 'after') for key, form in FORMS]
            assert f'| {name} | {level} | {" | ".join(cells)} |' in page


FORMS = (('counts', '.1f'), ('cosines', '.2f'))  # of islands in docs/glom.md


def test_every_link_into_the_repository_leads_somewhere():
    for file in [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]:
        for target in re.findall(r'\]\(([^)#]+)\)', file.read_text()):
            if not target.startswith('http'):
                assert (file.parent / target).exists(), f'{file.name} links to {target}'
