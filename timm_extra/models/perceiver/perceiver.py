"""Perceiver and Perceiver IO: a few latents attend to very many inputs of any kind.

Papers: `Perceiver: General Perception with Iterative Attention` by Andrew Jaegle, Felix Gimeno, Andrew Brock, Andrew
Zisserman, Oriol Vinyals and Joao Carreira, https://arxiv.org/abs/2103.03206, and `Perceiver IO: A General Architecture
for Structured Inputs & Outputs` by Andrew Jaegle et al., https://arxiv.org/abs/2107.14795

Official code: https://github.com/google-deepmind/deepmind-research/tree/master/perceiver (Apache-2.0), whose behaviour
these models have. `compat='hf'` computes what transformers computes, `compat='lucidrains'` what
https://github.com/lucidrains/perceiver-pytorch (MIT) does.
"""

from functools import partial
from typing import Any, Dict, Tuple, Type

from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import PretrainedCfg, generate_default_cfgs, register_model

from timm_extra._timm import update_model_args

from .._build import build_model
from .checkpoint_filter import checkpoint_filter_fn
from .older_folders import arguments_of_folder
from .perceiver_io import PerceiverIO
from .perceiver_v1 import Perceiver
from .stems import STEM_OPTIONS, STEMS, PixelStem

__all__ = ['Perceiver', 'PerceiverIO']


def _create_perceiver(
    model_cls: Type[Perceiver], variant: str, pretrained: bool, model_args: Dict[str, Any], kwargs: Dict[str, Any]
) -> Perceiver:
    kwargs, decodes = arguments_of_folder(model_args, kwargs, issubclass(model_cls, PerceiverIO))
    model_cls = PerceiverIO if decodes else model_cls
    last = min(3, dict(model_args, **kwargs).get('num_blocks', 8))
    out_indices = kwargs.pop('out_indices', last)
    saved = isinstance(kwargs.get('pretrained_cfg'), (dict, PretrainedCfg))  # by us: it says itself what it needs
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    hosted = not saved and not {'file', 'state_dict'} & set(overlay)
    kwargs = _with_own_args(model_args, kwargs)
    if pretrained and hosted and kwargs.get('in_chans') == 1 and kwargs.get('stem', 'pixels') == 'pixels':
        kwargs.setdefault('grey_chans', 3)
    if kwargs.get('stem') == 'frames' and len(_given(kwargs)) == 3:
        frames, *size = kwargs['img_size']
        if frames == kwargs.get('num_frames', 2):  # any other is refused by the constructor
            kwargs['img_size'] = tuple(size)
    build = model_cls
    if len(_sizes(kwargs)) != 2:  # timm knows the sizes of images, as height and width
        build = partial(model_cls, img_size=kwargs.pop('img_size'))
        overlay['fixed_input_size'] = False
    model = build_model(
        build,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_cfg_overlay=overlay,
        feature_cfg=dict(out_indices=out_indices, feature_cls='getter', output_fmt='NLC'),
        **kwargs,
    )
    if kwargs.get('grey_chans'):
        update_model_args(model, grey_chans=kwargs['grey_chans'])  # chosen here: saving would not know
    if getattr(model, 'query_resolution', None):  # frequencies stay those of the weights
        update_model_args(model, query_max_resolution=list(model.query_resolution))
    return model


def _with_own_args(model_args: Dict[str, Any], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of a registered model with the caller's, less those of its own that do not go with the caller's."""
    own = dict(model_args)
    if 'stem' not in kwargs and isinstance(kwargs.get('img_size'), int) and isinstance(own.get('img_size'), tuple):
        kwargs = dict(kwargs, img_size=(kwargs['img_size'],) * len(own['img_size']))  # as in `set_input_size`
    if 'stem' in kwargs and kwargs['stem'] != own.get('stem', 'pixels'):
        own = {k: v for k, v in own.items() if k not in set().union(*STEM_OPTIONS.values())}
    if 'img_size' not in model_args and len(_sizes(dict(own, **kwargs))) != 2:
        own.pop('max_resolution', None)  # is of images: others take the highest frequency from their own size
    return dict(own, **kwargs)


def _given(kwargs: Dict[str, Any]) -> Tuple[int, ...]:
    """Numbers of `img_size` as they are given."""
    size = kwargs.get('img_size', ())
    return (size,) if isinstance(size, int) else tuple(size)


def _sizes(kwargs: Dict[str, Any]) -> Tuple[int, ...]:
    """Number per axis of the inputs that a model with these arguments takes."""
    stem = STEMS.get(kwargs.get('stem', 'pixels'), PixelStem)  # an unknown one is refused by the constructor
    return stem.sizes(kwargs['img_size']) if 'img_size' in kwargs else (0, 0)


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'min_input_size': (3, 64, 64),
        'pool_size': None,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'fixed_input_size': False,
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': (),
        'classifier': 'head',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2103.03206',
        'paper_name': 'Perceiver: General Perception with Iterative Attention',
        'origin_url': 'https://github.com/google-deepmind/deepmind-research/tree/master/perceiver',
        **kwargs,
    }


def _io_cfg(**kwargs: Any) -> Dict[str, Any]:
    return _cfg(
        paper_ids='arXiv:2107.14795',
        paper_name='Perceiver IO: A General Architecture for Structured Inputs & Outputs',
        **kwargs,
    )


# DeepMind puts the parameters under CC BY 4.0, though the cards on the Hub say apache-2.0
_deepmind = partial(_io_cfg, license='cc-by-4.0')
_other = partial(_cfg, mean=(0.0,), std=(1.0,), crop_pct=1.0, min_input_size=None)

default_cfgs = generate_default_cfgs(
    {
        'perceiver_base': _cfg(),
        'perceiver_small': _cfg(),
        'perceiver_io_base.deepmind_in1k': _deepmind(hf_hub_id='deepmind/vision-perceiver-fourier'),
        'perceiver_io_base_learned.deepmind_in1k': _deepmind(
            hf_hub_id='deepmind/vision-perceiver-learned', first_conv='stem.conv', fixed_input_size=True
        ),
        'perceiver_io_base_conv.deepmind_in1k': _deepmind(
            hf_hub_id='deepmind/vision-perceiver-conv', first_conv='stem.conv'
        ),
        'perceiver_io_small': _io_cfg(),
        'naflex_perceiver_small': _cfg(),
        'naflex_perceiver_io_small': _io_cfg(),
        'perceiver_io_flow.deepmind_autoflow': _deepmind(
            hf_hub_id='deepmind/optical-flow-perceiver',
            input_size=(3, 368, 496),
            num_classes=2,
            crop_pct=1.0,
            mean=IMAGENET_INCEPTION_MEAN,
            std=IMAGENET_INCEPTION_STD,
        ),
        'perceiver_audio': _other(input_size=(1, 1, 61440), num_classes=527),
        'perceiver_pointcloud': _other(input_size=(1, 2048, 3), num_classes=40),
        'test_perceiver': _cfg(),
        'test_perceiver_io': _io_cfg(),
    }
)


@register_model
def perceiver_base(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """The ImageNet model of the Perceiver paper."""
    return _create_perceiver(Perceiver, 'perceiver_base', pretrained, dict(max_resolution=224), kwargs)


@register_model
def perceiver_small(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """A quarter of the latents' area and half of the blocks, with four cross-attends."""
    model_args = dict(max_resolution=224, num_latents=256, latent_dim=512, num_blocks=4)
    return _create_perceiver(Perceiver, 'perceiver_small', pretrained, model_args, kwargs)


@register_model
def perceiver_io_base(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's ImageNet classifier on pixels with Fourier features."""
    return _create_perceiver(PerceiverIO, 'perceiver_io_base', pretrained, dict(max_resolution=224), kwargs)


@register_model
def perceiver_io_base_learned(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's ImageNet classifier on a 1×1 convolution with learned positions."""
    model_args = dict(
        stem='conv1x1', stem_chs=256, pos_embed='learned', pos_dim=256, pos_proj_dim=256, decoder_residual=False
    )
    return _create_perceiver(PerceiverIO, 'perceiver_io_base_learned', pretrained, model_args, kwargs)


@register_model
def perceiver_io_base_conv(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's ImageNet classifier on a convolution and max-pooling with Fourier features."""
    model_args = dict(stem='conv', stem_chs=64, max_resolution=56)
    return _create_perceiver(PerceiverIO, 'perceiver_io_base_conv', pretrained, model_args, kwargs)


@register_model
def perceiver_io_small(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """A quarter of the latents' area and half of the blocks."""
    model_args = dict(max_resolution=224, num_latents=256, latent_dim=512, num_blocks=4)
    return _create_perceiver(PerceiverIO, 'perceiver_io_small', pretrained, model_args, kwargs)


NAFLEX_SMALL = dict(num_latents=256, latent_dim=512, num_blocks=4, stem='patch_embed', stem_chs=256, patch_size=16)
# The highest frequency resolves 32 × 32 patches, the 1,024 tokens that timm's training has of an image at most
NAFLEX_SMALL.update(num_bands=16, max_resolution=32)


@register_model
def naflex_perceiver_small(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """`perceiver_small` on patches of 16×16 pixels, for images of different sizes in one batch."""
    return _create_perceiver(Perceiver, 'naflex_perceiver_small', pretrained, NAFLEX_SMALL, kwargs)


@register_model
def naflex_perceiver_io_small(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """`perceiver_io_small` on patches of 16×16 pixels, for images of different sizes in one batch."""
    return _create_perceiver(PerceiverIO, 'naflex_perceiver_io_small', pretrained, NAFLEX_SMALL, kwargs)


@register_model
def perceiver_io_flow(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """DeepMind's optical flow: two frames (B, 3, 2, H, W) to the flow of the first (B, 2, H, W) in pixels, x and y.

    Frames are normalised to −1 … 1, by the mean and standard deviation of the configuration. Any size is one pass.
    """
    model_args = dict(
        img_size=(368, 496),
        stem='frames',
        max_resolution=(368, 496),
        num_latents=2048,
        latent_dim=512,
        num_blocks=1,
        block_depth=24,
        num_heads=16,
        query_type='inputs',
        decoder_residual=False,
        out_scale=20 / 100,  # the decoder's `rescale_factor` of 100, and 20 pixels for a flow of 1 in training
    )
    return _create_perceiver(PerceiverIO, 'perceiver_io_flow', pretrained, model_args, kwargs)


@register_model
def perceiver_audio(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """Raw audio as in the paper's AudioSet experiments: 1.28 s at 48 kHz as 480 segments of 128 samples.

    Latents and depth are those of the ImageNet model, with one cross-attend.
    """
    model_args = dict(
        img_size=(61440,), in_chans=1, stem='patches', patch_size=(128,), num_bands=192, num_cross_attends=1
    )
    return _create_perceiver(Perceiver, 'perceiver_audio', pretrained, model_args, kwargs)


@register_model
def perceiver_pointcloud(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """Point clouds as in the paper's ModelNet40 experiments: two cross-attends, frequencies to 1,120."""
    model_args = dict(img_size=2048, in_chans=3, stem='points', max_resolution=2240, num_blocks=2)
    return _create_perceiver(Perceiver, 'perceiver_pointcloud', pretrained, model_args, kwargs)


SMALL = dict(num_bands=8, num_latents=16, latent_dim=64, num_blocks=3, block_depth=2, num_heads=4, max_resolution=224)


@register_model
def test_perceiver(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """A test model."""
    return _create_perceiver(Perceiver, 'test_perceiver', pretrained, SMALL, kwargs)


@register_model
def test_perceiver_io(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """A test model."""
    return _create_perceiver(PerceiverIO, 'test_perceiver_io', pretrained, SMALL, kwargs)
