"""Models that older versions saved: their arguments in today's words."""

from typing import Any, Dict, Tuple

from .stems import STEM_OPTIONS

DECODER_ARGS = ('num_queries', 'query_dim', 'decoder_residual', 'decoder_mlp')


def arguments_of_folder(
    model_args: Dict[str, Any], kwargs: Dict[str, Any], decodes: bool
) -> Tuple[Dict[str, Any], bool]:
    """Arguments in today's words, where timm read them from a folder that an older version saved.

    There `input_shape` was the size of any inputs and went before `img_size`, a Perceiver with `decoder` was Perceiver
    IO, and arguments of a decoder or a convolution that there was not had no effect.

    Args:
        model_args: Arguments of the registered model.
        kwargs: Arguments of its entry point.
        decodes: Whether the registered model is a Perceiver IO.

    Returns:
        The arguments, and whether the model is a Perceiver IO.
    """
    saved = kwargs.get('pretrained_model_args') or {}
    old = {k for k, v in saved.items() if k in kwargs and kwargs[k] == v}  # the others are the caller's
    kwargs = dict(kwargs)
    if 'input_shape' in old:
        shape = kwargs.pop('input_shape')
        if 'img_size' in old or 'img_size' not in kwargs:
            kwargs['img_size'] = shape
    if 'decoder' in old and kwargs.pop('decoder'):
        decodes = True
        kwargs.setdefault('num_cross_attends', None)  # in all blocks
    unused = set() if decodes else {*DECODER_ARGS}
    if 'stem_chs' not in STEM_OPTIONS.get(dict(model_args, **kwargs).get('stem', 'pixels'), ()):
        unused.add('stem_chs')
    return {k: v for k, v in kwargs.items() if k not in unused & old}, decodes
