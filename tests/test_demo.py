import json

import pytest
import timm
import torch

from timm_extra.demo import Permute, run_demo, write_digits

pytestmark = pytest.mark.slow


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


@pytest.mark.timeout(300)
def test_a_perceiver_on_pixels_in_one_random_order(tmp_path):
    log = run_demo(tmp_path, model='perceiver-permuted', epochs=1)
    assert log['model'] == 'test_perceiver'
    assert log['model_args']['pos_embed'] == 'learned'
    assert all((tmp_path / f).stat().st_size > 5000 for f in ('predictions.png', 'curve.png', 'latents.png'))
    assert timm.create_model(f'local-dir:{tmp_path}/model', pretrained=True)(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_the_random_order_is_the_same_for_all_and_can_be_undone():
    images = torch.randn(3, 1, 28, 28)
    permute = Permute(seed=4)
    moved = permute(images)
    assert not torch.equal(moved, images)
    assert torch.equal(moved.flatten().sort().values, images.flatten().sort().values)
    assert torch.equal(permute.undo(moved), images)
    assert torch.equal(Permute(seed=4)(images[0]), moved[0])


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(ValueError, match="model must be one of ceit, perceiver, perceiver-permuted, got 'vit'"):
        run_demo(tmp_path / 'new', model='vit')
    assert not (tmp_path / 'new').exists()
