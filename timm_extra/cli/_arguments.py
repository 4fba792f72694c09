"""Arguments that several verbs share, and what they name: a model, a data set."""

import argparse
import contextlib
import os
from typing import Any, Callable, Dict, Iterator


def model_arguments(parser: argparse.ArgumentParser) -> None:
    from timm.utils import ParseKwargs

    parser.add_argument('--model', required=True, help='name of a timm model, or local-dir:FOLDER, hf-hub:OWNER/NAME')
    parser.add_argument('--pretrained', action='store_true', help='start from its published weights')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='NAME=VALUE')
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help="default: the model's")
    parser.add_argument('--mean', type=float, nargs='+', help="per channel (default: the model's)")
    parser.add_argument('--std', type=float, nargs='+', help="per channel (default: the model's)")


def checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--checkpoint', metavar='FILE', help='weights in a file or folder, of any known layout')


def data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data-dir', help='folder of images, or of the data set')
    parser.add_argument('--dataset', default='', help="timm's name of a data set, as torch/cifar10 (default: a folder)")
    parser.add_argument('--dataset-download', action='store_true', help='download a torch/ data set')
    parser.add_argument('-j', '--workers', type=int, default=4, help='processes that read images (%(default)s)')
    parser.add_argument('-b', '--batch-size', type=int, default=256, help='images per process (%(default)s)')


def create_model(args: argparse.Namespace, **options):
    """The model that the arguments name: a backbone, where `options` of `timm.create_model` say nothing else."""
    import timm
    import torch

    torch.manual_seed(getattr(args, 'seed', 0))
    kwargs = dict(args.model_kwargs)
    if args.input_size:
        kwargs.setdefault('in_chans', args.input_size[0])
    options = {'pretrained': args.pretrained, **(options or dict(num_classes=0))}
    kind, _, place = args.model.partition(':')
    if kind in ('local-dir', 'hf-hub') and place:
        options.pop('pretrained')
        return _of_size(lambda **kwargs: _checked(kind, place, {**options, **kwargs}), args, kwargs)
    if not timm.is_model(args.model):
        raise ValueError(f'timm has no model {args.model!r}')
    return _of_size(lambda **kwargs: timm.create_model(args.model, **options, **kwargs), args, kwargs)


def _checked(kind: str, place: str, kwargs: Dict[str, Any]):
    """A model from a folder or the Hub, neither of which is trusted."""
    from timm_extra import hub

    name, _, revision = place.partition('@') if kind == 'hf-hub' else (place, '', '')
    if kind == 'local-dir' and not os.path.isdir(place):
        raise FileNotFoundError(f'no folder at {place!r}')
    try:
        return hub.load(name, revision=revision or None, model_args=kwargs)
    except hub.HubError as e:
        raise ValueError(str(e)) from e


def _of_size(build: Callable, args: argparse.Namespace, kwargs: Dict[str, Any]):
    """Call `build` with the size of the images where the model wants to know it."""
    if args.input_size and 'img_size' not in kwargs:
        try:
            return build(**kwargs, img_size=tuple(args.input_size[1:]))
        except TypeError:  # a model of any size
            pass
    with known_arguments(args.model):
        return build(**kwargs)


@contextlib.contextmanager
def known_arguments(model: str) -> Iterator[None]:
    """Tell a word of `--model-kwargs` that the model does not know as bad input."""
    try:
        yield
    except TypeError as e:
        if 'unexpected keyword argument' not in str(e):
            raise
        raise ValueError(f'{model}: {e}') from e


def create_classifier(args: argparse.Namespace, random: bool = False):
    """The model that the arguments name, with its classes and its weights: its published ones where none are named.

    Args:
        args: Of `model_arguments` and `checkpoint_argument`.
        random: Accept a model without weights.
    """
    import timm

    if args.checkpoint:
        from timm_extra.hub.convert import load_checkpoint

        if args.pretrained:
            raise ValueError('give --checkpoint or --pretrained, not both')
        kwargs = dict(args.model_kwargs)
        if args.input_size:
            kwargs = {'in_chans': args.input_size[0], **kwargs}
        return _of_size(lambda **kwargs: load_checkpoint(args.checkpoint, args.model, kwargs)[0], args, kwargs)
    hosted = not timm.is_model(args.model) or timm.models.is_model_pretrained(args.model)
    if not hosted and (args.pretrained or not random):
        raise ValueError(f'{args.model} has no published weights: give --checkpoint, or local-dir:FOLDER')
    return create_model(args, pretrained=args.pretrained or not random)


def labelled_splits(args: argparse.Namespace, channels: int):
    """Training and test images with the same numbers for the same classes."""
    train = create_dataset(args, 'train', channels)
    classes = getattr(getattr(train, 'reader', None), 'class_to_idx', None)
    test = create_dataset(args, 'validation', channels, **({} if args.dataset else dict(class_map=classes)))
    if not args.dataset and train.filename(0, absolute=True) == test.filename(0, absolute=True):
        raise ValueError(f'{args.data_dir} has no folders train and validation: a probe needs both')
    return train, test


def create_dataset(args: argparse.Namespace, split: str, channels: int, **options):
    """A split of the data set that the arguments name, its images with that many channels."""
    from timm.data import create_dataset as timm_dataset

    from timm_extra.images import MODES

    if not args.dataset and not args.data_dir:
        raise ValueError('give --data-dir, a folder of images, or --dataset')
    if args.dataset_download:
        options['download'] = True
    mode = MODES.get(channels, '')
    return timm_dataset(args.dataset, root=args.data_dir, split=split, input_img_mode=mode, **options)
