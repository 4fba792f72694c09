"""A preset is nothing but the options and views it stands for, and options go before it."""

from dataclasses import replace

import pytest

from tests.pretrain.train import losses, run
from timm_extra.pretrain import PretrainConfig
from timm_extra.pretrain.presets import PRESETS
from timm_extra.pretrain.views import RandomView

PRESET = PRESETS['small-images']
NORM = dict(mean=(0.5,), std=(0.5,))
HEADS = dict(
    byol=dict(projection_size=8, projection_hidden_size=16),
    simsiam=dict(projection_size=16, prediction_hidden_size=4),
)


def written_out(method, steps=3):
    """The same by options and views; an epoch has 8 steps of 8 images here."""
    decay = dict(decay=PRESET.decay) if method == 'byol' else {}
    view1, view2 = (RandomView(recipe, (1, 16, 16), **NORM) for recipe in PRESET.views)
    return dict(
        opt=PRESET.optimizer, lr=PRESET.learning_rate * 8 / 256, weight_decay=PRESET.weight_decay,
        warmup_epochs=PRESET.warmup * steps / 8, num_train_steps=steps,
        task_args={**PRESET.task_args[method], **decay}, view1=view1, view2=view2,
    )  # fmt: skip


@pytest.mark.parametrize('method', PRESET.task_args)
def test_it_is_what_it_sets(method, tmp_path, capsys):
    run(tmp_path / 'preset', method, preset='small-images', lr=None, task_args=None, num_train_steps=8, **NORM)
    assert f'method  {method}, preset small-images, {PRESET.optimizer}, peak lr 0.00' in capsys.readouterr().err
    run(tmp_path / 'options', method, **written_out(method, 8), **NORM)
    assert losses(tmp_path / 'preset') == losses(tmp_path / 'options')


@pytest.mark.parametrize('method', PRESET.task_args)
def test_options_go_before_it(method, tmp_path):
    more = dict(lr=0.01, weight_decay=0.2, scale=(0.9, 1.0), num_train_steps=3)
    heads = HEADS[method]
    run(tmp_path / 'preset', method, preset='small-images', task_args=heads, **more, **NORM)
    same = written_out(method)
    views = [RandomView(replace(recipe, scale=(0.9, 1.0)), (1, 16, 16), **NORM) for recipe in PRESET.views]
    same.update(lr=0.01, weight_decay=0.2, view1=views[0], view2=views[1])
    same.update(task_args={**same['task_args'], **heads})
    run(tmp_path / 'options', method, **same, **NORM)
    assert losses(tmp_path / 'preset') == losses(tmp_path / 'options')


@pytest.mark.parametrize('name', ['view1', 'view2'])
def test_a_view_of_ones_own_goes_before_it(name, tmp_path):
    """A second view follows a first one of one's own, and leaves the preset's."""
    own = RandomView(replace(PRESET.views[0], hflip=0.0), (1, 16, 16), **NORM)
    run(tmp_path / 'preset', preset='small-images', lr=None, num_train_steps=3, **{name: own}, **NORM)
    first = own if name == 'view1' else RandomView(PRESET.views[0], (1, 16, 16), **NORM)
    same = dict(written_out('byol'), view1=first, view2=own)
    same.update(task_args={**same['task_args'], **HEADS['byol']})
    run(tmp_path / 'options', **same, **NORM)
    assert losses(tmp_path / 'preset') == losses(tmp_path / 'options')


def test_what_it_is_not_for_is_refused(tmp_path):
    for method in ('glom', 'pixpro'):
        refusal = f"^`preset` 'small-images' is for byol, simsiam, got `method` '{method}'$"
        with pytest.raises(ValueError, match=refusal):
            PretrainConfig(method=method, epochs=1, preset='small-images')
    with pytest.raises(ValueError, match=r"^`preset` 'small-images' has no learning rate for 'lars': give `lr`$"):
        run(tmp_path, preset='small-images', lr=None, opt='lars')
    run(tmp_path, num_train_steps=3)
    with pytest.raises(ValueError, match=r'is of another training: .*opt'):
        run(tmp_path, num_train_steps=3, preset='small-images', resume=True)
