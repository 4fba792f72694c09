"""timm's `train.py --pretrained --pretrained-path FILE`: the weights are in the model, without `--pretrained` not."""

import re
from pathlib import Path

import pytest
import timm
import torch

from timm_extra import hub

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
MODELS = {'test_ceit': SMALL, 'test_glom': {}, 'test_perceiver': {}, 'test_perceiver_io': {}, 'test_resnet': {}}


def built_by_train(name, file, pretrained, **kwargs):
    """The model that train.py builds of its options, as its source has it."""
    overlay = dict(file=file, num_classes=-1)  # -1 forces the adaptation of the head
    return timm.create_model(
        name, pretrained=pretrained, in_chans=3, num_classes=5, pretrained_cfg_overlay=overlay, **kwargs
    )


@pytest.mark.parametrize('name', MODELS)
def test_the_documented_call_loads_what_a_pretraining_saved_and_half_of_it_does_not(name, tmp_path):
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **MODELS[name])
    file = str(hub.save(backbone, tmp_path) / 'model.safetensors')
    held = {k: v for k, v in backbone.state_dict().items() if v.ndim > 1 and v.std() > 0}  # norms begin with ones
    for pretrained in (True, False):
        found = built_by_train(name, file, pretrained, **MODELS[name]).state_dict()
        assert [k for k, v in held.items() if torch.equal(found[k], v) != pretrained] == []


def commands(text):
    """Paragraphs, and the lines of blocks with those that continue them."""
    blocks = re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    return [*lines, *re.sub(r'```.*?```', '', text, flags=re.DOTALL).split('\n\n')]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_no_page_gives_a_path_without_pretrained(page):
    for command in commands(page.read_text()):
        if '--pretrained-path' in command:
            assert re.search(r'--pretrained(?!-)', command), command


def test_some_page_says_how_train_takes_a_pretrained_backbone():
    assert any('--pretrained --pretrained-path' in page.read_text() for page in PAGES)
