"""What input a model takes."""

import pytest
import timm

import timm_extra  # noqa: F401
from timm_extra import hub
from timm_extra.images import input_config, preprocessing

TINY = dict(num_latents=8, latent_dim=16, num_blocks=1, block_depth=1, num_heads=2, num_bands=2, num_classes=3)
LEARNED = dict(stem='conv1x1', stem_chs=4, pos_embed='learned', pos_dim=4, pos_proj_dim=4)


def size_of(model):
    return input_config(model)['input_size']


@pytest.mark.parametrize('kwargs', [{}, LEARNED, dict(stem='patches', patch_size=4), dict(stem='conv')])
@pytest.mark.parametrize('img_size, size', [(32, (3, 32, 32)), ((32, 48), (3, 32, 48))])
def test_images_of_a_perceiver(kwargs, img_size, size):
    model = timm.create_model('test_perceiver', img_size=img_size, **TINY, **kwargs)
    assert size_of(model) == size
    assert preprocessing(model).config['input_size'] == size
    model.set_input_size(40)
    assert size_of(model) == (3, 40, 40)
    assert size_of(timm.create_model('test_perceiver', in_chans=1, **TINY)) == (1, 224, 224)


@pytest.mark.parametrize(
    'name, kwargs, size, new, after',
    [
        ('perceiver_audio', {}, (1, 61440), (12800,), (1, 12800)),
        ('perceiver_audio', {}, (1, 61440), 12800, (1, 12800)),
        ('perceiver_pointcloud', {}, (2048, 3), 100, (100, 3)),
        ('test_perceiver', dict(img_size=(8, 16, 24)), (3, 8, 16, 24), (4, 8, 8), (3, 4, 8, 8)),
        ('test_perceiver', dict(LEARNED, img_size=(4, 6, 8)), (3, 4, 6, 8), 4, (3, 4, 4, 4)),
        (
            'test_perceiver_io',
            dict(stem='tokens', pos_embed='learned', in_chans=9, img_size=30, pos_dim=4),
            (30, 9),
            20,
            (20, 9),
        ),
    ],
)
def test_other_inputs_of_a_perceiver(name, kwargs, size, new, after, tmp_path):
    model = timm.create_model(name, **{**TINY, **kwargs})
    assert size_of(model) == size
    model.set_input_size(new)
    assert size_of(model) == after
    assert len(input_config(model)['mean']) == 1 or after[0] == 3
    again = timm.create_model(f'local-dir:{hub.save(model, tmp_path)}', pretrained=True)
    assert size_of(again) == after
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
