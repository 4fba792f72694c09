"""fvcore: multiply-adds of every operator."""

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from tests.clients.zoo import MODELS, images, make

PRODUCTS = ('linear', 'addmm', 'mm', 'matmul', 'bmm', 'baddbmm', 'conv', 'einsum')


@pytest.fixture
def plain_attention():
    """Attention in single operators: fvcore knows no fused one."""
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


@pytest.mark.parametrize('name', MODELS)
def test_products_are_counted_as_pytorch_counts_them(name, plain_attention):
    model, x = make(name), images(name, 1)
    analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
    found = sum(count for operator, count in analysis.by_operator().items() if operator in PRODUCTS)
    traced = torch.jit.trace(model, x)
    with FlopCounterMode(display=False) as counter:
        traced(x)
    assert found == counter.get_total_flops() // 2
    assert not [name for name in analysis.unsupported_ops() if 'timm_extra' in name or 'PythonOp' in name]
