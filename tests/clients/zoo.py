"""The models that clients are tried on: one of timm's, to compare with, and a small one of each family."""

import timm
import torch
from torch import nn

import timm_extra  # noqa: F401  registers the models

TIMM = 'test_vit'
OURS = ('test_ceit', 'test_perceiver', 'test_perceiver_io', 'test_glom')
MODELS = (TIMM, *OURS)
SIZES = {'test_vit': 160, 'test_ceit': 160, 'test_perceiver': 64, 'test_perceiver_io': 64, 'test_glom': 56}
CLASSES = 5


def make(name, **kwargs):
    """A model in evaluation mode none of whose weights and running statistics are zero, always the same ones."""
    torch.manual_seed(0)
    return stir(timm.create_model(name, **dict(dict(num_classes=CLASSES), **kwargs))).eval()


@torch.no_grad()
def stir(model):
    """Move what models begin with at zero or one: what is left out of a computation is then missed in its result."""
    for name, parameter in model.named_parameters():
        if name.startswith('head.'):
            parameter.normal_(std=0.3)
        elif parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def images(name, number=2, seed=1):
    """Images (number, 3, H, W) of the size that a model is tried with."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, SIZES[name], SIZES[name], generator=generator)


def layers(model, *kinds):
    """Names of a model's modules of some kinds, but for its classifier."""
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name != 'head']


def idle(name, parameter):
    """Whether a parameter has no part in a model's logits and so a gradient of zero.

    CeiT's classifier reads the class token alone, in which the last block's LeFF has no part.
    """
    return name == 'test_ceit' and 'blocks.5.leff.' in parameter
