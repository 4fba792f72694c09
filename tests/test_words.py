"""Words of the field: phrases and names that were replaced and must not come back."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what must not come back: what to say
REPLACED = {
    r'\bfilms?\b': 'video',
    r'\bsounds\b': 'audio',
    r'yardstick': 'baseline',
    r'\bsides\b': 'implementations',
    r'\btold\b': 'reported',
    r'\btells? (from|apart)\b': 'distinguish',
    r'\banew\b': 're-initialised, again',
    r'\btoys?\b': 'test model',
    r'\bsummands?\b': 'shift',
    r'least times?\b': 'roofline',
    r'\bis absurd\b': 'exceeds …',
    r'\bask_once\b': 'single_query_attention',
    r'\bof_length_one\b': 'l2_normalize',
    r'\brisen\b': 'patch_input',
    r'\bSelfAttend\b|\bCrossAttend\b': 'SelfAttentionBlock, CrossAttentionBlock',
    r'\bviews?_config\b': 'input_config',
    r'\bhas_hooks\b|\boperators_usable\b': 'may_shortcut',
    r'\bwhoever\b|\bnobody\b': 'name who or what',
    r'what (a|the) model makes of': 'what a model predicts, attends to, …',
    r"Adam's kin": 'Adam and its variants',
}
EXEMPT = ('benchmarks/results/', 'tests/test_words.py')  # generated, and this list


def texts():
    """Every text file that git knows, by name."""
    names = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name.endswith(('.py', '.md', '.toml', '.yml')) and not name.startswith(EXEMPT):
            yield name, (ROOT / name).read_text(encoding='utf-8')


@pytest.mark.parametrize('phrase', REPLACED)
def test_replaced_phrases_do_not_come_back(phrase):
    pattern = re.compile(phrase, re.IGNORECASE if phrase.islower() else 0)
    found = [
        f'{name}:{number}: {line.strip()}'
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line) or pattern.search(line.replace('_', ' '))  # names, too
    ]
    assert not found, f'say {REPLACED[phrase]}:\n' + '\n'.join(found)
