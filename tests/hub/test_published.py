"""Published weights of a model's name: found in the cache, or asked for before anybody waits."""

import time

import pytest
from huggingface_hub import HfApi, constants

from timm_extra import cli, hub

REPO = 'deepmind/vision-perceiver-fourier'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no waiting."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'cache' / f'models--{REPO.replace("/", "--")}'


@pytest.fixture
def unreachable(monkeypatch):
    """No way to the Hub; the requests that were tried."""
    tried = []

    def refuse(self, repo_id, **options):
        tried.append(repo_id)
        raise ConnectionError('Name or service not known')

    monkeypatch.setattr(HfApi, 'model_info', refuse)
    return tried


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_weights_in_the_cache_are_not_missing(file, cache):
    assert hub.missing_weights('perceiver_io_base') == REPO
    commit = 'a' * 40
    (cache / 'snapshots' / commit).mkdir(parents=True)
    (cache / 'refs').mkdir()
    (cache / 'refs' / 'main').write_text(commit)
    assert hub.missing_weights('perceiver_io_base') == REPO
    (cache / 'snapshots' / commit / file).touch()
    assert hub.missing_weights('perceiver_io_base') is None
    assert hub.missing_weights('perceiver_io_flow') == 'deepmind/optical-flow-perceiver'
    assert hub.missing_weights('test_ceit') is None  # which has none


def test_a_hub_out_of_reach_is_said_in_one_line_after_what_is_downloaded(cache, unreachable, capsys):
    (cache.parents[1] / 'a.png').touch()
    command = ['predict', 'a.png', '--model', 'perceiver_io_base', '--device', 'cpu']
    assert cli.main(command) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f'timm-extra: downloading the weights of perceiver_io_base from {REPO} on the Hub'
    said = 'timm-extra: the weights of perceiver_io_base: no connection to the Hub at '
    assert second.startswith(said) and second.endswith('Name or service not known')
    assert set(unreachable) == {REPO}


def test_other_weights_are_not_asked_for(cache, unreachable, capsys):
    overlay = "pretrained_cfg_overlay={'file': 'none.pth'}"
    assert cli.main(['predict', 'a.png', '--model', 'perceiver_io_base', '--model-kwargs', overlay]) == 1
    assert 'downloading' not in capsys.readouterr().err and not unreachable
