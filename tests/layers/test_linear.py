"""`accelerate`: any model's linear layers go another way, and everything else about the model stays as it is."""

import copy
import io
import logging
import pickle
import sys
import warnings

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close

import timm_extra
from timm_extra.layers import AcceleratedLinear
from timm_extra_kernels.linear import eager, processors
from timm_extra_kernels.linear.processors import Choice

module = sys.modules['timm_extra_kernels.linear']
SIZES = {'test_vit': 160, 'test_ceit': 160, 'test_perceiver': 64, 'test_perceiver_io': 64, 'test_glom': 56}


@pytest.fixture
def products(monkeypatch):
    """Every product goes through oneDNN, whatever the processor; those that did."""
    if eager.operator() is None:
        pytest.skip('PyTorch without oneDNN: always its own product')
    taken = []
    everything = Choice('any processor', output=1, input_gradient=1, narrowing=1, widening=1, features=1)
    monkeypatch.setattr(module, 'choice', lambda: everything)
    for name in ('forward', 'input_gradient', 'weight_gradient'):
        function = getattr(eager, name)
        monkeypatch.setattr(eager, name, lambda *a, f=function, n=name: taken.append(n) or f(*a))
    return taken


def make(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **({} if 'vit' in name else dict(img_size=SIZES[name]))).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.3)
    return model, torch.randn(2, 3, SIZES[name], SIZES[name])


def linears(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


@pytest.mark.parametrize('name', SIZES)
def test_results_and_gradients_are_those_of_the_model_before(name, products):
    model, x = make(name)
    keys, before = list(model.state_dict()), linears(model, nn.Linear)
    expected = model(x)
    gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()), allow_unused=True)
    assert timm_extra.accelerate(model) is model and not products
    assert linears(model, AcceleratedLinear) == before and not linears(model, nn.Linear)
    assert all(isinstance(model.get_submodule(n), nn.Linear) for n in before)
    assert list(model.state_dict()) == keys
    out = model(x)
    assert_close(out, expected, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)
    assert {'forward', 'input_gradient', 'weight_gradient'} <= set(products)
    for a, b in zip(ours, gradients, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item() + 1e-6)
    timm_extra.accelerate(model, False)
    assert linears(model, nn.Linear) == before and not linears(model, AcceleratedLinear)
    assert torch.equal(model(x), expected)


def test_a_layer_says_what_it_takes(products, monkeypatch):
    layer, x = AcceleratedLinear(384, 1536), torch.randn(784, 384)
    monkeypatch.setattr(module, 'choice', lambda: Choice('AMD Zen 4', output=2**23, input_gradient=2**22))
    libraries = 'oneDNN for the output and the gradient of the input, MKL for the gradient of the weight'
    assert str(layer.explain(x)) == f'linear: {libraries} (AMD Zen 4)'
    assert str(layer.explain(x[:1])) == 'linear: PyTorch, the product is small'
    assert str(layer.explain(x.double())) == 'linear: PyTorch, torch.float64 is not float32'
    assert not products


def test_what_was_replaced_is_logged(caplog):
    model, _ = make('test_vit')
    with caplog.at_level(logging.INFO, 'timm_extra'):
        timm_extra.accelerate(model)
    count = len(linears(model, AcceleratedLinear))
    (record,) = caplog.records
    assert f'VisionTransformer: {count} layers are AcceleratedLinear now: blocks.0.attn.qkv, ' in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.INFO, 'timm_extra'):
        timm_extra.accelerate(model)  # once is enough
    assert ': 0 layers' in caplog.records[0].getMessage()


def test_other_kinds_of_linear_layers_are_left_alone():
    class Adapter(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Adapter(4, 4), nn.LazyLinear(4), nn.Bilinear(4, 4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(model[4], 'weight', nn.Identity())
    kinds = [type(m) for m in model]
    timm_extra.accelerate(model)
    assert [type(m) for m in model] == [AcceleratedLinear, *kinds[1:]]
    assert type(timm_extra.accelerate(nn.Linear(4, 4))) is AcceleratedLinear


def test_a_layer_parametrised_or_pruned_later_computes_with_its_new_weight(products):
    x = torch.randn(3, 4)
    layer = timm_extra.accelerate(nn.Linear(4, 4))
    parametrize.register_parametrization(layer, 'weight', nn.Softplus())
    assert isinstance(layer, AcceleratedLinear)
    assert str(layer.explain(x)) == 'linear: PyTorch, the weight is parametrised or pruned'
    assert_close(layer(x), x @ layer.weight.T + layer.bias)
    parametrize.remove_parametrizations(layer, 'weight')
    assert type(layer) is AcceleratedLinear
    prune.l1_unstructured(layer, 'weight', amount=0.5)
    assert (layer.weight == 0).sum() == 8
    assert_close(layer(x), x @ layer.weight.T + layer.bias)
    assert not products


@pytest.mark.parametrize('name', SIZES)
def test_it_is_copied_pickled_saved_and_loaded(name, products, tmp_path):
    model, x = make(name)
    state, expected = model.state_dict(), timm_extra.accelerate(model)(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert linears(copied, AcceleratedLinear) == linears(model, AcceleratedLinear)
        assert torch.equal(copied(x), expected)
    plain, _ = make(name)
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(state)


@pytest.mark.parametrize('name', SIZES)
def test_hooks_see_every_layer(name, products):
    model, x = make(name)
    timm_extra.accelerate(model)
    seen, gradients = set(), set()
    for label in linears(model, AcceleratedLinear):
        model.get_submodule(label).register_forward_hook(lambda *_, label=label: seen.add(label))
        model.get_submodule(label).register_full_backward_hook(lambda *_, label=label: gradients.add(label))
    model(x).sum().backward()
    assert seen == set(linears(model, AcceleratedLinear))
    assert len(gradients) >= len(seen) - 2  # CeiT's last LeFF has no part in the logits


@pytest.mark.parametrize('name', SIZES)
def test_checkpointing_gives_the_same_gradients(name, products):
    model, x = make(name)
    timm_extra.accelerate(model)

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


def test_tracing_warns_of_nothing(products):
    model = timm_extra.accelerate(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
    x = torch.randn(2, 3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter('error', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        traced = torch.jit.trace(model, x)
    assert_close(traced(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
def test_it_is_scripted_traced_exported_and_taken_apart(name, products):
    model, x = make(name)
    with torch.no_grad():
        expected = model(x)
        timm_extra.accelerate(model)
        assert_close(torch.jit.script(model)(x), expected, rtol=1e-4, atol=1e-5)
        assert_close(torch.jit.trace(model, x, check_trace=False)(x), expected, rtol=1e-4, atol=1e-5)
        program = torch.export.export(model, (x,))
        assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
        assert not products
        names = [node.target for node in program.graph.nodes if node.op == 'call_function']
        assert not [n for n in names if 'mkldnn' in str(n)]
    if name in ('test_vit', 'test_ceit'):
        label = 'blocks.1.attn.proj'
        features = create_feature_extractor(model, [label])(x)
        assert features[label].shape[0] == 2


@pytest.mark.parametrize('name', SIZES)
def test_autocast_and_lower_precision_take_pytorch(name, products):
    model, x = make(name)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected = model(x)
        assert torch.equal(timm_extra.accelerate(model)(x), expected)
    with torch.no_grad():
        model.bfloat16()(x.bfloat16())
    assert not products


@pytest.mark.parametrize('processor', [*processors.CHOICES.values(), 'another processor'], ids=str)
def test_tiny_models_take_pytorch_on_every_processor(processor, products, monkeypatch):
    monkeypatch.setattr(module, 'choice', lambda: processor)
    model = timm_extra.accelerate(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)))
    model(torch.randn(8, 16)).sum().backward()
    assert not products
