"""Any timm model with `LatentPool` as its head."""

import copy
import json
import pickle
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.task import ClassificationTask
from torch import nn

from timm_extra import LatentPoolConfig, hub, with_latent_pool
from timm_extra.models.info import input_size
from timm_extra.models.latent_pool import LatentPoolModel
from timm_extra.models.latent_pool.features import find_features

FAMILIES = {
    'test_vit': 'NLC',
    'test_vit_relpos': 'NLC',
    'deit_tiny_distilled_patch16_224': 'NLC',
    'naflexvit_base_patch16_gap': 'NLC',
    'test_resnet': 'NCHW',
    'test_convnext': 'NCHW',
    'mobilenetv3_small_050': 'NCHW',
    'inception_next_atto': 'NCHW',
    'test_mambaout': 'NHWC',
    'swin_tiny_patch4_window7_224': 'NHWC',
    'test_ceit': 'NLC',
    'test_perceiver': 'NLC',
    'test_perceiver_io': 'NLC',
    'test_glom': 'NLC',
}
SMALL = dict(
    naflexvit_base_patch16_gap=dict(embed_dim=32, depth=1, num_heads=2),
    swin_tiny_patch4_window7_224=dict(embed_dim=16, depths=(1, 1, 1, 1)),
    deit_tiny_distilled_patch16_224=dict(embed_dim=32, depth=1, num_heads=2, img_size=64),
    mobilenetv3_small_050=dict(img_size=None),
)
TWO = LatentPoolConfig(num_latents=2, num_heads=4, mlp_ratio=1.0)


def made(name, **kwargs):
    torch.manual_seed(0)
    own = {k: v for k, v in SMALL.get(name, {}).items() if v is not None}
    return timm.create_model(name, **dict(own, num_classes=7), **kwargs)


def pooled(name, config=TWO, **kwargs):
    return with_latent_pool(made(name, **kwargs), config).eval()


def images(model, batch=2):
    return torch.randn(batch, *input_size(model), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('name, layout', FAMILIES.items())
def test_every_family_is_pooled_saved_and_loaded(name, layout, tmp_path):
    before = made(name).eval()
    features = with_latent_pool(copy.deepcopy(before), TWO).eval()
    x = images(before)
    assert isinstance(features, LatentPoolModel) and features.layout == layout
    if name != 'test_ceit':  # which computes no other token than the one it pools
        assert torch.equal(features.forward_features(x), before.forward_features(x))
    logits = features(x)
    assert logits.shape == (2, 7)
    assert torch.equal(features.forward_head(features.forward_features(x)), logits)
    assert features.forward_features(x).shape[-3 if layout == 'NCHW' else -1] == features.num_features
    vectors = features.forward_head(features.forward_features(x), pre_logits=True)
    assert vectors.shape == (2, features.head_hidden_size)
    assert torch.equal(features.get_classifier()(vectors), logits)

    folder = hub.save(features, tmp_path / 'model')
    for again in (timm.create_model(f'local-dir:{folder}', pretrained=True), hub.load(folder)):
        assert torch.equal(again.eval()(x), logits)
        assert again.state_dict().keys() == features.state_dict().keys()
    assert json.loads((folder / 'config.json').read_text())['model_args']['backbone'] == name


@pytest.mark.parametrize(
    'name', ['test_vit', 'test_resnet', 'test_convnext', 'test_mambaout', 'test_ceit', 'test_glom']
)
def test_every_parameter_learns(name):
    """Nothing of the old head is left over: DistributedDataParallel would refuse it."""
    model = pooled(name).train()
    model(images(model)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_pooling_is_of_all_positions():
    """Against the pool on tokens made by hand, for a map in both layouts and tokens behind a class token."""
    for name in ('test_resnet', 'test_mambaout', 'test_vit'):
        model = pooled(name)
        x = model.forward_features(images(model))
        tokens = x if name == 'test_vit' else x.reshape(2, x.shape[1], -1).mT if name == 'test_resnet' else None
        tokens = x.reshape(2, -1, x.shape[-1]) if tokens is None else tokens
        assert torch.equal(model.forward_head(x, pre_logits=True), model.latent_pool(tokens))


def test_the_classifier_is_reset(tmp_path):
    model = pooled('test_convnext')
    x = images(model)
    vectors = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), vectors)
    model.reset_classifier(4, '')
    assert model(x).shape == (2, 2, 4)
    again = hub.load(hub.save(model, tmp_path / 'model')).eval()
    assert torch.equal(again(x), model(x))
    model.reset_classifier(0, 'token')
    assert model(x).shape == (2, model.head_hidden_size)
    with pytest.raises(ValueError, match="global_pool must be 'avg', 'token' or '', got 'max'"):
        model.reset_classifier(3, 'max')
    assert model.num_classes == 0 and model.global_pool == 'token'


def test_timm_makes_the_same_by_name():
    options = dict(num_latents=3, latent_dim=24, num_heads=2)
    model = timm.create_model(
        'latent_pool', backbone='test_vit', latent_pool=options, num_classes=5, img_size=96, in_chans=1, drop_rate=0.5
    )
    other = with_latent_pool(
        timm.create_model('test_vit', num_classes=5, img_size=96, in_chans=1), LatentPoolConfig(**options)
    )
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 96, 96)
    assert torch.equal(model.eval()(x), other.eval()(x)) and model(x).shape == (2, 5)
    assert model.head_drop.p == 0.5 and model.in_chans == 1 and input_size(model) == (1, 96, 96)
    with pytest.raises(ValueError, match="has no model 'test_vti' for a backbone: did you mean test_vit"):
        timm.create_model('latent_pool', backbone='test_vti')
    with pytest.raises(ValueError, match="no model 'local-dir:x' for a backbone"):
        timm.create_model('latent_pool', backbone='local-dir:x')
    with pytest.raises(ValueError, match="no model 'latent_pool' for a backbone"):
        timm.create_model('latent_pool', backbone='latent_pool')
    with pytest.raises(ValueError, match="no option 'num_latent': did you mean num_latents"):
        timm.create_model('latent_pool', backbone='test_vit', latent_pool=dict(num_latent=3))


def test_an_adapted_backbone_comes_back_adapted(tmp_path):
    model = pooled('test_vit', in_chans=1, img_size=64)
    model.set_input_size((96, 64))
    x = torch.randn(2, 1, 96, 64)
    again = hub.load(hub.save(model, tmp_path / 'model'))
    assert torch.equal(again.eval()(x), model(x)) and input_size(again) == (1, 96, 64)
    adapted = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True, num_classes=2, in_chans=3)
    assert adapted(torch.randn(1, 3, 96, 64)).shape == (1, 2)
    ours = adapted.backbone.patch_embed.proj.weight
    torch.testing.assert_close(ours.sum(1, keepdim=True), model.backbone.patch_embed.proj.weight)


def test_what_was_edited_by_hand_is_refused(tmp_path):
    model = pooled('test_vit')
    del model.backbone.blocks[1:]
    with pytest.raises(ValueError, match='does not rebuild it'):
        hub.save(model, tmp_path / 'model')
    assert not (tmp_path / 'model').exists()


@pytest.mark.parametrize(
    'name, message',
    [
        ('crossvit_tiny_240', 'CrossVit gives a list of features, where a latent pool needs tokens or one map'),
        ('pit_ti_224', r'PoolingVisionTransformer gives features \(2, 1, 256\) of 2 inputs'),
    ],
)
def test_features_that_are_neither_tokens_nor_a_map_are_refused(name, message):
    model = timm.create_model(name, num_classes=2)
    before = str(model), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        with_latent_pool(model)
    assert '\n' not in str(error.value)
    assert str(model) == before[0] and all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())


def test_what_is_no_timm_model_is_refused():
    with pytest.raises(ValueError, match='Linear has no forward_features and no reset_classifier: a latent pool needs'):
        with_latent_pool(nn.Linear(2, 2))
    model = made('test_vit')
    with pytest.raises(ValueError, match='`attend_latents` needs latents of the width of the tokens'):
        with_latent_pool(model, LatentPoolConfig(latent_dim=8, attend_latents=True))
    assert isinstance(model.head, nn.Linear)


def test_nothing_is_computed_to_find_what_features_are(monkeypatch):
    """Neither weights, statistics, modes, gradients nor the random state change."""
    model = made('test_resnet').train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found = find_features(model)
    assert (found.layout, found.channels, found.unused) == ('NCHW', 96, ())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())
    assert with_latent_pool(model).training and not with_latent_pool(made('test_vit').eval()).training


def test_a_pool_is_replaced_by_another():
    model = with_latent_pool(pooled('test_vit'), LatentPoolConfig(num_latents=5))
    assert type(model.backbone).__name__ == 'VisionTransformer' and model.num_classes == 7
    assert model.latent_pool.latents.shape[0] == 5


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'test_ceit', 'cait_xxs24_224'])
def test_layers_have_the_learning_rates_of_the_backbone(name):
    model, alone = pooled(name), made(name)

    def scales(model, prefix=''):
        skipped = getattr(model, 'no_weight_decay', set)()
        groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=skipped)
        names = {id(p): n for n, p in model.named_parameters()}
        return {
            names[id(p)].removeprefix(prefix): (g['lr_scale'], g['weight_decay']) for g in groups for p in g['params']
        }

    ours, theirs = scales(model, 'backbone.'), scales(alone)
    heads = {n: s for n, (s, _) in ours.items() if n.startswith(('latent_pool', 'head.'))}
    assert set(heads.values()) == {1.0}
    shared = ours.keys() & theirs.keys() - heads.keys()
    assert len(shared) == len(ours) - len(heads) and all(ours[n] == theirs[n] for n in shared)


def test_latents_are_not_decayed():
    model = pooled('test_vit')
    skipped, _ = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    assert any(p is model.latent_pool.latents for p in skipped['params'])
    assert any(p is model.backbone.pos_embed for p in skipped['params'])


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet'])
def test_it_learns_in_timms_task(name):
    model = with_latent_pool(made(name), TWO)
    model.set_grad_checkpointing()
    assert model.latent_pool.grad_checkpointing
    task = ClassificationTask(model, criterion=nn.CrossEntropyLoss())
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    x, y = images(model, 8), torch.arange(8) % 4
    losses = []
    for _ in range(12):
        loss = task(x, y)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet', 'test_mambaout', 'test_ceit'])
def test_exported_and_compiled(name):
    model = pooled(name)
    x = images(model)
    expected = model(x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('B', min=2, max=32)},)).module()
    torch.testing.assert_close(program(x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(program(x.repeat(2, 1, 1, 1)), model(x.repeat(2, 1, 1, 1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.compile(model, backend='aot_eager')(x), expected, atol=1e-5, rtol=1e-4)


def test_copied_and_pickled():
    model = pooled('test_vit')
    x = images(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))


def test_images_of_different_sizes_are_pooled_without_their_padding():
    """A NaFlex batch against each image alone."""
    model = pooled('naflexvit_base_patch16_gap', LatentPoolConfig(num_latents=2, depth=2, attend_latents=True)).double()
    generator = torch.Generator().manual_seed(0)
    grids, most = [(4, 3), (2, 5)], 14
    patches = torch.randn(2, most, 16 * 16 * 3, generator=generator, dtype=torch.float64)
    coord, valid = torch.zeros(2, most, 2, dtype=torch.long), torch.zeros(2, most, dtype=torch.bool)
    for i, (h, w) in enumerate(grids):
        coord[i, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        valid[i, : h * w] = True
    batch = dict(patches=patches, patch_coord=coord, patch_valid=valid)
    together = model(batch)
    features = model.forward_features(batch)
    assert torch.equal(model.forward_head(features), together)
    assert torch.equal(model.forward_head(features['patches'], patch_valid=features['patch_valid']), together)
    for i, (h, w) in enumerate(grids):
        alone = {k: v[i : i + 1, : h * w] for k, v in batch.items()}
        torch.testing.assert_close(together[i : i + 1], model(alone), atol=1e-10, rtol=0)


def test_weights_of_the_backbone_are_loaded_by_name(monkeypatch):
    """`pretrained=True` loads them where no saved model is named."""
    made_with = {}
    create = timm.create_model

    def created(name, **kwargs):
        made_with[name] = kwargs.pop('pretrained')
        return create(name, **kwargs)

    monkeypatch.setattr(timm, 'create_model', created)
    create('latent_pool', pretrained=True, backbone='test_vit')
    assert made_with == dict(test_vit=True)


def test_the_docs_name_every_option_with_its_default():
    page = (Path(__file__).resolve().parents[3] / 'docs' / 'pooling.md').read_text()
    for one in fields(LatentPoolConfig):
        assert f'| `{one.name}` | `{one.default!r}` |' in page


@pytest.mark.parametrize('name', ['test_convnext', 'test_mambaout', 'test_vit', 'test_resnet'])
def test_layers_are_pruned_and_compiled_as_in_the_backbone(name):
    model = pooled(name)
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), atol=1e-5, rtol=1e-4)
    features = timm.create_model('latent_pool', backbone=name, features_only=True, out_indices=(0, 1))
    alone = timm.create_model(name, features_only=True, feature_cls='getter', out_indices=(0, 1))
    assert [f.shape for f in features(x)] == [f.shape for f in alone(x)]
    expected = model.forward_intermediates(x, 1, intermediates_only=True)
    model.prune_intermediate_layers(1)
    for ours, theirs in zip(model.forward_intermediates(x, 1, intermediates_only=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_latents_of_a_perceiver_are_intermediates_by_default():
    features = timm.create_model('latent_pool', backbone='test_perceiver', features_only=True)
    alone = timm.create_model('test_perceiver', features_only=True)
    x = torch.randn(1, *input_size(alone))
    assert [f.shape for f in features(x)] == [f.shape for f in alone(x)] == [(1, 16, 64)] * 3
    model = pooled('test_perceiver')
    assert all(f.shape == (1, 16, 64) for f in model.forward_intermediates(x, intermediates_only=True))


def test_the_backbone_keeps_its_own_pooling_as_an_argument(tmp_path):
    options = dict(class_token=False, num_classes=7)
    model = with_latent_pool(timm.create_model('test_vit', global_pool='avg', **options), TWO).eval()
    x = images(model)
    again = hub.load(hub.save(model, tmp_path / 'model')).eval()
    assert torch.equal(again(x), model(x))
    by_name = timm.create_model(
        'latent_pool', backbone='test_vit', backbone_pool='avg', latent_pool=dict(vars(TWO)), **options
    ).eval()
    by_name.load_state_dict(model.state_dict())
    assert torch.equal(by_name(x), model(x))
    model.load_state_dict(by_name.state_dict())
    saved = hub.load(hub.save(with_latent_pool(by_name, TWO), tmp_path / 'second'))
    assert saved.state_dict().keys() == model.state_dict().keys()


def test_arguments_by_name_are_checked():
    with pytest.raises(ValueError, match=r'must be a dictionary of options, as dataclasses\.asdict gives it'):
        timm.create_model('latent_pool', backbone='test_vit', latent_pool=TWO)
    with pytest.raises(ValueError, match='must be the name of a model, got a VisionTransformer'):
        timm.create_model('latent_pool', backbone=made('test_vit'))


def test_a_pool_that_is_made_without_gradients_learns():
    model = made('test_vit')
    with torch.inference_mode():
        model = with_latent_pool(model, TWO)
        with pytest.raises(ValueError, match=r'was made in torch.inference_mode\(\)'):
            with_latent_pool(made('test_vit'))
    model(images(model)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
