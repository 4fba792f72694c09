"""Linear layers on CPUs: the products of one through oneDNN and MKL, and timm's DeiT before and after `accelerate`."""

from functools import partial
from typing import Callable, List

import timm
import torch
import torch.nn.functional as F

import timm_extra
from timm_extra_kernels._cases import Case as OpCase
from timm_extra_kernels.linear import eager
from timm_extra_kernels.linear.cases import MODELS, inputs, multiply_adds

from ..case import OURS, Call, Case, Implementation, Ready, images
from ..roofline import Work

TOLERANCE = 2e-6  # of a product's largest value
SCALE = 1e3  # of gradients, to be of the size of one
PRODUCTS = {  # through oneDNN and MKL, and which of input, weight and gradient of the output they take
    'output': (lambda x, weight: eager.forward(x, weight, None), F.linear, 'xw'),
    'input-gradient': (eager.input_gradient, torch.matmul, 'gw'),
    'weight-gradient': (eager.weight_gradient, lambda grad, x: grad.t() @ x, 'gx'),
}


def _product(product: str, size: OpCase, library: int, device: str) -> Ready:
    x, weight, _ = inputs(size, torch.float32, torch.device(device))
    given = dict(x=x, w=weight, g=F.linear(x, weight))
    operands = [given[name] for name in PRODUCTS[product][2]]
    largest = PRODUCTS[product][1](*operands).abs().max()
    call = torch.inference_mode()(partial(PRODUCTS[product][library], *operands))
    return Ready(call, lambda: call() / largest)


def _products(size: OpCase) -> List[Case]:
    M, K, N = (size.sizes[name] for name in 'MKN')
    work = Work(bytes=4.0 * (M * K + N * K + M * N), flops=2.0 * multiply_adds(size), special=0.0)
    cases = []
    for product in PRODUCTS:
        words = f'{product.replace("-", " ")} of {M}×{K} by {K}×{N}, float32, as in {size.name}, through'
        libraries = {
            OURS: Implementation(f'{words} oneDNN', partial(_product, product, size, 0)),
            'mkl': Implementation(f'{words} MKL', partial(_product, product, size, 1)),
        }
        cases.append(Case(f'linear/{M}x{K}x{N}/{product}', libraries, TOLERANCE, work=work))
    return cases


def _deit(accelerated: bool, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model('deit_small_patch16_224').to(device)
    return timm_extra.accelerate(model) if accelerated else model


def _inference(accelerated: bool, device: str) -> Call:
    model, x = _deit(accelerated, device).eval(), images(4, device)
    return torch.inference_mode()(lambda: model(x))


def _step(accelerated: bool, device: str) -> Call:
    """Forward in training mode and backward; the gradient of what first sees the image."""
    model, x = _deit(accelerated, device).train(), images(4, device)

    def call() -> torch.Tensor:
        model.zero_grad()
        model(x).square().mean().backward()
        return SCALE * model.patch_embed.proj.weight.grad

    return call


def _model(what: str, words: str, run: Callable[[bool, str], Call]) -> Case:
    setting = f'deit_small_patch16_224 of timm, {words}batch 4 at 224 × 224'
    implementations = {
        OURS: Implementation(f'{setting}, after timm_extra.accelerate', partial(run, True)),
        'itself': Implementation(f'{setting}, as created', partial(run, False)),
    }
    return Case(f'accelerate/deit_small/{what}', implementations, 1e-4)


CASES: List[Case] = [
    _model('inference', '', _inference),
    _model('training-step', 'forward in training mode and backward, ', _step),
    *(case for size in MODELS if eager.operator() is not None for case in _products(size)),
]
