import json

import pytest
import timm
import torch

from timm_extra.demo import run_demo, write_digits


def test_the_split_is_a_fifth_of_each_class_and_is_written_once(tmp_path):
    root = write_digits(tmp_path / 'digits', seed=3)
    held_out = {f.name for f in root.glob('validation/*/*.png')}
    trained = {f.name for f in root.glob('train/*/*.png')}
    assert len(held_out) == 1000
    assert len(trained) == 4000
    assert not held_out & trained
    assert {len(list(d.iterdir())) for d in root.glob('validation/*')} == {100}
    first = next(root.glob('train/0/*.png'))
    written = first.stat().st_mtime_ns
    write_digits(root, seed=3)
    assert first.stat().st_mtime_ns == written


@pytest.mark.timeout(300)
def test_one_epoch_leaves_a_model_pictures_and_a_log(tmp_path):
    log = run_demo(tmp_path, epochs=1, seed=1)
    assert log == json.loads((tmp_path / 'log.json').read_text())
    assert log['top1'] > 20, 'chance is 10'
    assert all((tmp_path / f).stat().st_size > 5000 for f in ('predictions.png', 'curve.png'))
    model = timm.create_model(f'local-dir:{tmp_path}/model', pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert config['input_size'] == (1, 28, 28)
    assert list(config['mean']) == [0.1307]
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
