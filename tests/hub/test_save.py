import json

import pytest
import timm
import torch

from timm_extra import hub

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5)


def files(folder):
    return sorted(f.name for f in folder.iterdir())


@pytest.mark.parametrize(
    'name, kwargs, size',
    [
        ('test_ceit', dict(SMALL, in_chans=1), (1, 32, 32)),
        ('test_ceit', dict(SMALL, use_lca=False, conv_stem=False), (3, 32, 32)),
        ('test_ceit', dict(SMALL, num_classes=0), (3, 32, 32)),
        ('test_vit', dict(num_classes=4), (3, 160, 160)),
    ],
)
def test_reloaded_logits_are_equal(name, kwargs, size, tmp_path):
    model = timm.create_model(name, **kwargs).eval()
    folder = hub.save(model, tmp_path / 'model')
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.randn(2, *size)
    assert torch.equal(again(x), model(x))
    assert files(folder) == ['README.md', 'config.json', 'model.safetensors']


def test_an_adapted_model_comes_back_adapted(tmp_path):
    model = timm.create_model('test_ceit', **SMALL)
    model.reset_classifier(3, 'avg')
    model.set_input_size((48, 24))
    again = timm.create_model(f'local-dir:{hub.save(model, tmp_path)}', pretrained=True)
    x = torch.randn(2, 3, 48, 24)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again(x).shape == (2, 3)


def test_frozen_batchnorms_are_saved(tmp_path):
    model = timm.create_model('test_ceit', **SMALL)
    model(torch.randn(4, 3, 32, 32))
    timm.utils.model.freeze_batch_norm_2d(model.blocks)
    again = timm.create_model(f'local-dir:{hub.save(model, tmp_path)}', pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(x), model.eval()(x))


def test_the_article_keeps_its_norm_where_it_was(tmp_path):
    model = timm.create_model('ceit_tiny_article', depth=1)
    model.reset_classifier(5, 'avg')
    again = timm.create_model(f'local-dir:{hub.save(model, tmp_path)}', pretrained=True).eval()
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(again(x), model.eval()(x))


def test_the_plugin_is_named_where_it_is_needed(tmp_path):
    ours = hub.save(timm.create_model('test_ceit', **SMALL), tmp_path / 'ours', data_config=dict(mean=(0.1, 0.2, 0.3)))
    config = json.loads((ours / 'config.json').read_text())
    assert config['timm_plugin'] == 'timm_extra'
    assert config['pretrained_cfg']['mean'] == [0.1, 0.2, 0.3]
    assert 'import timm_extra' in (ours / 'README.md').read_text()
    theirs = hub.save(timm.create_model('test_vit'), tmp_path / 'theirs')
    assert 'timm_plugin' not in json.loads((theirs / 'config.json').read_text())
    assert 'timm_extra' not in (theirs / 'README.md').read_text()


def test_a_card_that_is_there_is_kept(tmp_path):
    (tmp_path / 'README.md').write_text('mine')
    hub.save(timm.create_model('test_ceit', **SMALL), tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'mine'


def test_channels_last_and_compiled_models_are_saved(tmp_path):
    model = timm.create_model('test_ceit', **SMALL).to(memory_format=torch.channels_last)
    again = timm.create_model(f'local-dir:{hub.save(torch.compile(model), tmp_path)}', pretrained=True)
    assert torch.equal(again.patch_embed.conv.weight, model.patch_embed.conv.weight)


def test_what_would_not_load_is_refused_and_nothing_is_overwritten(tmp_path):
    model = timm.create_model('test_ceit', **SMALL).eval()
    hub.save(model, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r'bn1.*fused'):
        hub.save(model.fuse(), tmp_path)
    with pytest.raises(ValueError, match='not a model made by timm'):
        hub.save(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match='feature extractor'):
        hub.save(timm.create_model('test_ceit', features_only=True, out_indices=(1,), **SMALL), tmp_path)
    with torch.device('meta'), pytest.raises(ValueError, match='meta device'):
        hub.save(timm.create_model('test_ceit', **SMALL), tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match='fused'):
        hub.save(model, tmp_path / 'new' / 'folder')
    assert not (tmp_path / 'new').exists()
