"""What input a model takes."""

import argparse
import json
import sys

import pytest
import timm
import torch
from PIL import Image
from timm.models import get_model_input_config

from timm_extra import hub
from timm_extra.cli._arguments import create_model as cli_model
from timm_extra.images import MODES, input_config, preprocessing
from timm_extra.inference import export
from timm_extra.pretrain.tasks import BYOL

TINY = dict(num_latents=8, latent_dim=16, num_blocks=1, block_depth=1, num_heads=2, num_bands=2, num_classes=3)
LEARNED = dict(stem='conv1x1', stem_chs=4, pos_embed='learned', pos_dim=4, pos_proj_dim=4)


def size_of(model):
    return input_config(model)['input_size']


SQUARE, WIDE, SET = 32, (32, 64), (64, 32)
FAMILIES = {
    'ceit': ('test_ceit', {}),
    'ceit of any size': ('test_ceit', dict(dynamic_img_size=True)),
    'glom': ('test_glom', dict(patch_size=4)),
    'glom of any size': ('test_glom', dict(patch_size=4, dynamic_img_size=True)),
    'perceiver': ('test_perceiver', TINY),
    'perceiver on patches': ('test_perceiver', dict(TINY, stem='patches', patch_size=4)),
    'perceiver on a convolution': ('test_perceiver', dict(TINY, stem='conv')),
    'perceiver with learned positions': ('test_perceiver', {**TINY, **LEARNED}),
    'perceiver of any size with learned positions': ('test_perceiver', {**TINY, **LEARNED, 'dynamic_img_size': True}),
    'perceiver io': ('test_perceiver_io', TINY),
}
WAYS = ('a number', 'height and width', 'a list', 'channels', 'channels and size', 'set_input_size')
THEIRS = {
    'vit': ('test_vit', {}, WAYS),
    'vit of one size': ('deit_tiny_patch16_224', dict(depth=1), WAYS),
    'mixer': ('mixer_s32_224', {}, WAYS[:-1]),  # has no set_input_size
    'xcit': ('xcit_nano_12_p16_224', dict(depth=1), WAYS[:-1]),
    'maxvit': ('maxvit_pico_rw_256', dict(depths=(1, 1, 1, 1)), WAYS),  # has no patch_embed
    'convolutions': ('test_resnet', {}, ('channels',)),
}


def asked(name, kwargs, way):
    """A model and the shape of its inputs, whose size was asked for in one of the ways that there are."""
    if way == 'a number':
        return timm.create_model(name, img_size=SQUARE, **kwargs), (3, SQUARE, SQUARE)
    if way == 'height and width':
        return timm.create_model(name, img_size=WIDE, **kwargs), (3, *WIDE)
    if way == 'a list':
        return timm.create_model(name, img_size=list(WIDE), **kwargs), (3, *WIDE)
    if way == 'channels':
        size = timm.get_pretrained_cfg(name).input_size
        return timm.create_model(name, in_chans=1, **kwargs), (1, *size[1:])
    if way == 'channels and size':
        return timm.create_model(name, in_chans=1, img_size=WIDE, **kwargs), (1, *WIDE)
    model = timm.create_model(name, **kwargs)
    model.set_input_size(SET)
    return model, (3, *SET)


def read(model, folder):
    """The shape of an image as everything that needs it reads it."""
    hub.save(model, folder)
    config = json.loads((folder / 'config.json').read_text())
    again = timm.create_model(f'local-dir:{folder}', pretrained=True)
    args = argparse.Namespace(model=f'local-dir:{folder}', pretrained=True, model_kwargs={}, input_size=None)
    rows = (folder / 'README.md').read_text().split('| input | ')[1].split(' |')[0]
    return {
        'input_config': size_of(model),
        'preprocessing': preprocessing(model).config['input_size'],
        'views': BYOL(model).input_size,
        'the saved configuration': tuple(config['pretrained_cfg']['input_size']),
        'the card': tuple(map(int, rows.split('×'))),
        'the reloaded model': size_of(again),
        'the command line': size_of(cli_model(args)),
        "timm's scripts": timm.data.resolve_input_data_config(again)['input_size'],
        'as transformers preprocesses': timm.data.resolve_data_config(config['pretrained_cfg'])['input_size'],
    }


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('family', FAMILIES)
def test_the_size_that_was_asked_for_is_read_everywhere(family, way, tmp_path):
    name, kwargs = FAMILIES[family]
    model, size = asked(name, kwargs, way)
    for reader, found in read(model, tmp_path).items():
        assert found == size, reader
    for found in (model, timm.create_model(f'local-dir:{tmp_path}')):
        config = timm.data.resolve_model_data_config(found)
        assert config['input_size'] == size
        assert len(config['mean']) == len(config['std']) == size[0]
        assert get_model_input_config(found)['input_size'] == size
    model.eval()(torch.randn(2, *size))
    images = timm.data.create_transform(**config)(Image.new(MODES[size[0]], (99, 70)))
    assert images.shape == size


@pytest.mark.parametrize('family, way', [(family, way) for family, (*_, ways) in THEIRS.items() for way in ways])
def test_sizes_of_timms_own_models_are_read_everywhere(family, way, tmp_path):
    name, kwargs, _ = THEIRS[family]
    model, size = asked(name, kwargs, way)
    for reader, found in read(model, tmp_path).items():
        assert found == size, reader


@pytest.mark.parametrize('family', FAMILIES)
def test_the_size_that_was_asked_for_is_that_of_feature_extractors(family):
    name, kwargs = FAMILIES[family]
    model = timm.create_model(name, features_only=True, img_size=WIDE, in_chans=1, out_indices=(0,), **kwargs)
    assert size_of(model) == (1, *WIDE)
    assert timm.data.resolve_model_data_config(model)['input_size'] == (1, *WIDE)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_size_that_was_asked_for_is_exported(family, tmp_path):
    name, kwargs = FAMILIES[family]
    model, size = asked(name, kwargs, 'height and width')
    assert export(model, tmp_path / 'model.pt2', 'torch-export').input_size == size


@pytest.mark.parametrize('as_many', [True, False])
@pytest.mark.parametrize('family', [f for f in FAMILIES if f.startswith(('ceit', 'glom')) or 'learned' in f])
def test_positions_are_resampled_from_what_the_weights_were_trained_at(family, as_many, tmp_path):
    """Also where the grid that they are for, or that the registered model has, has as many in another shape."""
    name, kwargs = FAMILIES[family]
    registered = timm.get_pretrained_cfg(name).input_size[1]
    size, new = ((registered // 2, 2 * registered), registered) if as_many else ((32, 128), 64)
    trained = timm.create_model(name, img_size=size, **kwargs)
    hub.save(trained, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=new)
    for overlay in (dict(state_dict=trained.state_dict()), dict(file=str(tmp_path / 'model.safetensors'))):
        native = timm.create_model(name, img_size=size, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
        torch.testing.assert_close(native.state_dict(), trained.state_dict(), rtol=0, atol=0)
    stated = dict(file=str(tmp_path / 'model.safetensors'), input_size=(3, *size))
    resized = timm.create_model(name, img_size=new, pretrained=True, pretrained_cfg_overlay=stated, **kwargs)
    filtered = checkpoint_filter(native)(trained.state_dict(), native)
    torch.testing.assert_close(dict(filtered), dict(trained.state_dict()), rtol=0, atol=0)
    trained.set_input_size(new)
    torch.testing.assert_close(again.state_dict(), trained.state_dict())
    torch.testing.assert_close(resized.state_dict(), trained.state_dict())


def checkpoint_filter(model):
    return sys.modules[type(model).__module__.rpartition('.')[0]].checkpoint_filter_fn


TOKENS = dict(stem='tokens', pos_embed='learned', in_chans=9, pos_dim=4)


@pytest.mark.parametrize(
    'name, kwargs, size, new, after, as_image',
    [
        ('perceiver_audio', {}, (1, 61440), (12800,), (1, 12800), (1, 1, 12800)),
        ('perceiver_audio', {}, (1, 61440), 12800, (1, 12800), (1, 1, 12800)),
        ('perceiver_audio', dict(img_size=6400), (1, 6400), 12800, (1, 12800), (1, 1, 12800)),
        ('perceiver_audio', dict(img_size=(6400,), in_chans=2), (2, 6400), 12800, (2, 12800), (2, 1, 12800)),
        ('perceiver_pointcloud', {}, (2048, 3), 100, (100, 3), (1, 100, 3)),
        ('test_perceiver', dict(img_size=(8, 16, 24)), (3, 8, 16, 24), (4, 8, 8), (3, 4, 8, 8), (3, 8, 8)),
        ('test_perceiver', dict(LEARNED, img_size=(4, 6, 8)), (3, 4, 6, 8), 4, (3, 4, 4, 4), (3, 4, 4)),
        ('test_perceiver_io', dict(TOKENS, img_size=30), (30, 9), 20, (20, 9), (1, 20, 9)),
        ('test_perceiver_io', dict(TOKENS, img_size=9), (9, 9), 20, (20, 9), (1, 20, 9)),
    ],
)
def test_other_inputs_of_a_perceiver(name, kwargs, size, new, after, as_image, tmp_path):
    model = timm.create_model(name, **{**TINY, **kwargs})
    assert size_of(model) == size
    model.set_input_size(new)
    assert size_of(model) == after
    assert timm.data.resolve_model_data_config(model)['input_size'] == as_image
    assert len(input_config(model)['mean']) == 1 or after[0] == 3
    again = timm.create_model(f'local-dir:{hub.save(model, tmp_path)}', pretrained=True)
    assert size_of(again) == after
    assert timm.data.resolve_model_data_config(again)['input_size'] == as_image
    assert f'| input | {"×".join(map(str, after))} |' in (tmp_path / 'README.md').read_text()
    extractor = timm.create_model(f'local-dir:{tmp_path}', features_only=True, out_indices=(0,))
    assert size_of(extractor) == after
    with pytest.raises(ValueError, match=r'this Perceiver(IO)? takes no images'):
        preprocessing(again)


def test_the_configuration_knows_the_size_where_any_does(tmp_path):
    """A Fourier model is trained at the size of its data, which `img_size` need not say."""
    model = timm.create_model('test_perceiver', in_chans=1, **TINY)
    hub.save(model, tmp_path, data_config=dict(input_size=(1, 28, 28), mean=(0.1,), std=(0.3,)))
    assert size_of(timm.create_model(f'local-dir:{tmp_path}', pretrained=True)) == (1, 28, 28)
    assert size_of(timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=32)) == (1, 32, 32)
    learned = timm.create_model('test_perceiver', img_size=(12, 16), **TINY, **LEARNED)
    assert size_of(learned) == (3, 12, 16)


@pytest.mark.parametrize('name, new, old', [('test_ceit', (80, 320), 160), ('test_glom', (28, 112), 56)])
def test_a_stated_size_of_the_weights_goes_before_the_models_own(name, new, old, tmp_path):
    """Also where it is the registered one, and the model's grid has as many positions."""
    trained = timm.create_model(name)
    file = str(hub.save(trained, tmp_path) / 'model.safetensors')
    overlay = dict(file=file, input_size=(3, old, old))
    found = timm.create_model(name, img_size=new, pretrained=True, pretrained_cfg_overlay=overlay)
    trained.set_input_size(new)
    torch.testing.assert_close(found.state_dict(), trained.state_dict())
