"""The calls that timm's scripts make on a model: they are in no package, and so not run here."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.task import FeatureDistillationTask, LogitDistillationTask
from timm.utils import ModelEmaV3, reparameterize_model, unwrap_model
from torch import nn
from torch.testing import assert_close

import timm_extra  # noqa: F401

SIZES = {'test_ceit': 32, 'test_perceiver': 32, 'test_perceiver_io': 32, 'test_glom': 28}
BLOCKS = {'test_ceit': 'blocks.', 'test_perceiver': 'blocks.', 'test_perceiver_io': 'blocks.', 'test_glom': 'levels.'}


def make(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=SIZES[name], num_classes=5, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(model.head.weight, std=0.3)
    return model


def images(name, number=2):
    return torch.randn(number, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('exportable', (False, True))
@pytest.mark.parametrize('name', SIZES)
@torch.no_grad()
def test_reparameterizing_before_evaluation_changes_no_output(name, exportable):
    """As benchmark.py --reparam, validate.py --reparam and onnx_export.py --reparam do, on a new model."""
    model = make(name, exportable=exportable)
    expected = make(name).eval()(images(name))
    assert_close(reparameterize_model(model).eval()(images(name)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SIZES)
def test_averaged_weights_follow_the_trained_ones(name):
    """As train.py --model-ema does; a model with the average is saved and evaluated."""
    model = make(name)
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    average.update(model)
    expected = {k: v + 0.5 for k, v in make(name).named_parameters()}
    assert_close(dict(unwrap_model(average).named_parameters()), expected)
    fresh = make(name)
    fresh.load_state_dict(unwrap_model(average).state_dict())
    assert_close(average.module.eval()(images(name)), fresh.eval()(images(name)))


@pytest.mark.parametrize('name', SIZES)
def test_layer_decay_lets_blocks_learn_faster_the_higher_they_are(name):
    """As train.py --layer-decay does."""
    model = make(name)
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    names = {id(p): key for key, p in model.named_parameters()}
    scale = {names[id(p)]: group['lr_scale'] for group in groups for p in group['params']}
    assert set(scale) == set(names.values())
    assert scale['head.weight'] == 1.0 == max(scale.values())
    stem = [v for k, v in scale.items() if k.startswith(('patch_embed', 'stem', 'pos_embed', 'cls_token', 'latents'))]
    assert stem and set(stem) == {min(scale.values())}
    blocks = [v for k, v in scale.items() if k.startswith(BLOCKS[name])]
    assert blocks == sorted(blocks) and len(set(blocks)) > 1
    undecayed = {names[id(p)] for group in groups if not group['weight_decay'] for p in group['params']}
    assert undecayed >= set(model.no_weight_decay()) & set(names.values())


@pytest.mark.parametrize('optimizer', ('sgd', 'adamw', 'lamb', 'muon', 'adafactor'))
@pytest.mark.parametrize('name', SIZES)
def test_an_optimizer_of_timm_trains_every_parameter(name, optimizer):
    """As train.py --opt … --layer-decay … --clip-grad 1 does."""
    model = make(name).double().train()  # no step is lost in rounding
    updater = create_optimizer_v2(model, optimizer, lr=1e-2, weight_decay=0.0, layer_decay=0.9)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    nn.functional.cross_entropy(model(images(name, 4).double()), torch.arange(4)).backward()
    timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
    updater.step()
    still = {key for key, p in model.named_parameters() if torch.equal(p, before[key])}
    # CeiT's class token leaves the last LeFF out, a bias of keys adds the same to all scores, a BatchNorm takes one off
    assert all(model.get_parameter(key).grad.abs().max() < 1e-12 for key in still)


@pytest.mark.parametrize('task', (LogitDistillationTask, FeatureDistillationTask))
@pytest.mark.parametrize('name', SIZES)
def test_a_model_learns_from_another(name, task):
    """As train.py --kd-model-name does."""
    student, teacher = make(name).train(), make(name)
    trained = task(student, teacher, criterion=nn.CrossEntropyLoss(), distill_loss_weight=0.5, task_loss_weight=0.5)
    output = trained(images(name), torch.tensor([0, 1]))
    output['loss'].backward()
    assert student.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
