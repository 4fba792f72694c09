"""A saved folder in transformers, whose wrapper of timm's models reads the same files."""

import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, TimmBackbone, pipeline

from timm_extra import hub
from timm_extra.images import input_config
from timm_extra.inference import predict

LABELS = ['ant', 'bee', 'cat', 'dog', 'eel']
TINY = dict(num_latents=8, latent_dim=16, num_blocks=2, block_depth=1, num_heads=2, num_bands=2)
LEARNED = dict(TINY, stem='conv1x1', stem_chs=4, pos_embed='learned', pos_dim=4, pos_proj_dim=4)
IMAGES = [
    ('test_vit', {}),
    ('test_vit', dict(img_size=96)),
    ('test_ceit', {}),
    ('test_ceit', dict(img_size=(64, 32), global_pool='avg')),
    ('test_glom', {}),
    ('test_glom', dict(img_size=28, local_consensus_radius=1)),
    ('test_perceiver', TINY),
    ('test_perceiver', dict(TINY, img_size=(32, 48))),
    ('test_perceiver', dict(LEARNED, img_size=24)),
    ('test_perceiver_io', dict(TINY, img_size=32)),
]
OTHERS = [
    ('test_vit', dict(in_chans=1)),
    ('test_ceit', dict(in_chans=1)),
    ('test_glom', dict(in_chans=4)),
    ('test_perceiver', dict(TINY, in_chans=1, img_size=32)),
    ('perceiver_audio', dict(TINY, img_size=1280)),
    ('perceiver_pointcloud', TINY),
    ('test_perceiver', dict(TINY, img_size=(2, 8, 8))),
]


def trained(name, num_classes=5, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **kwargs).eval()
    with torch.no_grad():
        for p in model.parameters():  # some begin at zero
            p.add_(torch.randn_like(p), alpha=0.05)
    return model


@pytest.mark.parametrize('name, kwargs', IMAGES + OTHERS)
def test_logits_features_and_labels_are_the_models(name, kwargs, tmp_path):
    model = trained(name, **kwargs)
    hub.save(model, tmp_path, model_config=dict(label_names=LABELS))
    x = torch.randn(2, *input_config(model)['input_size'])

    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(x).logits, model(x))
    assert theirs.config.id2label == dict(enumerate(LABELS))

    found = AutoModel.from_pretrained(tmp_path).eval()(x)
    features = model.forward_features(x)
    torch.testing.assert_close(found.last_hidden_state, features)
    torch.testing.assert_close(found.pooler_output, model.forward_head(features, pre_logits=True))
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), model(x))


@pytest.mark.parametrize('name, kwargs', IMAGES)
def test_the_pipeline_predicts_what_predict_does(name, kwargs, tmp_path):
    model = trained(name, **kwargs)
    hub.save(model, tmp_path / 'model', model_config=dict(label_names=LABELS), data_config=dict(mean=(0.4, 0.5, 0.6)))
    file = tmp_path / 'image.png'
    Image.frombytes('RGB', (70, 50), bytes(i * i % 251 for i in range(70 * 50 * 3))).save(file)
    (ours,) = predict(timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True), [file])
    theirs = pipeline('image-classification', model=str(tmp_path / 'model'), top_k=5)(str(file))
    assert [t['label'] for t in theirs] == [guess.label for guess in ours.guesses]
    scores = torch.tensor([t['score'] for t in theirs])
    torch.testing.assert_close(
        scores, torch.tensor([guess.probability for guess in ours.guesses]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('test_vit', {}),
        ('test_ceit', dict(img_size=64)),
        ('test_glom', {}),
        ('test_perceiver', dict(img_size=32)),
        ('test_perceiver_io', dict(img_size=32)),
    ],
)
def test_the_backbone_gives_the_models_features(name, kwargs, tmp_path):
    model = trained(name, **kwargs)
    hub.save(model, tmp_path)
    x = torch.randn(2, *input_config(model)['input_size'])
    theirs = TimmBackbone.from_pretrained(f'local-dir:{tmp_path}', out_indices=[0, 1]).eval()
    ours = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    for found, expected in zip(theirs(x).feature_maps, ours, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_model_without_classes_gives_features(tmp_path):
    model = trained('test_ceit', num_classes=0)
    hub.save(model, tmp_path)
    x = torch.randn(2, *input_config(model)['input_size'])
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path).eval()(x).pooler_output, model(x))


def test_classes_can_be_replaced_for_finetuning(tmp_path):
    hub.save(trained('test_perceiver', **TINY, img_size=32), tmp_path)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    x = AutoImageProcessor.from_pretrained(tmp_path)(Image.new('RGB', (40, 40)))['pixel_values']
    assert x.shape == (1, 3, 32, 32)
    loss = theirs(x, labels=torch.tensor([2])).loss
    loss.backward()
    assert theirs.timm_model.head.weight.grad.abs().sum() > 0


def test_what_transformers_saves_is_read_again(tmp_path):
    model = trained('test_ceit')
    hub.save(model, tmp_path / 'ours')
    AutoModelForImageClassification.from_pretrained(tmp_path / 'ours').save_pretrained(tmp_path / 'theirs')
    x = torch.randn(2, *input_config(model)['input_size'])
    again = AutoModelForImageClassification.from_pretrained(tmp_path / 'theirs').eval()
    torch.testing.assert_close(again(x).logits, model(x))
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path / "theirs"}', pretrained=True).eval()(x), model(x))


def test_the_package_has_to_be_imported_first(tmp_path):
    """As the card says."""
    folder = hub.save(trained('test_ceit'), tmp_path)
    card = (folder / 'README.md').read_text()
    assert 'import timm_extra  # registers the model\nfrom transformers import AutoModelForImageClassification' in card
    code = (
        'import sys\n{}import transformers\ntransformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])'
    )
    for before, works in (('import timm_extra\n', True), ('', False)):
        done = subprocess.run([sys.executable, '-c', code.format(before), folder], capture_output=True, text=True)
        assert (done.returncode == 0) == works, done.stderr
        assert works or "'test_ceit' is not supported in your version of timm" in done.stderr
