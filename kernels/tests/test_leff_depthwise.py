"""What the tests of all operations leave open of LeFF's depthwise stage."""

import os

import pytest
import torch
import variants
from gates import BY_NAME, limit, mapped
from torch.utils._python_dispatch import TorchDispatchMode

from timm_extra_kernels import _dispatch, leff_depthwise, leff_depthwise_train
from timm_extra_kernels._cases import Case
from timm_extra_kernels.leff_depthwise import cases, naive, slower
from timm_extra_kernels.leff_depthwise_train import cases as train_cases
from timm_extra_kernels.leff_depthwise_train import naive as train_naive

AFFINES = ('scale1', 'shift1', 'scale2', 'shift2')
NORMS = ('gamma1', 'beta1', 'gamma2', 'beta2')


def call(function, names, args, **changes):
    """The public function on the operator's arguments."""
    x, weight, bias, H, W, *vectors = args
    named = dict(x=x, weight=weight, bias=bias, grid=(H, W), **dict(zip((*names, 'eps'), vectors, strict=False)))
    return function(**{**named, **changes})


def eval_args(dtype=torch.float32, **sizes):
    return cases.inputs(Case('', dict(B=2, H=3, W=4, C=5, P=1) | sizes), dtype, torch.device('cpu'))


def train_args(dtype=torch.float32, **sizes):
    return train_cases.inputs(Case('', dict(B=2, H=3, W=4, C=5, P=1) | sizes), dtype, torch.device('cpu'))


@pytest.mark.parametrize('P', [0, 1, 3])
@pytest.mark.parametrize('function, names, make', [
    (leff_depthwise, AFFINES, (eval_args, naive.forward)),
    (leff_depthwise_train, NORMS, (train_args, train_naive.forward)),
])  # fmt: skip
def test_any_odd_kernel_has_an_eager_form_with_gradients(P, function, names, make):
    args = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in make[0](torch.float64, P=P)]
    leaves = [a for a in args if isinstance(a, torch.Tensor)]
    results = []
    for out in (call(function, names, args), make[1](*args)):
        first = out if isinstance(out, torch.Tensor) else out[0]
        results.append([out, torch.autograd.grad(first.cos().sum(), leaves)])
    torch.testing.assert_close(results[0][1], results[1][1])
    torch.testing.assert_close(list(results[0][0]), list(results[1][0]))


def test_statistics_have_no_gradient():
    args = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in train_args()]
    y, *statistics = call(leff_depthwise_train, NORMS, args)
    assert y.requires_grad and len(statistics) == 4
    assert not any(s.requires_grad for s in statistics)


def test_half_precision_tokens_keep_the_statistics_in_float32():
    outs = call(leff_depthwise_train, NORMS, train_args(torch.bfloat16))
    assert [t.dtype for t in outs] == [torch.bfloat16] + 4 * [torch.float32]


@pytest.mark.parametrize('function, names, make', [
    (leff_depthwise, AFFINES, eval_args), (leff_depthwise_train, NORMS, train_args),
])  # fmt: skip
def test_parameters_may_stay_in_float32(function, names, make, device, launches):
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in make()]
    leaves = [a.requires_grad_() for a in args[1:] if isinstance(a, torch.Tensor)]
    x = args[0].bfloat16().requires_grad_()
    out = call(function, names, [x, *args[1:]])
    y = out if isinstance(out, torch.Tensor) else out[0]
    grads = torch.autograd.grad(y.float().sum(), [x, *leaves])
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.bfloat16] + len(leaves) * [torch.float32]
    assert launches


@pytest.mark.parametrize('where', ['x', 'bias'])
def test_not_a_number_reaches_the_channel(where, device, launches):
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in eval_args()]
    args[0 if where == 'x' else 2][..., 0] = float('nan')
    y = call(leff_depthwise, AFFINES, args)
    assert y[..., 0].isnan().all() and y[..., 1:].isfinite().all()
    assert launches


def test_strides_do_not_matter(device, launches):
    x, *rest = (a.to(device) if isinstance(a, torch.Tensor) else a for a in eval_args())
    expected = call(leff_depthwise, AFFINES, [x, *rest])
    strided = x.mT.contiguous().mT
    assert torch.equal(call(leff_depthwise, AFFINES, [strided, *rest]), expected)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, 1:]
    assert torch.equal(call(leff_depthwise, AFFINES, [padded, *rest]), expected)
    assert launches


@pytest.mark.parametrize('op, make', [('leff_depthwise', eval_args), ('leff_depthwise_train', train_args)])
def test_operators_keep_the_rules(op, make):
    args = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in make()]
    torch.library.opcheck(getattr(torch.ops.timm_extra, op).default, tuple(args))


@pytest.mark.parametrize('parameters', [torch.float32, None])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('op', ['leff_depthwise', 'leff_depthwise_train'])
def test_kernels_give_every_gradient_memory_and_dtype_of_its_own(op, dtype, parameters, device, monkeypatch):
    monkeypatch.setattr(_dispatch, 'why_not', _dispatch.unsupported)
    spec, make = BY_NAME[op], eval_args if op == 'leff_depthwise' else train_args
    x, *rest = mapped(lambda t: t.to(device), make(dtype, H=2, W=3, C=3))
    args = [x, *mapped(lambda t: t.to(parameters or dtype), rest)]
    outs = spec.operator(*args)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    backward = spec.backward_args(grad, args, outs)
    torch.library.opcheck(spec.operator.default, tuple(args), test_utils=('test_schema', 'test_faketensor'))
    torch.library.opcheck(
        spec.backward_operator.default, tuple(backward), test_utils=('test_schema', 'test_faketensor')
    )
    exact_args = mapped(lambda t: t.double(), args)
    exact = spec.eager.backward(*spec.backward_args(grad.double(), exact_args, spec.eager.forward(*exact_args)))
    found, eager = spec.backward_operator(*backward), spec.eager.backward(*backward)
    for a, b, c in zip(found, eager, exact, strict=True):
        assert a.dtype == b.dtype and a.is_contiguous()
        # rounding of the result, and of the terms of a sum over all tokens, which are of order 1 and may cancel
        floor = (
            4 * torch.finfo(dtype).eps * max(1.0, c.abs().max()) + x[..., 0].numel() * torch.finfo(torch.float32).eps
        )
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + floor


class Dispatched(TorchDispatchMode):
    """Notes the operators of PyTorch that would compute something: no views, no memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not view and 'empty' not in func._schema.name:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('op, forward, backward', [('leff_depthwise', 1, 3), ('leff_depthwise_train', 4, 4)])
@pytest.mark.parametrize('parameters', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('B', [1, 64])
def test_launches_are_few_at_any_batch(op, forward, backward, parameters, B, monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    launched = []
    kind = InterpretedFunction if os.environ.get('TRITON_INTERPRET') == '1' else JITFunction
    monkeypatch.setattr(kind, 'run', lambda self, *args, **kwargs: launched.append(self.__name__))
    spec = BY_NAME[op]
    x, *rest = spec.inputs(Case('', dict(B=B, H=24, W=24, C=1536, P=1)), torch.bfloat16, torch.device('meta'))
    args = [x, *mapped(lambda t: t.to(parameters), rest)]
    with Dispatched() as dispatched:
        outs = spec.kernel.forward(*args)
    assert len(launched) + len(dispatched.names) == forward, launched + dispatched.names
    launched.clear()
    with Dispatched() as dispatched:
        spec.kernel.backward(*spec.backward_args(torch.empty_like(x), args, outs))
    assert len(launched) + len(dispatched.names) == backward, launched + dispatched.names


@pytest.mark.parametrize('P', [1, 2])
@pytest.mark.parametrize('op', ['leff_depthwise', 'leff_depthwise_train'])
def test_two_compiled_forms_serve_all_sizes(op, P):
    grids = [(1 + 7 * W % 32, W) for W in range(1, 33)] + [(1, 1), (1, 16), (16, 1), (32, 32)]
    channels, batches = (1536, 1, 16, 31, 192), (1, 16, 7, 64)
    sizes = [dict(B=batches[i % 4], H=H, W=W, C=channels[i % 5], P=P) for i, (H, W) in enumerate(grids + grids[::-1])]
    forms = variants.counted(op, 'bfloat16', sizes, parameters='float32', offsets=[0, 1, 8])
    assert len(forms) >= 4 and max(forms.values()) <= 2, forms


def test_what_does_not_fit_is_named():
    args, norms = eval_args(), train_args()
    with pytest.raises(ValueError, match='3·5'):
        call(leff_depthwise, AFFINES, args, grid=(3, 5))
    with pytest.raises(ValueError, match=r'weight .*\(5, 1, 2, 2\)'):
        call(leff_depthwise, AFFINES, args, weight=torch.ones(5, 1, 2, 2))
    with pytest.raises(ValueError, match=r'shift2 must be \(5,\), got \(4,\)'):
        call(leff_depthwise, AFFINES, args, shift2=torch.ones(4))
    with pytest.raises(ValueError, match=r'gamma1 .*int64'):
        call(leff_depthwise_train, NORMS, norms, gamma1=torch.ones(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'more than one token, got x \(1, 1, 5\)'):
        call(leff_depthwise_train, NORMS, norms, x=torch.ones(1, 1, 5), grid=(1, 1))


def test_the_limit_names_the_kernel_size():
    spec, train = BY_NAME['leff_depthwise'], BY_NAME['leff_depthwise_train']
    assert '7×7' in limit(spec, 'forward', eval_args(P=3))
    assert '7×7' in limit(spec, 'backward', spec.backward_args(torch.empty(2, 12, 5), eval_args(P=3), None))
    assert '1×1' in limit(train, 'forward', train_args(P=0))
    assert limit(spec, 'forward', eval_args(P=2)) is None


def test_one_compiled_graph_serves_grids_of_any_size():
    args = eval_args()
    graphs = []

    def run(x, H, W):
        return call(leff_depthwise, AFFINES, [x, *args[1:3], H, W, *args[5:]])

    def backend(graph, example):
        graphs.append(graph)
        return graph

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=backend)
    for H, W in ((3, 4), (5, 7), (6, 2)):
        x = torch.randn(2, H * W, 5)
        torch.testing.assert_close(compiled(x, H, W), run(x, H, W))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    'B, grid, dtype, kernel',
    [
        (1, (14, 14), torch.bfloat16, True),  # 13 launches of PyTorch are 26 waits, 15 rows fewer
        (1, (14, 14), torch.float32, False),
        (1, (9, 9), torch.float32, True),
        (3, (14, 14), torch.float32, True),  # 144 programs
        (1, (26, 14), torch.bfloat16, False),
    ],
)
def test_few_programs_that_walk_over_many_rows_take_pytorch(B, grid, dtype, kernel):
    x = torch.empty(B, grid[0] * grid[1], 1536, dtype=dtype, device='meta')
    weight = torch.empty(1536, 1, 3, 3, device='meta')
    reason = slower(x=x, weight=weight, H=grid[0], W=grid[1], processors=132)
    assert (reason is None) == kernel
    if not kernel:
        assert reason == f'48 programs would walk over {grid[0]} rows each and leave some of 132 processors idle'
