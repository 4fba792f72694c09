"""transformers' Perceiver IO with random weights: what tests and benchmarks compare with."""

from typing import Any, Tuple

import timm
import torch
import torch.nn.functional as F
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


def transformers_flow(size: Tuple[int, int], **config: Any) -> nn.Module:
    """transformers' optical flow for one size, with random weights in which everything shows.

    Args:
        size: Height and width, which it takes alone.
        **config: Entries of `PerceiverConfig` that differ from those of DeepMind's model.

    Returns:
        Model in evaluation mode. It takes `neighbourhoods` and gives (B, height, width, 2) in units of 20 pixels.
    """
    import transformers

    torch.manual_seed(0)
    published = dict(num_latents=2048, d_latents=512, num_blocks=1, num_self_attends_per_block=24)
    heads = dict(num_self_attention_heads=16, num_cross_attention_heads=1, attention_probs_dropout_prob=0.0)
    config = transformers.PerceiverConfig(train_size=list(size), **{**published, **heads, **config})
    return randomize(transformers.PerceiverForOpticalFlow(config).eval())


def neighbourhoods(frames: torch.Tensor) -> torch.Tensor:
    """The 3×3 pixels around each pixel (B, 2, 27, H, W) of frames (B, 3, 2, H, W), as transformers takes them."""
    B, _, T, H, W = frames.shape
    windows = F.pad(frames, (1, 1, 1, 1)).unfold(3, 3, 1).unfold(4, 3, 1)  # (B, 3, 2, H, W, 3, 3)
    return windows.permute(0, 2, 5, 6, 1, 3, 4).reshape(B, T, 27, H, W)


def flow_with_weights_of(other: nn.Module, **kwargs: Any) -> nn.Module:
    """Our `perceiver_io_flow` with the weights of transformers' for the same size, in evaluation mode."""
    size, overlay = tuple(other.config.train_size), dict(state_dict=other.state_dict(), hf_hub_id=None)
    kwargs = dict(dict(img_size=size, max_resolution=size), **kwargs)
    return timm.create_model('perceiver_io_flow', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()
