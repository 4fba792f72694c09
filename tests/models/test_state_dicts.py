"""Weights that people have saved keep loading: names, shapes and dtypes of every model's tensors are those committed.

`python tests/models/test_state_dicts.py` prints the table for `state_dicts.json`, after a change that is meant.
"""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch

from timm_extra.models.info import list_names

COMMITTED = json.loads(Path(__file__).with_name('state_dicts.json').read_text())


def digest(name: str) -> str:
    """What a state dict looks like, without its values."""
    with torch.device('meta'):
        tensors = timm.create_model(name).state_dict()
    lines = sorted(f'{key} {tuple(value.shape)} {value.dtype}' for key, value in tensors.items())
    return f'{len(lines)} tensors, {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}'


@pytest.mark.parametrize('name', sorted({*COMMITTED, *list_names()}))
def test_saved_weights_keep_their_format(name):
    assert digest(name) == COMMITTED.get(name), f'weights of {name} saved before would not load'


if __name__ == '__main__':
    print(json.dumps({name: digest(name) for name in list_names()}, indent=1))
