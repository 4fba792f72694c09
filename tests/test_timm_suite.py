"""The runner of timm's own suite; the suite itself is `make timm-suite`, part of `make test`."""

import os
import subprocess
import sys
from pathlib import Path

SUITE = Path(__file__).parent / 'timm_suite'


def test_a_run_that_would_collect_nothing_fails():
    code = """
import pytest, plugin
class Hook:
    def pytest_deselected(self, items): pass
class Config:
    hook = Hook()
class Item:
    class callspec:
        params = {'model_name': 'resnet50'}
with pytest.raises(pytest.UsageError, match='no test'):
    plugin.pytest_collection_modifyitems(None, Config, [Item])
Item.callspec.params = {'model_name': 'ceit_tiny'}
items = [Item]
plugin.pytest_collection_modifyitems(None, Config, items)
assert items == [Item]
import timm
listed = timm.list_models('*')
assert {'ceit_tiny', 'perceiver_io_base'} <= set(listed), listed
ours = 'ceit', 'glom', 'latent_pool', 'perceiver', 'naflex_perceiver'
assert not [n for n in listed if not n.removeprefix('test_').startswith(ours)], listed
"""
    done = subprocess.run(
        [sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(SUITE)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
