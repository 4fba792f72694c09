"""Perceiver and Perceiver IO as timm's registered models; the classes are in model.py and perceiver_io.py."""

from functools import partial
from typing import Any, Dict, Tuple, Type

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, generate_default_cfgs, register_model

from timm_extra._timm import update_model_args

from .._build import build_model
from .checkpoint_filter import checkpoint_filter_fn
from .model import Perceiver
from .perceiver_io import PerceiverIO
from .stem import STEMS, PixelStem

DECODER_ARGS = ('num_queries', 'query_dim', 'decoder_residual', 'decoder_mlp')


def _create_perceiver(
    model_cls: Type[Perceiver], variant: str, pretrained: bool, model_args: Dict[str, Any], kwargs: Dict[str, Any]
) -> Perceiver:
    model_cls, kwargs = _from_older_folder(model_cls, model_args, kwargs)
    out_indices = kwargs.pop('out_indices', 3)
    saved = isinstance(kwargs.get('pretrained_cfg'), (dict, PretrainedCfg))  # by us: it says itself what it needs
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    hosted = not saved and not {'file', 'state_dict'} & set(overlay)
    kwargs = _with_own_args(model_args, kwargs)
    if pretrained and hosted and kwargs.get('in_chans') == 1 and kwargs.get('stem', 'pixels') == 'pixels':
        kwargs.setdefault('grey_chans', 3)
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
    return model


def _from_older_folder(
    model_cls: Type[Perceiver], model_args: Dict[str, Any], kwargs: Dict[str, Any]
) -> Tuple[Type[Perceiver], Dict[str, Any]]:
    """Arguments in today's words, where timm read them from a folder that an older version saved.

    There `input_shape` was the size of any inputs and went before `img_size`, a Perceiver with `decoder` was Perceiver
    IO, and arguments of a decoder or a convolution that there was not had no effect.
    """
    saved = kwargs.get('pretrained_model_args') or {}
    old = {k for k, v in saved.items() if k in kwargs and kwargs[k] == v}  # the others are the caller's
    kwargs = dict(kwargs)
    if 'input_shape' in old:
        shape = kwargs.pop('input_shape')
        if 'img_size' in old or 'img_size' not in kwargs:
            kwargs['img_size'] = shape
    if 'decoder' in old and kwargs.pop('decoder'):
        model_cls = PerceiverIO
        kwargs.setdefault('num_cross_attends', None)  # in all blocks
    unused = set() if issubclass(model_cls, PerceiverIO) else {*DECODER_ARGS}
    if dict(model_args, **kwargs).get('stem') not in ('conv', 'conv1x1'):
        unused.add('stem_chs')
    return model_cls, {k: v for k, v in kwargs.items() if k not in unused & old}


def _with_own_args(model_args: Dict[str, Any], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of a registered model with the caller's, less those of its own that do not go with the caller's."""
    own = dict(model_args)
    if 'stem' in kwargs and kwargs['stem'] != own.get('stem', 'pixels'):
        own = {k: v for k, v in own.items() if k not in ('stem_chs', 'patch_size')}
    if 'img_size' not in model_args and len(_sizes(dict(own, **kwargs))) != 2:
        own.pop('max_resolution', None)  # is of images: others take the highest frequency from their own size
    return dict(own, **kwargs)


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


TOY = dict(num_bands=8, num_latents=16, latent_dim=64, num_blocks=3, block_depth=2, num_heads=4, max_resolution=224)


@register_model
def test_perceiver(pretrained: bool = False, **kwargs: Any) -> Perceiver:
    """A toy size for tests."""
    return _create_perceiver(Perceiver, 'test_perceiver', pretrained, TOY, kwargs)


@register_model
def test_perceiver_io(pretrained: bool = False, **kwargs: Any) -> PerceiverIO:
    """A toy size for tests."""
    return _create_perceiver(PerceiverIO, 'test_perceiver_io', pretrained, TOY, kwargs)
