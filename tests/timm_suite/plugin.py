"""Pytest plugin that points timm's own tests/test_models.py at this package's models, and at nothing else.

With `TIMM_SUITE_ACCELERATED=1` at one model of some of timm's families instead, each accelerated, with all products
through oneDNN whatever the processor.
"""

import os
import re
import sys

import pytest
import timm
import timm.models
import torch
from timm.models import _registry as registry

import timm_extra
from timm_extra_kernels import explain, linear
from timm_extra_kernels.linear import processors

# tested in tests/models/perceiver/test_modalities.py and test_flow.py
NOT_OF_IMAGES = {'perceiver_audio', 'perceiver_io_flow', 'perceiver_pointcloud'}
LATENT_ONLY = {'perceiver'}  # modules whose intermediates are not on a grid, as the suite's feature tests need them
OURS = {
    n
    for n, f in registry._model_entrypoints.items()
    if f.__module__.split('.')[0] == 'timm_extra' and n not in NOT_OF_IMAGES
}
MODULES = {registry._model_to_module[n] for n in OURS} - LATENT_ONLY
ACCELERATED = {
    *('test_vit', 'swin_tiny_patch4_window7_224', 'test_convnext', 'mixer_s32_224', 'cait_xxs24_224'),
    *('eva02_tiny_patch14_224', 'test_maxvit'),
}
NOT_OF_LAYERS = ('test_model_inference', 'test_prune')  # weights from the network; which blocks there are, in a minute
_list_models, _create_model = timm.list_models, timm.create_model


def create_model(*args, **kwargs):
    """`timm.create_model` with `timm_extra.accelerate`."""
    return timm_extra.accelerate(_create_model(*args, **kwargs))


def _accelerate_everything() -> None:
    everything = processors.Choice('any processor', output=1, input_gradient=1, narrowing=1, widening=1, features=1)
    sys.modules['timm_extra_kernels.linear'].choice = lambda: everything
    timm.create_model = timm.models.create_model = create_model
    assert explain(linear, torch.ones(2, 2), torch.ones(2, 2)).fused


def _is_ours(name) -> bool:
    return str(name).split('.')[0] in OURS


def list_models(filter='', module='', pretrained=False, exclude_filters='', name_matches_cfg=False, include_tags=None):
    """`timm.list_models` of our models only, sorted into the suite's groups.

    The suite knows groups by timm's file and model names: the modules with `forward_intermediates` and the models
    tested by the config test for tokens. All of ours belong to the second; our modules stand in for the first.
    """
    includes, excludes = registry._to_str_list(filter), list(registry._to_str_list(exclude_filters))
    if isinstance(module, list) and 'vision_transformer' in module:  # FEAT_INTER_FILTERS
        module = list(MODULES)
    if {'vit_*', 'cait_*'} <= set(includes):  # NON_STD_FILTERS as what to test
        includes = []
    elif {'vit_*', 'cait_*'} <= set(excludes):  # NON_STD_FILTERS as what to leave out
        return []
    names = _list_models(includes, module, pretrained, excludes, name_matches_cfg, include_tags)
    return [n for n in names if _is_ours(n)]


if os.environ.get('TIMM_SUITE_ACCELERATED') == '1':
    _accelerate_everything()
    OURS = ACCELERATED
else:
    timm.list_models = timm.models.list_models = list_models


def _model_name(item) -> str:
    return str(getattr(getattr(item, 'callspec', None), 'params', {}).get('model_name', ''))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session, config, items):
    """Drop what the suite parametrises over timm's own names, and refuse to pass on nothing."""
    kept = [i for i in items if _is_ours(_model_name(i))]
    if OURS is ACCELERATED:
        kept = [i for i in kept if not i.name.startswith(NOT_OF_LAYERS)]
    config.hook.pytest_deselected(items=[i for i in items if i not in kept])
    items[:] = kept
    if not kept:
        raise pytest.UsageError("no test of timm's suite names a model of timm_extra")


def pytest_terminal_summary(terminalreporter):
    """Say what was tested, by the names of the tests: with `-n` they ran in other processes."""
    passed = [report.nodeid for report in terminalreporter.stats.get('passed', [])]
    names = sorted({name for nodeid in passed for name in re.split(r'[\[\]\-.]', nodeid) if name in OURS})
    terminalreporter.write_line(
        f"timm's own suite: {len(passed)} tests passed on {len(names)} models: {', '.join(names)}"
    )
