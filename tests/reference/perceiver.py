"""transformers' Perceiver IO image classifiers with random weights: what tests and benchmarks compare with."""

from typing import Any

import timm
import torch
from torch import nn

import timm_extra  # noqa: F401

CLASSIFIERS = {  # names of transformers' classes
    'perceiver_io_base': 'PerceiverForImageClassificationFourier',
    'perceiver_io_base_learned': 'PerceiverForImageClassificationLearned',
    'perceiver_io_base_conv': 'PerceiverForImageClassificationConvProcessing',
}
PUBLISHED = dict(
    image_size=224,
    num_latents=512,
    d_latents=1024,
    num_blocks=8,
    num_self_attends_per_block=6,
    num_self_attention_heads=8,
    num_cross_attention_heads=1,
    num_labels=1000,
    attention_probs_dropout_prob=0.0,
)


def randomize(model: nn.Module) -> nn.Module:
    """Draw all parameters of a Perceiver, ours or another's, such that a change of any shows in its outputs."""
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim > 1 and not key.endswith(('latents', 'embeddings')):
                p.normal_(0, p[0].numel() ** -0.5)
            elif 'norm' in key and key.endswith('weight'):
                p.normal_(1, 0.2)
            else:
                p.normal_(0, 0.3)
    return model


def transformers_classifier(name: str, **config: Any) -> nn.Module:
    """The counterpart of a registered model, with random weights in which everything shows.

    Args:
        name: One of `CLASSIFIERS`.
        **config: Entries of `PerceiverConfig` that differ from those published.

    Returns:
        Classifier in evaluation mode.
    """
    import transformers  # not above: what needs our models alone works without it

    torch.manual_seed(0)
    config = transformers.PerceiverConfig(**dict(PUBLISHED, **config))
    model = randomize(getattr(transformers, CLASSIFIERS[name])(config).eval())
    with torch.no_grad():
        for key, b in model.named_buffers():
            if key.endswith('running_mean'):
                b.normal_(0, 0.3)
            elif key.endswith('running_var'):
                b.uniform_(0.5, 2)
    return model


def with_weights_of(other: nn.Module, name: str, **kwargs: Any) -> nn.Module:
    """Our model of that name with a classifier's weights, in evaluation mode."""
    overlay = dict(state_dict=other.state_dict(), num_classes=other.config.num_labels)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()
