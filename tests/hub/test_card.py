"""What cards say is true, their code runs, and what somebody wrote by hand stays."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from timm_extra import cli, hub
from timm_extra.hub.card import is_generated
from timm_extra.pretrain import PretrainConfig, pretrain

CEIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
SMALL = dict(num_latents=4, latent_dim=16, num_blocks=1, block_depth=1, num_heads=2, cross_num_heads=1)
PIXELS = dict(SMALL, num_bands=2)
TOKENS = dict(SMALL, stem='tokens', pos_embed='none', img_size=6, in_chans=5)
# name, arguments, the Hub's task, what the summary says of the input
KINDS = {
    'image': ('test_ceit', dict(CEIT, num_classes=3), 'image-classification', 'images of 3×32×32'),
    'grey': ('test_glom', dict(in_chans=1, num_classes=3), 'image-classification', 'images of 1×56×56'),
    'many channels': ('test_ceit', dict(CEIT, in_chans=5, num_classes=3), 'image-classification', 'images of 5×32×32'),
    "timm's": ('test_vit', dict(num_classes=3), 'image-classification', 'images of 3×160×160'),
    'backbone': ('test_ceit', dict(CEIT, num_classes=0), 'image-feature-extraction', 'no classifier'),
    'unpooled': ('test_ceit', dict(CEIT, num_classes=0, global_pool=''), 'image-feature-extraction', 'no classifier'),
    'audio': ('perceiver_audio', SMALL, 'audio-classification', 'audio of 1×61440'),
    'audio features': ('perceiver_audio', dict(SMALL, num_classes=0), 'feature-extraction', 'no classifier'),
    'points': ('perceiver_pointcloud', SMALL, None, 'point clouds of 2048×3'),
    'video': (
        'test_perceiver',
        dict(PIXELS, img_size=(2, 8, 8), num_classes=4),
        'video-classification',
        'video of 3×2',
    ),
    'tokens': ('test_perceiver', dict(TOKENS, num_classes=4), None, 'tokens of 6×5'),
    'queries': ('test_perceiver_io', dict(PIXELS, num_queries=7, num_classes=4), None, '4 values for each'),
    'pixels': ('test_perceiver_io', dict(PIXELS, query_type='grid', num_classes=4), None, '4 values for each'),
    'flow': ('perceiver_io_flow', dict(SMALL, img_size=(8, 12)), None, 'video of 3×2×8×12'),
    'own queries': ('test_perceiver_io', dict(PIXELS, num_queries=0, num_classes=4), None, '4 values for each'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_the_code_of_every_card_runs_and_its_metadata_fit(kind, tmp_path, monkeypatch):
    name, kwargs, task, said = KINDS[kind]
    model = timm.create_model(name, **kwargs)
    folder = hub.save(model, tmp_path / 'model')
    text = (folder / 'README.md').read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == task and said in text
    if task != 'image-classification':
        assert 'image-classification' not in text and 'ForImageClassification' not in text
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save('photo.jpg')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    for block in blocks:
        here = block.replace('hf-hub:OWNER/NAME', 'local-dir:model').replace('OWNER/NAME', 'model')
        names = {}
        exec(compile(here, kind, 'exec'), names)
        assert isinstance(names['model'], torch.nn.Module) and not names['model'].training
        if 'inference_mode' in block:
            outputs = names.get('logits', names.get('features'))
            assert f'# {tuple(outputs.shape)}' in block
            assert ('logits' in names) == bool(model.num_classes)
    assert ('from transformers' in text) == ('image' in (task or '') and kind != 'unpooled')
    assert ('timm_extra' in text) == (name != 'test_vit')


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A backbone that started from weights with a licence and a tag of their own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('pretrained')
    images = torch.utils.data.TensorDataset(torch.rand(12, 3, 16, 16))
    images = [Image.fromarray((255 * x.permute(1, 2, 0)).byte().numpy()) for (x,) in images]
    model = timm.create_model('test_resnet')  # its configuration is of weights of timm
    options = dict(batch_size=6, workers=0, cpu=True, input_size=(3, 16, 16))
    task_args = dict(projection_size=8, projection_hidden_size=16)
    config = PretrainConfig(method='byol', epochs=1, task_args=task_args, **options)
    pretrain(model, [(image, 0) for image in images], folder, config, base_model='timm/test_resnet.r160_in1k')
    return folder / 'model'


def test_a_pretrained_backbone_says_how_and_inherits_nothing(pretrained):
    text = (pretrained / 'README.md').read_text()
    card = ModelCard(text)
    assert '1 epoch (2 steps) on 12 images, starting from the weights of' in text
    assert card.data.base_model == 'timm/test_resnet.r160_in1k'
    assert card.data.license is None and '## Licence\n\nNot stated.' in text
    assert 'arxiv:2006.07733' in card.data.tags
    cfg = json.loads((pretrained / 'config.json').read_text())['pretrained_cfg']
    assert not {'tag', 'license', 'paper_ids', 'hf_hub_id', 'origin_url'} & set(cfg)
    assert timm.create_model(f'local-dir:{pretrained}', pretrained=True).num_classes == 0


@pytest.mark.parametrize(
    'words, pretrained, expected',
    [
        ('test_resnet', False, None),
        ('test_resnet', True, 'timm/test_resnet.r160_in1k'),
        ('hf-hub:me/model@v1', False, 'me/model'),
        ('local-dir:model', False, 'saved weights of test_resnet'),
    ],
)
def test_the_weights_a_training_starts_from_have_a_name(words, pretrained, expected):
    assert hub.base_model(words, timm.create_model('test_resnet'), pretrained) == expected


def test_a_training_from_random_weights_names_no_base(tmp_path):
    provenance = hub.Provenance('Trained with labels', 1000, 20, 2)
    folder = hub.save(timm.create_model('test_ceit', **CEIT, num_classes=3), tmp_path, provenance=provenance)
    card = ModelCard.load(folder / 'README.md')
    assert 'Trained with labels: 2 epochs (20 steps) on 1,000 images.' in card.text
    assert card.data.base_model is None and 'Incorporating Convolution Designs' in card.text  # of the architecture


def test_the_card_of_a_training_on_audio_speaks_of_audio(tmp_path):
    provenance = hub.Provenance('Trained with labels', 1000, 20, kind='audio files')
    audio = dict(stem='patches', img_size=(640,), patch_size=64, in_chans=1)
    folder = hub.save(timm.create_model('test_perceiver', num_classes=3, **audio), tmp_path, provenance=provenance)
    assert 'Trained with labels: 20 steps on 1,000 audio files.' in (folder / 'README.md').read_text()


def test_a_generated_card_is_renewed_and_a_hand_written_one_kept(tmp_path):
    model = timm.create_model('test_ceit', **CEIT, num_classes=3)
    file = hub.save(model, tmp_path) / 'README.md'
    old = file.read_text()
    assert is_generated(old)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hub.save(model, tmp_path, data_config=dict(mean=(0.1, 0.2, 0.3)))
    assert '0.1' in file.read_text() and is_generated(file.read_text())
    for edited in (old.replace('A timm model', 'My timm model'), '# Mine', '', old + 'More.\n'):
        file.write_text(edited)
        with pytest.warns(UserWarning, match=r'README.md was written or edited by hand and is kept'):
            hub.save(model, tmp_path)
        assert file.read_text() == edited


def other(**kwargs):
    return timm.create_model('test_glom', num_classes=3, **kwargs)


@pytest.mark.parametrize('kind', ['architecture', 'classes', 'names', 'weights', 'transformers'])
def test_another_model_in_the_folder_is_not_replaced_unless_forced(kind, tmp_path):
    model = timm.create_model('test_ceit', **CEIT, num_classes=3)
    hub.save(model, tmp_path, model_config=dict(label_names=['a', 'b', 'c']))
    labels = {}
    if kind == 'architecture':
        model = other()
    elif kind == 'classes':
        model.reset_classifier(4)
    elif kind == 'names':
        labels = dict(label_names=['a', 'b', 'd'])
    elif kind == 'weights':
        (tmp_path / 'config.json').unlink()
    else:
        (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=f'{re.escape(str(tmp_path))} holds .*--force'):
        hub.save(model, tmp_path, model_config=labels)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    hub.save(model, tmp_path, model_config=labels, force=True)
    assert hub.load(tmp_path).num_classes == model.num_classes


def test_a_pretraining_finds_another_model_before_it_trains(tmp_path):
    hub.save(other(), tmp_path / 'model')
    config = PretrainConfig(num_train_steps=1, batch_size=2, workers=0, cpu=True, input_size=(3, 16, 16))
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(FileExistsError, match='holds a test_glom of 3 classes, not a test_resnet of 0 classes'):
        pretrain(timm.create_model('test_resnet'), [(image, 0)] * 4, tmp_path, config)
    assert not (tmp_path / 'log.csv').exists()


def test_the_command_converts_twice_but_not_over_another_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model('test_ceit', num_classes=3).state_dict(), 'ceit.pth')
    torch.save(other().state_dict(), 'glom.pth')
    convert = ['convert', 'ceit.pth', 'model', '--model', 'test_ceit']
    assert cli.main(convert) == 0 and cli.main(convert) == 0
    Path('model/README.md').write_text('# Mine')
    capsys.readouterr()
    assert cli.main(convert) == 0
    assert capsys.readouterr().err == (
        'timm-extra: model/README.md was written or edited by hand and is kept: see that it still fits\n'
    )
    convert = ['convert', 'glom.pth', 'model', '--model', 'test_glom']
    assert cli.main(convert) == 1
    assert capsys.readouterr().err == (
        'timm-extra: model holds a test_ceit of 3 classes, not a test_glom of 3 classes: '
        'choose another folder, or replace it with --force (in Python force=True)\n'
    )
    assert cli.main([*convert, '--force']) == 0
    assert Path('model/README.md').read_text() == '# Mine'
