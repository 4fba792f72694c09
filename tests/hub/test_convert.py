"""Checkpoints of other code become folders that timm loads, and every tensor is accounted for."""

import argparse
import json
import pickle
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from glom_pytorch import Glom
from perceiver_pytorch import Perceiver as OtherPerceiver
from PIL import Image

import timm_extra  # noqa: F401
from tests.reference.ceit import ArticleCeiT, OfficialCeiT, randomize
from tests.reference.perceiver import transformers_classifier
from timm_extra import cli
from timm_extra.hub.convert import convert, load_checkpoint
from timm_extra.models.info import class_labels

SMALL = dict(embed_dim=24, depth=3, num_heads=3)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def saved(folder, content, name='x.pth'):
    torch.save(content, folder / name)
    return folder / name


def assert_converted(report, theirs, x, tolerance=1e-4):
    """The folder gives the other code's logits, and every tensor of the model is counted once."""
    ours = timm.create_model(f'local-dir:{report.folder}', pretrained=True).eval()
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=tolerance)
    counted = [*report.mapped, *report.resized, *report.new]
    assert len(counted) == len(set(counted))
    assert {k for k in ours.state_dict() if not k.endswith('num_batches_tracked')} == {
        k for k in counted if not k.endswith('num_batches_tracked')
    }


def test_official_ceit_of_other_classes(tmp_path):
    plain = randomize(OfficialCeiT(24, 3, 3, num_classes=7))
    file = saved(tmp_path, {'model': plain.state_dict(), 'epoch': 3})
    report = convert(file, tmp_path / 'out', 'ceit_tiny', SMALL)
    assert report.num_classes == 7 and report.dropped == [] and report.new == [] and report.resized == {}
    assert report.mapped['blocks.0.leff.fc1.weight'] == ['blocks.0.leff.conv1.weight']
    assert_converted(report, plain.eval(), torch.randn(2, 3, 224, 224))


def test_another_size_and_grey_images_are_resized(tmp_path):
    plain = randomize(OfficialCeiT(24, 3, 3, num_classes=5))
    file = saved(tmp_path, plain.state_dict())
    report = convert(file, tmp_path / 'out', 'ceit_tiny', dict(img_size=160, in_chans=1, **SMALL))
    assert report.resized == {'pos_embed': ['pos_embed'], 'patch_embed.conv.weight': ['i2t.backbone.conv.weight']}
    model = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval()
    assert model(torch.randn(1, 1, 160, 160)).shape == (1, 5)


def test_article_ceit_says_what_it_lacks(tmp_path):
    plain = randomize(ArticleCeiT(dim=24, heads=3, depth=3))
    kwargs = dict(SMALL, lca_mlp_ratio=16)
    report = convert(saved(tmp_path, plain.state_dict()), tmp_path / 'out', 'ceit_tiny_article', kwargs)
    assert 'blocks.0.attn.qkv.weight' in report.mapped
    assert 'lca.layer_embed' in report.new and 'blocks.0.leff.conv.bias' in report.new
    assert report.dropped == []
    assert_converted(report, plain.eval(), torch.randn(2, 3, 224, 224))


@pytest.mark.parametrize('form', ['model.safetensors', 'pytorch_model.bin'])
def test_transformers_folder(form, tmp_path):
    small = dict(num_latents=8, d_latents=32, num_self_attends_per_block=1, num_blocks=2, num_self_attention_heads=2)
    other = transformers_classifier('perceiver_io_base', num_labels=3, **small)
    source = tmp_path / 'theirs'
    source.mkdir()
    if form.endswith('bin'):
        saved(source, other.state_dict(), form)
    else:
        other.save_pretrained(source)
    ours = dict(num_latents=8, latent_dim=32, num_heads=2, block_depth=1, num_blocks=2, compat='hf')
    report = convert(source, tmp_path / 'out', 'perceiver_io_base', ours)
    assert report.mapped['blocks.0.0.attn.qkv.weight'] == [
        f'perceiver.encoder.self_attends.0.attention.self.{name}.weight' for name in ('key', 'query', 'value')
    ]
    assert report.num_classes == 3 and not report.new
    x = torch.randn(1, 3, 224, 224)
    assert_converted(report, lambda x: other(inputs=x).logits, x)


def test_lucidrains_perceiver_drops_its_repeats(tmp_path):
    sizes = dict(num_latents=8, latent_dim=16, latent_heads=2, cross_dim_head=8, latent_dim_head=8)
    other = OtherPerceiver(
        num_freq_bands=4, max_freq=10.0, depth=3, num_classes=5, weight_tie_layers=True, self_per_cross_attn=1, **sizes
    )
    file = saved(tmp_path, other.state_dict())
    kwargs = dict(num_latents=8, latent_dim=16, num_heads=2, head_dim=8, cross_head_dim=8, num_bands=4, block_depth=1)
    kwargs.update(num_blocks=3, unique_blocks=2, unique_cross_attends=2, max_resolution=10.0)
    kwargs.update(mlp_ratio=4.0, compat='lucidrains')
    report = convert(file, tmp_path / 'out', 'test_perceiver', kwargs)
    assert report.dropped and all(k.startswith('layers.2.') for k in report.dropped)
    assert report.mapped['cross_attends.0.attn.k.weight'] == ['layers.0.cross_attn.fn.to_kv.weight']
    x = torch.randn(2, 3, 24, 24)
    assert_converted(report, lambda x: other.eval()(x.movedim(1, -1)), x)


def test_lucidrains_glom_has_no_classifier(tmp_path):
    other = Glom(dim=16, levels=3, image_size=28, patch_size=7)
    kwargs = dict(embed_dim=16, num_levels=3, img_size=28, patch_size=7, compat='lucidrains', learned_mean=False)
    report = convert(saved(tmp_path, other.state_dict()), tmp_path / 'out', 'test_glom', kwargs)
    assert {'head.weight', 'head.bias'} <= set(report.new)
    assert report.notes == ['glom-pytorch has no classifier: the new one is not trained']
    assert report.mapped['levels.0.top_down.fc1.weight'] == report.mapped['levels.1.top_down.fc1.weight']
    ours = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval()
    x = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_state(x, iters=3), other(x, iters=3), rtol=0, atol=1e-4)


def test_native_files(tmp_path):
    model = timm.create_model('test_ceit', num_classes=4).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'x.safetensors')
    report = convert(tmp_path / 'x.safetensors', tmp_path / 'out', 'test_ceit')
    assert set(report.mapped) == set(model.state_dict()) and report.num_classes == 4
    assert all(sources == [key] for key, sources in report.mapped.items())
    assert_converted(report, model, torch.randn(2, 3, 160, 160), tolerance=1e-6)


def test_another_number_of_classes_reinitialises_the_head(tmp_path):
    model = timm.create_model('test_ceit', num_classes=4)
    report = convert(saved(tmp_path, model.state_dict()), tmp_path / 'out', 'test_ceit', dict(num_classes=9))
    assert report.new == ['head.weight', 'head.bias'] and report.num_classes == 9
    assert report.dropped == ['head.weight', 'head.bias']


def test_models_of_timm_load_from_files(tmp_path):
    model = timm.create_model('test_resnet', num_classes=4).eval()
    loaded, report = load_checkpoint(saved(tmp_path, model.state_dict()), 'test_resnet')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model(x))
    assert report.mapped == {} and report.num_classes == 4


class Trap:
    def __reduce__(self):
        return print, ('executed',)


def test_unsuitable_checkpoints_and_folders_are_refused(tmp_path, capfd):
    def refused(src, match, model='test_ceit', error=ValueError, dst='out'):
        with pytest.raises(error, match=match):
            convert(src, tmp_path / dst, model)
        assert not (tmp_path / 'out').exists()

    native = saved(tmp_path, timm.create_model('test_ceit').state_dict(), 'native.pth')
    refused(tmp_path / 'no.pth', 'no checkpoint at', error=FileNotFoundError)
    (tmp_path / 'empty').mkdir()
    refused(tmp_path / 'empty', 'neither model.safetensors nor', error=FileNotFoundError)
    refused(native, 'not a Perceiver checkpoint', model='test_perceiver')
    refused(native, "timm has no model 'nosuch'", model='nosuch')
    refused(native, "timm's own", model='test_resnet')
    refused(native, 'would be written over', dst='.')
    refused(saved(tmp_path, {'model': {}, 'x': Trap()}, 'trap.pth'), 'never executed')
    (tmp_path / 'deepmind.pystate').write_bytes(pickle.dumps({'params': {'w': np.ones(3)}, 'state': Trap()}))
    refused(tmp_path / 'deepmind.pystate', 'take the same weights from the Hub, model.safetensors', 'test_perceiver')
    (tmp_path / 'renamed.pth').write_bytes((tmp_path / 'deepmind.pystate').read_bytes())
    refused(tmp_path / 'renamed.pth', 'take the same weights from the Hub', 'test_perceiver')
    (tmp_path / 'text.pth').write_text('no checkpoint')
    refused(tmp_path / 'text.pth', 'no checkpoint, or holds Python objects, which are never executed')
    header = json.dumps({'w': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}}).encode()
    (tmp_path / 'huge.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header)
    refused(tmp_path / 'huge.safetensors', 'truncated, or not a checkpoint')
    assert 'executed' not in capfd.readouterr().out


TRAINED = dict(
    model='test_ceit', input_size=(1, 28, 28), mean=[0.13], std=(0.3,), crop_pct=0.9, interpolation='bilinear'
)


def training(folder, args, **kwargs):
    """A checkpoint as timm's train.py writes it, and its model."""
    model = timm.create_model('test_ceit', num_classes=3, img_size=28, patch_size=4, in_chans=1, **kwargs).eval()
    options = dict(TRAINED, num_classes=3, img_size=None, gp=None, model_kwargs=dict(img_size=28, patch_size=4), **args)
    content = dict(epoch=4, arch='test_ceit', state_dict=model.state_dict(), args=argparse.Namespace(**options))
    return saved(folder, content, 'model_best.pth.tar'), model


def images(folder):
    for name in ('ape', 'bee', 'cat'):
        (folder / 'train' / name).mkdir(parents=True)
        Image.new('L', (28, 28)).save(folder / 'train' / name / '0.png')
    return folder


def test_what_train_py_was_called_with_is_kept(tmp_path):
    file, model = training(tmp_path, dict(data_dir=str(images(tmp_path / 'data')), class_map=''), global_pool='avg')
    checkpoint = torch.load(file, weights_only=False)
    checkpoint['args'].gp = 'avg'
    torch.save(checkpoint, file)
    report = convert(file, tmp_path / 'out', 'test_ceit')
    again = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval()
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(again(x), model(x))
    found = timm.data.resolve_model_data_config(again)
    assert found['input_size'] == (1, 28, 28) and found['mean'] == (0.13,) and found['std'] == (0.3,)
    assert found['crop_pct'] == 0.9 and found['interpolation'] == 'bilinear'
    assert class_labels(again) == ['ape', 'bee', 'cat'] == report.config['label_names']
    loaded, _ = load_checkpoint(file, 'test_ceit')
    assert timm.data.resolve_model_data_config(loaded) == found and class_labels(loaded) == ['ape', 'bee', 'cat']


def test_what_is_given_goes_before_the_checkpoint(tmp_path):
    file, _ = training(tmp_path, dict(data_dir=str(images(tmp_path / 'data')), class_map=''))
    (tmp_path / 'map.txt').write_text('x\ny\nz\n')
    given = dict(mean=(0.5,), crop_pct=1.0)
    convert(file, tmp_path / 'out', 'test_ceit', data_config=given, labels=tmp_path / 'map.txt')
    again = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True)
    found = timm.data.resolve_model_data_config(again)
    assert (found['mean'], found['std'], found['crop_pct']) == ((0.5,), (0.3,), 1.0)
    assert class_labels(again) == ['x', 'y', 'z']
    command = ['convert', str(file), str(tmp_path / 'by-command'), '--model', 'test_ceit', '--mean', '0.5']
    assert cli.main([*command, '--crop-pct', '1', '--labels', str(tmp_path / 'map.txt')]) == 0
    config = json.loads((tmp_path / 'by-command' / 'config.json').read_text())
    assert config == json.loads((tmp_path / 'out' / 'config.json').read_text())


def test_names_come_from_a_class_map_where_there_is_one(tmp_path):
    (tmp_path / 'map.txt').write_text('x\ny\nz\n')
    places = dict(data_dir=str(images(tmp_path / 'data')), class_map=str(tmp_path / 'map.txt'))
    file, _ = training(tmp_path, places)
    assert load_checkpoint(file, 'test_ceit')[1].config['label_names'] == ['x', 'y', 'z']
    (tmp_path / 'map.txt').write_text('of\nother\nclasses\nnow\n')
    assert load_checkpoint(file, 'test_ceit')[1].config['label_names'] == ['ape', 'bee', 'cat']
    shutil.rmtree(tmp_path / 'data')
    assert 'label_names' not in load_checkpoint(file, 'test_ceit')[1].config


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(data_config=dict(mean=(0.1, 0.2))), 'do not go together: .*mean'),
        (dict(data_config=dict(input_size=(3, 28, 28))), 'the model takes 1 channels, its images have 3'),
        (dict(labels='four.txt'), 'label_names names class 3, the model has 3 classes'),
        (dict(labels='names.json'), 'labels are read from .txt or .pkl or a folder'),
        (dict(labels='nope.txt'), "no class map or folder at 'nope.txt'"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(tmp_path, options, words, monkeypatch):
    file, _ = training(tmp_path, {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'four.txt').write_text('a\nb\nc\nd\n')
    (tmp_path / 'names.json').write_text('[]')
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        convert(file, tmp_path / 'out', 'test_ceit', **options)
    assert not (tmp_path / 'out').exists()
