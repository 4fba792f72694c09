import json

import pytest
import timm
import torch

from timm_extra import hub
from timm_extra.models.info import class_labels

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


@pytest.mark.parametrize('wrap', [list, tuple, lambda names: dict(enumerate(names)), lambda names: {'1': names[1]}])
def test_labels_are_a_name_for_every_class_and_stay(wrap, tmp_path):
    names = ['ant', 'bee', 'cat', 'dog', 'eel']
    hub.save(timm.create_model('test_ceit', **SMALL), tmp_path / 'a', model_config=dict(label_names=wrap(names)))
    again = timm.create_model(f'local-dir:{tmp_path / "a"}', pretrained=True)
    hub.save(again, tmp_path / 'b')  # says nothing about labels
    expected = names if len(wrap(names)) == 5 else ['0', 'bee', '2', '3', '4']
    for folder in ('a', 'b'):
        config = json.loads((tmp_path / folder / 'config.json').read_text())
        assert config['label_names'] == expected
        assert class_labels(timm.create_model(f'local-dir:{tmp_path / folder}')) == expected
    again.reset_classifier(3)
    config = json.loads((hub.save(again, tmp_path / 'c') / 'config.json').read_text())
    assert 'label_names' not in config and 'label_names' not in config['pretrained_cfg']


@pytest.mark.parametrize(
    'names, message',
    [
        (['ant', 'bee'], 'label_names has 2 names, the model 5 classes'),
        (list('abcdef'), 'label_names has 6 names, the model 5 classes'),
        ({0: 'ant', 5: 'eel'}, 'label_names names class 5, the model has 5 classes from 0'),
        ({'-1': 'ant'}, 'label_names names class -1, the model has 5 classes from 0'),
    ],
)
@pytest.mark.parametrize('key', ['label_names', 'labels'])
def test_labels_of_other_classes_are_refused(names, message, key, tmp_path):
    with pytest.raises(ValueError, match=f'^{message}$'):
        hub.save(timm.create_model('test_ceit', **SMALL), tmp_path / 'new', model_config={key: names})
    assert not (tmp_path / 'new').exists()


def _one_parameter(model):
    model.blocks[1].leff.fc1.weight = model.blocks[0].leff.fc1.weight


def _a_view(model):
    model.blocks[1].leff.fc1.weight.data = model.blocks[0].leff.fc1.weight.data[:]


def _a_part(model):
    model.blocks[1].leff.fc1.bias.data = model.blocks[0].leff.fc1.weight.data.view(-1)[5 : 5 + 4 * 24]


@pytest.mark.parametrize('tie, what', [(_one_parameter, 'weight'), (_a_view, 'weight'), (_a_part, 'bias')])
def test_tied_weights_are_refused_by_their_names(tie, what, tmp_path):
    model = timm.create_model('test_ceit', **SMALL, mlp_ratio=4.0)
    tie(model)
    names = rf'blocks\.0\.leff\.fc1\.weight and blocks\.1\.leff\.fc1\.{what}'
    with pytest.raises(ValueError, match=f'^{names} are tied, one tensor under two names: give one of them a clone$'):
        hub.save(model, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_parts_of_one_memory_that_do_not_overlap_are_saved(tmp_path):
    """As some optimizers lay out parameters."""
    model = timm.create_model('test_ceit', **SMALL)
    memory = torch.cat([p.detach().flatten() for p in model.parameters()])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.nn.utils.vector_to_parameters(memory, model.parameters())
    hub.save(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).state_dict()
    torch.testing.assert_close(dict(again), before, rtol=0, atol=0)


def test_what_is_no_plain_tensor_is_refused(tmp_path):
    class Quantised(torch.Tensor):
        pass

    model = timm.create_model('test_ceit', **SMALL)
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().as_subclass(Quantised))
    with pytest.raises(
        ValueError,
        match=r'^head\.weight is a Quantised, not a plain tensor: save before quantising, and gather sharded weights$',
    ):
        hub.save(model, tmp_path / 'new')


def test_columns_of_one_tensor_are_not_tied(tmp_path):
    model = timm.create_model('test_ceit', num_classes=5)
    both = torch.randn(5, model.num_features + 1)
    model.head.weight = torch.nn.Parameter(both[:, :-1])
    model.head.bias = torch.nn.Parameter(both[:, -1])
    again = timm.create_model(f'local-dir:{hub.save(model, tmp_path)}', pretrained=True)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    'names, words',
    [('abc', "must be a list of names, or names by number, got 'abc'"), ({'x': '0'}, "got 'x' for a number")],
)
def test_label_names_of_another_kind_are_refused(tmp_path, names, words):
    model = timm.create_model('test_ceit', num_classes=3)
    with pytest.raises(ValueError, match=words):
        hub.save(model, tmp_path / 'm', model_config=dict(label_names=names))
    assert not (tmp_path / 'm').exists()
