"""Weights in what training scripts wrap them in."""

import copy
import sys

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from timm_extra import hub
from timm_extra.hub.convert import load_checkpoint
from timm_extra.models._build import unwrap

MODELS = {
    'ceit': ('test_ceit', dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)),
    'perceiver': ('test_perceiver', dict(num_latents=8, latent_dim=16, num_blocks=1, block_depth=1, num_heads=2)),
    'perceiver io': ('test_perceiver_io', dict(num_latents=8, latent_dim=16, num_blocks=1, block_depth=1, num_heads=2)),
    'glom': ('test_glom', {}),
}


class Task(nn.Module):
    """What Lightning saves: a model among losses and metrics."""

    def __init__(self, model, name='model'):
        super().__init__()
        self.add_module(name, model)
        self.register_buffer('class_weights', torch.ones(3))
        self.criterion = nn.Linear(2, 2)


class Inside(nn.Module):
    """A wrapper of nothing but a model."""

    def __init__(self, model, name='module'):
        super().__init__()
        self.add_module(name, model)


def other(model):
    """Weights that are not the ones to be found."""
    return {k: torch.zeros_like(v) for k, v in model.state_dict().items()}


def blockwise(model):
    model = copy.deepcopy(model)
    for name, child in list(model.named_children()):
        if isinstance(child, nn.ModuleList) and len(child):
            child[0] = torch.compile(child[0])
        elif name == 'head':
            model.head = torch.compile(child)
    return model


def lightning(state):
    return {'pytorch-lightning_version': '2.5.5', 'epoch': 3, 'callbacks': {}, 'state_dict': state}


FLAT = {
    'alone': lambda m: m.state_dict(),
    'DDP': lambda m: Inside(m).state_dict(),
    'compiled': lambda m: torch.compile(m).state_dict(),
    'compiled DDP': lambda m: torch.compile(Inside(m)).state_dict(),
    'DDP of a compiled model': lambda m: Inside(torch.compile(m)).state_dict(),
    'compiled twice around DDP': lambda m: torch.compile(Inside(torch.compile(m))).state_dict(),
    'compiled blocks': lambda m: blockwise(m).state_dict(),
    'DDP in a wrapper': lambda m: Inside(Inside(m)).state_dict(),
    'an average': lambda m: AveragedModel(m).state_dict(),
    'an average of DDP': lambda m: AveragedModel(Inside(m)).state_dict(),
    'model.': lambda m: Inside(m, 'model').state_dict(),
    'net.': lambda m: Inside(m, 'net').state_dict(),
}
NESTED = {
    'model': lambda m: dict(model=m.state_dict(), epoch=1),
    'state_dict': lambda m: dict(state_dict=Inside(torch.compile(m)).state_dict(), optimizer={'state': {0: {}}}),
    'state_dict_ema': lambda m: dict(state_dict=other(m), state_dict_ema=Inside(m).state_dict()),
    'model_ema': lambda m: dict(model=other(m), model_ema=AveragedModel(m).state_dict()),
    'no EMA yet': lambda m: dict(state_dict=m.state_dict(), state_dict_ema=None),
    'two containers': lambda m: dict(model=dict(state_dict=m.state_dict())),
    'Lightning': lambda m: lightning(Task(m).state_dict()),
    'Lightning, compiled': lambda m: lightning(Task(torch.compile(m)).state_dict()),
    'Lightning, in DDP': lambda m: lightning(Task(Inside(m)).state_dict()),
    'Lightning, a model in a model': lambda m: lightning(Task(Inside(m, 'model')).state_dict()),
    'Lightning, net': lambda m: lightning(Task(m, 'net').state_dict()),
    'Lightning, the model itself': lambda m: lightning(m.state_dict()),
}


def built(family):
    name, kwargs = MODELS[family]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return name, dict(kwargs), model


def check(model, expected):
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize('wrap', [*FLAT, *NESTED])
@pytest.mark.parametrize('family', MODELS)
def test_weights_are_found_wherever_they_are_read(family, wrap, tmp_path):
    name, kwargs, model = built(family)
    checkpoint = {**FLAT, **NESTED}[wrap](model)
    file = tmp_path / 'checkpoint.pth'
    torch.save(checkpoint, file)

    load = dict(pretrained=True, num_classes=3, **kwargs)
    for overlay in (dict(file=str(file)), dict(state_dict=checkpoint)):
        check(timm.create_model(name, pretrained_cfg_overlay=dict(overlay, num_classes=3), **load), model)
    report = hub.convert(file, tmp_path / 'hub', name, kwargs)
    assert report.mapped and not (report.dropped or report.new or report.resized)
    check(hub.load(tmp_path / 'hub'), model)
    filter_fn = sys.modules[type(model).__module__.rpartition('.')[0]].checkpoint_filter_fn
    empty = timm.create_model(name, num_classes=3, **kwargs)
    empty.load_state_dict(filter_fn(checkpoint, empty))
    check(empty, model)


@pytest.mark.parametrize('wrap', FLAT)
def test_weights_are_found_in_safetensors(wrap, tmp_path):
    name, kwargs, model = built('perceiver')
    file = tmp_path / 'model.safetensors'
    safetensors.torch.save_file(FLAT[wrap](model), file)
    overlay = dict(file=str(file), num_classes=3)
    check(timm.create_model(name, pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay, **kwargs), model)


@pytest.mark.parametrize('wrap', [*FLAT, *NESTED])
def test_weights_of_timms_own_models_are_found(wrap, tmp_path):
    model = timm.create_model('test_vit', num_classes=3)
    torch.save({**FLAT, **NESTED}[wrap](model), tmp_path / 'checkpoint.pth')
    check(load_checkpoint(tmp_path / 'checkpoint.pth', 'test_vit')[0], model)


def test_what_is_not_wrapped_is_left_as_it_is():
    _, _, model = built('ceit')
    state = model.state_dict()
    assert unwrap(state) is state
    mixed = {'module.a': torch.ones(1), 'b': torch.ones(1)}  # the model's own name for a part
    assert unwrap(mixed) is mixed
    assert unwrap({}) == {}


def test_what_else_lightning_saves_does_not_stand_in_for_the_model(tmp_path):
    """A model of which a part is missing is refused, though the file has other tensors."""
    name, kwargs, model = built('ceit')
    state = Task(model).state_dict()
    del state['model.blocks.0.norm1.weight']
    torch.save(lightning(state), tmp_path / 'last.ckpt')
    with pytest.raises(ValueError, match=r'missing: blocks\.0\.norm1\.weight'):
        hub.convert(tmp_path / 'last.ckpt', tmp_path / 'hub', name, kwargs)


@pytest.mark.parametrize(
    'held, message', [([1, 2], 'it holds a list, no state dict'), ({0: {}}, 'no state dict has a key 0')]
)
def test_what_is_no_state_dict_is_named(held, message, tmp_path):
    torch.save(held, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=message):
        timm.create_model('test_ceit', pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'other.pth')))
