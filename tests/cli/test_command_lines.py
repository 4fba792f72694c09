"""The command lines that README, docs and `--help` show: all are understood, those of the README run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.reference.ceit import OfficialCeiT
from timm_extra import cli, hub, inference

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def lines(text):
    """Arguments of every `timm-extra` in the shell blocks of a page."""
    for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL):
        for line in block.replace('\\\n', ' ').splitlines():
            if line.startswith('timm-extra '):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_pages(page):
    for argv in lines(page.read_text()):
        assert cli.build_parser().parse_args(argv).verb.name == argv[0]


@pytest.mark.parametrize('verb', cli.VERBS.values(), ids=list(cli.VERBS))
def test_examples(verb):
    for line in verb.examples.splitlines():
        argv = shlex.split(line)
        argv = argv[argv.index('timm_extra' if 'timm_extra' in argv else 'timm-extra') + 1 :]
        assert cli.build_parser().parse_args(argv).verb is verb


def test_every_verb_is_in_the_docs():
    page = (ROOT / 'docs' / 'command-line.md').read_text()
    assert set(cli.VERBS) == {argv[0] for argv in lines(page)} | {'pretrain', 'probe'}
    for verb in cli.VERBS:
        assert f'`{verb}`' in page


def test_the_block_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On random weights in the authors' layout; without the Hub, and without the export, which has tests of its own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({'model': OfficialCeiT(384, 6).state_dict()}, 'ceit_small_patch16_224.pth')
    Path('photos').mkdir()
    for name in ('photo.jpg', 'photos/a.png', 'photos/b.png'):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(name)
    calls = []
    monkeypatch.setattr(hub, 'push', lambda *args, **kwargs: calls.append(args) or 'https://localhost/commit')
    monkeypatch.setattr(hub, 'pull', lambda *args, **kwargs: calls.append(args) or args[1])
    done = inference.Export('ceit_small.onnx', 'onnx', (3, 224, 224), ((3, 224, 224),), 1e-6, 1e-4, (1, 3), 97.0, False)
    monkeypatch.setattr(inference, 'export', lambda *args, **kwargs: calls.append(args[1:]) or done)
    readme = (ROOT / 'README.md').read_text()
    section = readme[readme.index('## Command line') : readme.index('## Which model')]
    for argv in lines(section):
        assert cli.main(argv) == 0, argv
    assert calls == [
        ('ceit_small.onnx', 'onnx'),
        ('converted', 'OWNER/ceit_small'),
        ('OWNER/ceit_small', 'pulled'),
    ]
    out = capsys.readouterr().out
    assert 'photos/a.png' in out and 'layer-wise class-token attention' in out and 'fourier_cross_attention: ' in out
    assert Path('attention.png').is_file()
