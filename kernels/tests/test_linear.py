"""`linear`: PyTorch's results and derivatives through another library, and PyTorch itself where that could matter."""

import contextlib
import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import timm_extra_kernels
from timm_extra_kernels import explain, linear
from timm_extra_kernels.linear import cases, eager, naive, processors

module = sys.modules['timm_extra_kernels.linear']
EVERYTHING = processors.Choice('any processor', output=1, input_gradient=1, narrowing=1, widening=1, features=1)
pytestmark = pytest.mark.skipif(eager.operator() is None, reason='PyTorch without oneDNN: always its own product')


@pytest.fixture
def products(monkeypatch):
    """Send every product that may go through oneDNN there, whatever the processor, and note which did."""
    taken = []
    monkeypatch.setattr(module, 'choice', lambda: EVERYTHING)
    for name in ('forward', 'input_gradient', 'weight_gradient'):
        function = getattr(eager, name)
        monkeypatch.setattr(eager, name, lambda *a, f=function, n=name: taken.append(n) or f(*a))
    return taken


def arranged(tensor, how):
    """A tensor of the same values in other memory."""
    if how == 'rows apart' and tensor.ndim:
        return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    if how == 'transposed' and tensor.ndim > 1:
        return tensor.mT.contiguous().mT
    if how == 'offset':
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor


def with_gradients(function, *tensors):
    """Output and gradients, of a gradient at random."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check(x, weight, bias):
    """Errors against float64 at most twice those of MKL, beyond the floor that all operations have (`gates.check`)."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    exact = with_gradients(naive.forward, *(t.double() for t in tensors))
    theirs, ours = with_gradients(F.linear, *tensors), with_gradients(linear, *tensors)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel():
            floor = 4 * torch.finfo(torch.float32).eps * c.abs().max() + 8 * torch.finfo(torch.float32).eps
            assert (a - c).abs().max() <= 2 * (b - c).abs().max() + floor
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), ours[0], rtol=0, atol=0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_values_and_gradients_over_all_shapes(data):
    lead = data.draw(st.lists(st.integers(0, 5), max_size=3))
    K, N = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 40))
    arrangements = st.sampled_from(['as is', 'rows apart', 'transposed', 'offset'])
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = arranged(torch.randn(*lead, K), data.draw(arrangements))
    weight = arranged(torch.randn(N, K), data.draw(st.sampled_from(['as is', 'offset'])))
    bias = torch.randn(N) if data.draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'choice', lambda: EVERYTHING)
        check(x, weight, bias)


@pytest.mark.parametrize('case', cases.MODELS, ids=lambda case: case.name)
def test_errors_are_those_of_mkl_at_the_sizes_of_models(case, products):
    check(*cases.inputs(case, torch.float32, torch.device('cpu')))
    assert products == ['forward', 'input_gradient', 'weight_gradient', 'forward']


@pytest.mark.parametrize('processor', processors.CHOICES.values(), ids=lambda choice: choice.processor)
def test_each_product_takes_what_the_table_says(processor, products, monkeypatch):
    monkeypatch.setattr(module, 'choice', lambda: processor)
    for M, K, N in ((784, 384, 1536), (784, 1536, 384), (788, 384, 384), (64, 256, 384), (16, 16, 16)):
        products.clear()
        with_gradients(linear, torch.randn(M, K), torch.randn(N, K))
        expected = ['forward'] * (processor.output <= M * K * N)
        expected += ['input_gradient'] * (processor.input_gradient <= M * K * N)
        least = processor.widening if N > K else processor.narrowing
        expected += ['weight_gradient'] * (least is not None and least <= M * K * N)
        assert products == expected


def test_only_the_gradients_that_are_wanted_are_computed(products):
    x, weight, bias = torch.randn(8, 6), torch.randn(4, 6), torch.randn(4)
    linear(x, weight.requires_grad_(), bias).sum().backward()
    assert products == ['forward', 'weight_gradient'] and bias.grad is None
    products.clear()
    linear(x.requires_grad_(), weight.detach(), bias).sum().backward()
    assert products == ['forward', 'input_gradient']
    products.clear()
    assert not linear(x.detach(), weight.detach(), bias).requires_grad
    assert products == ['forward']


class Subclass(torch.Tensor):
    """A tensor of a class of its own, as quantised and distributed ones are."""


OTHERS = {
    'float64': lambda x, w: (x.double(), w.double()),
    'bfloat16': lambda x, w: (x.bfloat16(), w.bfloat16()),
    'meta': lambda x, w: (x.to('meta'), w.to('meta')),
    'a subclass as weight': lambda x, w: (x, w.as_subclass(Subclass)),
    'a subclass as input': lambda x, w: (x.as_subclass(Subclass), w),
    'a strided weight': lambda x, w: (x, torch.cat([w, w], 1)[:, :6]),
    'a transposed weight': lambda x, w: (x, w.t().contiguous().t()),
    'a sparse weight': lambda x, w: (x, w.to_sparse_csr()),
    'a nested input': lambda x, w: (torch.nested.nested_tensor([x, x[:2]]), w),
    'no rows': lambda x, w: (x[:0], w),
}


@pytest.mark.parametrize('name', OTHERS)
@pytest.mark.filterwarnings('ignore:Sparse CSR', 'ignore:The PyTorch API of nested tensors')
def test_other_tensors_take_pytorch(name, products):
    x, weight = OTHERS[name](torch.randn(8, 6), torch.randn(4, 6))
    out, expected = linear(x, weight), F.linear(x, weight)
    assert type(out) is type(expected) and out.dtype == expected.dtype and out.device == expected.device
    if name not in ('meta', 'a nested input'):
        assert torch.equal(out, expected)
    assert not products and explain(linear, x, weight).reason


@pytest.mark.parametrize(
    'x, weight, bias',
    [
        (torch.randn(2, 3), torch.randn(4, 5), None),
        (torch.randn(2, 3), torch.randn(4, 3), torch.randn(5)),
        (torch.randn(2, 3), torch.randn(4, 3).double(), None),
        (torch.tensor(1.0), torch.randn(4, 3), None),
        (torch.randn(2, 3, dtype=torch.float16), torch.randn(4, 3), None),
    ],
)
def test_what_does_not_fit_is_refused_in_pytorchs_words(x, weight, bias, products):
    with pytest.raises(RuntimeError) as theirs:
        F.linear(x, weight, bias)
    with pytest.raises(RuntimeError) as ours:
        linear(x, weight, bias)
    assert str(ours.value) == str(theirs.value) and not products


def under_autocast(x, weight):
    with torch.autocast('cpu', torch.bfloat16):
        out = linear(x, weight)
    assert out.dtype == torch.bfloat16
    return out


def tangents(x, weight):
    with forward_ad.dual_level():
        dual = linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)
        return forward_ad.unpack_dual(dual).tangent


def traced(x, weight):
    graph = torch.jit.trace(lambda a, b: linear(a, b), (x, weight), check_trace=False)
    assert 'aten::linear' in str(graph.graph)
    return graph(x, weight)


def compiled(x, weight):
    return torch.compile(linear, fullgraph=True, backend='aot_eager')(x, weight)


def exported(x, weight):
    class Module(nn.Module):
        def forward(self, x, weight):
            return linear(x, weight)

    program = torch.export.export(Module(), (x, weight))
    assert 'aten.linear.default' in str(program.graph)
    return program.module()(x, weight)


def as_graph(x, weight):
    graph = make_fx(lambda a, b: linear(a, b))(x, weight)
    assert 'mkldnn' not in graph.code
    return graph(x, weight)


def counted(x, weight):
    with FlopCounterMode(display=False) as counter:
        out = linear(x, weight)
    assert counter.get_total_flops() == 2 * 8 * 6 * 4
    return out


def switched_off(x, weight):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TIMM_EXTRA_FUSED', '0')
        assert 'TIMM_EXTRA_FUSED=0' in str(explain(linear, x, weight))
        return linear(x, weight)


def without_onednn(x, weight):
    with torch.backends.mkldnn.flags(enabled=False):
        return linear(x, weight)


CONTEXTS = {
    'autocast': under_autocast,
    'forward mode': tangents,
    'trace': traced,
    'compile': compiled,
    'export': exported,
    'make_fx': as_graph,
    'flops': counted,
    'grad': lambda x, w: torch.func.grad(lambda x: linear(x, w).square().sum())(x),
    'vmap': lambda x, w: torch.vmap(lambda row: linear(row, w))(x),
    'jacrev': lambda x, w: torch.func.jacrev(lambda w: linear(x, w))(w),
    'jacfwd': lambda x, w: torch.func.jacfwd(lambda w: linear(x, w))(w),
    'switch': switched_off,
    'oneDNN off': without_onednn,
}


@pytest.mark.parametrize('name', CONTEXTS)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_elsewhere_pytorch_does_the_work(name, products, monkeypatch):
    x, weight = torch.randn(8, 6), torch.randn(4, 6)
    out = CONTEXTS[name](x, weight)
    assert not products
    monkeypatch.setattr(module, 'why_not', lambda *args: 'PyTorch')
    if name == 'switch':
        assert torch.equal(out, F.linear(x, weight))
    else:
        torch.testing.assert_close(out, CONTEXTS[name](x, weight), rtol=0, atol=0)


def test_the_backward_pass_meets_transforms_and_modes_too(products):
    x, weight = torch.randn(8, 6).requires_grad_(), torch.randn(4, 6).requires_grad_()
    grads = torch.eye(32).view(32, 8, 4)

    def both(function):
        out = function(x, weight)
        return torch.autograd.grad(out, (x, weight), grads, is_grads_batched=True, retain_graph=True)

    torch.testing.assert_close(both(linear), both(F.linear))
    products.clear()
    out = linear(x, weight)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 8 * 6 * 4
    assert products == ['forward']


def test_second_derivatives(products):
    tensors = [torch.randn(8, 6).requires_grad_(), torch.randn(4, 6).requires_grad_(), torch.randn(4).requires_grad_()]

    def second(function):
        grads = torch.autograd.grad(function(*tensors).tanh().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    torch.testing.assert_close(second(linear), second(F.linear), rtol=1e-4, atol=1e-4)
    assert products


def kept(function, x, weight, bias, needs):
    """Shapes of what is kept for the backward pass."""
    shapes, tensors = (
        [],
        [t.detach().requires_grad_(n) for t, n in zip((x, weight, bias), needs, strict=True) if t is not None],
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape), lambda shape: None):
        function(*tensors)
    return shapes


@pytest.mark.parametrize('needs', itertools.product((False, True), repeat=3), ids=str)
@pytest.mark.parametrize('lead', [(8,), (2, 4)], ids=str)
def test_what_is_kept_is_what_pytorch_keeps(lead, needs, products):
    """So memory is the same, and what may be changed in place or checkpointed elsewhere."""
    x, weight = torch.randn(*lead, 6), torch.randn(4, 6)
    for bias in (torch.randn(4), None):
        assert kept(linear, x, weight, bias, needs) == kept(F.linear, x, weight, bias, needs)
    assert products == ['forward'] * 2


def test_weights_swapped_after_the_forward_pass_do_not_change_gradients(products):
    x, weight = torch.ones(8, 6).requires_grad_(), nn.Parameter(torch.full((4, 6), 2.0))
    out = linear(x, weight)
    weight.data = torch.ones(4, 6)
    out.sum().backward()
    assert torch.equal(x.grad, torch.full((8, 6), 8.0))
    out = linear(x, weight)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_inputs_that_no_gradient_needs_may_be_changed(products):
    x, weight = torch.randn(8, 6).requires_grad_() * 1.0, torch.randn(4, 6)
    out = linear(x, weight)
    x.relu_()
    out.sum().backward()
    with torch.inference_mode():
        x = torch.randn(8, 6)
    linear(x, weight, torch.zeros(4).requires_grad_()).sum().backward()
    assert products == ['forward', 'input_gradient', 'forward']


@pytest.mark.parametrize('lead', [(8,), (2, 4)], ids=str)
def test_the_result_may_be_changed_in_place(lead, products):
    x, weight, factor = torch.randn(*lead, 6), nn.Parameter(torch.randn(4, 6)), torch.ones(4).requires_grad_()
    linear(x, weight).detach_()
    with torch.no_grad():
        out = linear(x, weight)
    out *= factor
    out.sum().backward()
    assert factor.grad is not None and products == ['forward'] * 2


@pytest.mark.parametrize('counted', ('forward', 'backward'))
def test_checkpointing_under_a_mode_in_one_of_the_passes(counted, products):
    x, weight = torch.randn(8, 6).requires_grad_(), nn.Parameter(torch.randn(4, 6))
    mode = {True: lambda: FlopCounterMode(display=False), False: contextlib.nullcontext}
    for bias in (torch.randn(4), None):
        with mode[counted == 'forward']():
            out = checkpoint(lambda x, bias: linear(x, weight, bias).relu(), x, bias, use_reentrant=False)
        with mode[counted == 'backward']():
            out.sum().backward()
    assert weight.grad is not None and 'forward' in products


def test_compiled_autograd_takes_pytorch(products):
    layers = [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5, 4))]
    x = torch.randn(8, 6)
    out = linear(F.gelu(linear(x, layers[0])), layers[1]).sum()
    expected = torch.autograd.grad(out, layers, retain_graph=True)
    products.clear()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend='eager', fullgraph=True)):
        out.backward()
    torch.testing.assert_close([layer.grad for layer in layers], list(expected))
    assert not products


@pytest.mark.parametrize('K, N', [(8, 2**15), (2**15, 8), (1, 1)])
def test_few_features_take_pytorch(K, N, products, monkeypatch):
    monkeypatch.setattr(module, 'choice', lambda: processors.CHOICES['AuthenticAMD', 25])
    assert explain(linear, torch.randn(256, K), torch.randn(N, K)).reason == 'the product is small'


def test_expanded_gradients(products):
    x, weight = torch.randn(8, 6), torch.randn(4, 6)
    tensors = [t.requires_grad_() for t in (x, weight)]
    ours = torch.autograd.grad(linear(x, weight).mean(), tensors)
    torch.testing.assert_close(ours, torch.autograd.grad(F.linear(x, weight).mean(), tensors))
    assert products == ['forward', 'input_gradient', 'weight_gradient']


def test_a_conjugate_or_negative_view_is_resolved(products):
    x = torch.randn(8, 6, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(linear(x, weight := torch.randn(4, 6)), F.linear(x, weight))


def test_repeated_calls_are_equal_in_every_bit(products):
    x, weight = torch.randn(300, 200), torch.randn(100, 200)
    first = with_gradients(linear, x, weight)
    for _ in range(3):
        assert all(map(torch.equal, with_gradients(linear, x, weight), first))


def test_another_entry_into_onednn_is_not_called(products, monkeypatch):
    monkeypatch.setattr(eager, 'SCHEMA', 'mkldnn::_linear_pointwise(Tensor X) -> Tensor Y')
    eager.operator.cache_clear()
    try:
        assert eager.operator() is None
        x, weight = torch.randn(8, 6), torch.randn(4, 6)
        assert torch.equal(linear(x, weight), F.linear(x, weight)) and not products
        assert explain(linear, x, weight).reason == 'this PyTorch has another entry into oneDNN'
    finally:
        eager.operator.cache_clear()


CPUINFO = 'processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: 17\nmodel name\t: x\n'


@pytest.mark.parametrize(
    'cpuinfo, processor, expected',
    [
        (CPUINFO.format('AuthenticAMD', 25), '', ('AuthenticAMD', 25)),
        (CPUINFO.format('GenuineIntel', 6), 'x86_64', ('GenuineIntel', 6)),
        ('processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n', 'aarch64', ('unknown', 0)),
        ('', 'AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD', ('AuthenticAMD', 26)),
        ('', 'arm', ('unknown', 0)),
        ('', '', ('unknown', 0)),
    ],
)
def test_processors_are_known_by_vendor_and_family(cpuinfo, processor, expected):
    assert processors.identified(cpuinfo, processor) == expected


@pytest.mark.parametrize(
    'family, capability, expected',
    [(25, 'AVX512', 'AMD Zen 4'), (26, 'AVX512', 'AMD Zen 5'), (25, 'AVX2', None), (27, 'AVX512', None)],
)
def test_the_rule_for_a_processor(family, capability, expected, monkeypatch):
    monkeypatch.setattr(processors, '_cpuinfo', lambda: CPUINFO.format('AuthenticAMD', family))
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    found = processors.choice.__wrapped__()
    assert getattr(found, 'processor', None) == expected
    if expected is None:
        assert f'AuthenticAMD family {family}, {capability}' in found


def test_every_process_chooses_alike_with_any_number_of_threads():
    code = (
        'import torch; from timm_extra_kernels import explain, linear; torch.set_num_threads({});'
        'print(explain(linear, torch.randn(784, 384), torch.randn(384, 384)))'
    )
    found = {
        subprocess.run([sys.executable, '-c', code.format(n)], capture_output=True, text=True, check=True).stdout
        for n in (1, 2)
    }
    assert found == {f'{explain(linear, torch.randn(784, 384), torch.randn(384, 384))}\n'}


def test_the_example_is_a_call():
    args = cases.example(torch.device('meta'))
    assert linear(*args).shape == (4, 196, 1536)
    assert timm_extra_kernels.explain(linear, *args).operation == 'linear'
