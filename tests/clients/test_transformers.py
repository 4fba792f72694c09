"""transformers: a saved folder opens as any timm model's does, and models are backbones."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    TimmBackboneConfig,
    pipeline,
)

from tests.clients.zoo import CLASSES, MODELS, images, make
from timm_extra import hub

LABELS = [f'label {i}' for i in range(CLASSES)]


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """Name of a model, the model, and the folder it is saved in."""
    model = make(request.param)
    return request.param, model, hub.save(model, tmp_path / 'model', model_config=dict(label_names=LABELS))


@torch.no_grad()
def test_a_saved_folder_is_an_image_classifier(saved):
    name, model, folder = saved
    opened = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert_close(opened(images(name)).logits, model(images(name)))
    assert opened.config.id2label == dict(enumerate(LABELS))


@torch.no_grad()
def test_a_saved_folder_is_a_model_with_hidden_and_pooled_output(saved):
    name, model, folder = saved
    opened = AutoModel.from_pretrained(folder).eval()
    output = opened(images(name))
    hidden = model.forward_features(images(name))
    assert_close(output.last_hidden_state, hidden)
    assert_close(output.pooler_output, model.forward_head(hidden, pre_logits=True))


@torch.no_grad()
def test_a_saved_folder_is_a_pipeline(saved):
    _, model, folder = saved
    pixels = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    chances = model(transform(image).unsqueeze(0)).softmax(-1)[0]
    found = pipeline('image-classification', model=str(folder))(image, top_k=CLASSES)
    assert [row['label'] for row in found] == [LABELS[i] for i in chances.argsort(descending=True)]
    assert_close(torch.tensor([row['score'] for row in found]), chances.sort(descending=True).values)


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_models_are_backbones(name):
    config = TimmBackboneConfig(backbone=name, out_indices=[0, 2], use_pretrained_backbone=False)
    backbone = AutoBackbone.from_config(config).eval()
    features = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    features.load_state_dict(backbone._backbone.state_dict())
    found, expected = backbone(images(name)).feature_maps, features(images(name))
    assert len(found) == len(expected) == 2
    assert_close(list(found), expected)
    assert not torch.equal(expected[0], expected[1])
    assert list(backbone.channels) == features.feature_info.channels()
