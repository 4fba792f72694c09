"""Arguments that several verbs share, and what they name: a model, a data set."""

import argparse
import collections.abc
import contextlib
import os
import sys
from dataclasses import fields
from typing import Any, Callable, Dict, Optional, Type, TypeVar, Union, get_args, get_origin, get_type_hints

from ._parser import Pairs

Options = TypeVar('Options')


def option_arguments(parser: argparse.ArgumentParser, options: type) -> None:
    """Declare the options of a dataclass whose fields are of `timm_extra.training.option.option`."""
    from timm_extra.training.option import default_of, flags_of

    types = get_type_hints(options)
    groups: Dict[str, Any] = {None: parser}
    for one in fields(options):
        title, metavar, flags = one.metadata['group'], one.metadata['metavar'], flags_of(one)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        keywords = _reading(types[one.name])
        choices = one.metadata['choices']
        if types[one.name] is bool:
            keywords = dict(action=argparse.BooleanOptionalAction if one.default else 'store_true')
        elif choices:
            keywords['choices'] = choices
        if metavar:
            keywords['metavar'] = metavar
        default = '' if one.default is False or not flags[0].startswith('-') else default_of(one)
        # after the action is made: BooleanOptionalAction of some Pythons adds the default itself
        groups[title].add_argument(*flags, default=one.default, **keywords).help = (
            one.metadata['help'] + (f' Default: {default}.' if default else '')
        ).replace('%', '%%')


def options_from(args: argparse.Namespace, options: Type[Options]) -> Options:
    """The dataclass of options that a command line gives."""
    try:
        return options(**{one.name: getattr(args, one.name) for one in fields(options)})
    except TypeError as e:  # of words among the options
        raise ValueError(str(e)) from e


def _reading(annotation: Any) -> Dict[str, Any]:
    """How argparse reads a type."""
    origin = get_origin(annotation) or annotation
    parts = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    if origin is Union and len(parts) == 1:
        return _reading(parts[0])
    if origin is Union and set(parts) == {str, int}:
        return dict(type=_name_or_index)
    if origin is Union:  # one number, or a tuple of them
        return dict(_reading(parts[0]), nargs='+')
    if origin is tuple:
        return dict(_reading(parts[0]), nargs='+' if Ellipsis in get_args(annotation) else len(parts))
    if origin is collections.abc.Mapping:
        return dict(action=Pairs, nargs='*')
    return dict(type=origin)


def _name_or_index(word: str) -> Union[str, int]:
    return int(word) if word.lstrip('-').isdigit() else word


def model_arguments(parser: argparse.ArgumentParser) -> None:
    name_arguments(parser)
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help="default: the model's")
    parser.add_argument('--mean', type=float, nargs='+', help="per channel (default: the model's)")
    parser.add_argument('--std', type=float, nargs='+', help="per channel (default: the model's)")


def output_argument(parser: argparse.ArgumentParser, help: str, **options) -> None:
    def named(word: str) -> str:
        if not word.strip():  # as "$OUT" that is not set
            raise argparse.ArgumentTypeError('it is empty')
        return word

    parser.add_argument('--output', type=named, help=help, **options)


def name_arguments(parser: argparse.ArgumentParser, default: Optional[str] = None) -> None:
    help = 'timm model name, local-dir:FOLDER or hf-hub:OWNER/NAME' + (f' ({default})' if default else '')
    parser.add_argument('--model', required=default is None, default=default, help=help)
    parser.add_argument(
        '--pretrained', action='store_true', help='load the pretrained weights; local-dir: and hf-hub: always do'
    )
    model_kwargs_argument(parser)


def model_kwargs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--model-kwargs',
        nargs='*',
        default={},
        action=Pairs,
        metavar='NAME=VALUE',
        help='extra create_model arguments',
    )


def checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--checkpoint', metavar='FILE', help='load these weights: file or folder, any known layout')


def device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:1, mps; the fastest there is (%(default)s)')


def data_arguments(parser: argparse.ArgumentParser) -> None:
    dataset_arguments(parser)
    parser.add_argument('-j', '--workers', type=int, default=4, help='processes that read images (%(default)s)')
    parser.add_argument('-b', '--batch-size', type=int, default=256, help='images per process (%(default)s)')


def dataset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data-dir', help='folder of images, or of .tar or .parquet shards, or root of --dataset')
    parser.add_argument('--dataset', default='', help='timm dataset name, e.g. torch/cifar10 (default: image folder)')
    parser.add_argument('--dataset-download', action='store_true', help='download a torch/ dataset')
    shard_arguments(parser)


def shard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--input-key', help='of shards: column of images, or endings of members, as jpg;png')
    parser.add_argument('--target-key', help='of shards: column of classes, or key of .json members')


def create_model(args: argparse.Namespace, **options):
    """The model that the arguments name: a backbone, where `options` of `timm.create_model` say nothing else."""
    import timm
    import torch

    from timm_extra.models.info import check_name

    torch.manual_seed(getattr(args, 'seed', 0))
    options = {'pretrained': args.pretrained, **(options or dict(num_classes=0))}
    kind, _, place = args.model.partition(':')
    if kind in ('local-dir', 'hf-hub') and place:
        options.pop('pretrained')
        return _of_size(lambda **kwargs: _checked(kind, place, {**options, **kwargs}), args)
    check_name(args.model)
    if options.get('pretrained'):
        _find_weights(args)
    return _of_size(lambda **kwargs: timm.create_model(args.model, **options, **kwargs), args)


def _find_weights(args: argparse.Namespace) -> None:
    """Say what is downloaded, after asking the Hub whether it is there: huggingface_hub is patient for a minute."""
    from timm_extra import hub
    from timm_extra.training.accelerator import in_first_process

    if any(name in args.model_kwargs for name in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')):
        return  # of other weights, or elsewhere
    repo_id = hub.missing_weights(args.model)
    if repo_id is None:
        return
    if in_first_process():
        print(f'timm-extra: downloading the weights of {args.model} from {repo_id} on the Hub', file=sys.stderr)
    try:
        hub.check_repository(repo_id)
    except hub.HubError as e:
        raise ValueError(f'the weights of {args.model}: {e}') from e


def create_image_model(args: argparse.Namespace):
    """As `create_model`, for a model of images: another is refused before anything of its size is allocated."""
    from timm_extra.images import check_takes_images

    if (shape := shape_of_model(args)) is not None:
        check_takes_images(shape)
    model = create_model(args)
    check_takes_images(model)
    return model


def shape_of_model(args: argparse.Namespace):
    """The model that a name stands for, without numbers: what a verb cannot use is refused before anything is loaded.

    None for models of folders and of the Hub, and for timm's own, which are of images.
    """
    import timm
    import torch

    from timm_extra.models.info import arguments_refused, check_name, is_ours

    if ':' in args.model:
        return None
    check_name(args.model)
    if not is_ours(args.model):
        return None
    with torch.device('meta'), arguments_refused(args.model, args.model_kwargs):
        return timm.create_model(args.model, **args.model_kwargs)


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


def _of_size(build: Callable, args: argparse.Namespace):
    """Call `build` with `--model-kwargs` and the channels of the images, and their size where the model takes it."""
    from timm_extra.models.info import arguments_refused

    kwargs = dict(args.model_kwargs)
    if args.input_size:
        kwargs.setdefault('in_chans', args.input_size[0])
    with arguments_refused(args.model, kwargs):
        if args.input_size and 'img_size' not in kwargs:
            with contextlib.suppress(TypeError):  # a model of any size
                return build(**kwargs, img_size=tuple(args.input_size[1:]))
        return build(**kwargs)


def create_classifier(args: argparse.Namespace, random: bool = False):
    """The model that the arguments name, with its classes and its weights: its published ones where none are named.

    Args:
        args: Of `model_arguments` and `checkpoint_argument`.
        random: Accept a model without weights.
    """
    import timm

    from timm_extra.models.info import check_name

    if args.checkpoint:
        from timm_extra.hub.convert import load_checkpoint

        if args.pretrained:
            raise ValueError('give --checkpoint or --pretrained, not both')
        return _of_size(lambda **kwargs: load_checkpoint(args.checkpoint, args.model, kwargs)[0], args)
    if ':' not in args.model:
        check_name(args.model)
    hosted = ':' in args.model or timm.models.is_model_pretrained(args.model)
    if not hosted and (args.pretrained or not random):
        raise ValueError(f'{args.model} has no published weights: give --checkpoint, or local-dir:FOLDER')
    return create_model(args, pretrained=args.pretrained or not random)


def note_random_weights(args: argparse.Namespace) -> None:
    """Say that a model has learned nothing, if its arguments name no weights."""
    if not args.pretrained and not args.checkpoint and ':' not in args.model:
        print('timm-extra: the weights are random: give --pretrained, --checkpoint or local-dir:…', file=sys.stderr)


def labelled_splits(args: argparse.Namespace, channels: int):
    """Training and test images with the same numbers for the same classes."""
    from timm_extra.images import ShardReader, check_splits

    train = create_dataset(args, 'train', channels)
    classes = getattr(getattr(train, 'reader', None), 'class_to_idx', None)
    test = create_dataset(args, 'validation', channels, **({} if args.dataset else dict(class_map=classes)))
    if not args.dataset:
        shards = isinstance(train.reader, ShardReader)
        if train.filename(0, absolute=True) == test.filename(0, absolute=True):
            what = 'shards of' if shards else 'folders'
            raise ValueError(f'{args.data_dir} has no {what} train and validation: a probe needs both')
        if not shards:
            check_splits(train.reader, test.reader)
    return train, test


def _reader(args: argparse.Namespace, split: str, **options):
    """timm's reader of a folder: of its shards, or of its images."""
    from timm_extra.images import FolderReader, ShardReader, holds_shards

    keys = {name: value for name in ('input_key', 'target_key') if (value := getattr(args, name)) is not None}
    if holds_shards(args.data_dir, split):
        return ShardReader(args.data_dir, split, unreadable=getattr(args, 'unreadable', 'raise'), **keys, **options)
    if keys:
        raise ValueError(f'{args.data_dir} has no shards, which `{next(iter(keys))}` is for')
    return FolderReader(args.data_dir, split, **options)


def create_dataset(args: argparse.Namespace, split: str, channels: int, **options):
    """A split of the data set that the arguments name, its images with that many channels."""
    from timm.data import ImageDataset
    from timm.data import create_dataset as timm_dataset

    from timm_extra.images import MODES
    from timm_extra.training.accelerator import in_first_process

    if not args.dataset and not args.data_dir:
        raise ValueError('give --data-dir, a folder of images, or --dataset')
    if args.dataset_download:
        options['download'] = True
    mode = MODES.get(channels, '')
    if not args.dataset:
        reader = _reader(args, split, **options)
        if str(reader.found) and in_first_process():
            print(f'timm-extra: {reader.found}', file=sys.stderr)
        return ImageDataset(args.data_dir, reader=reader, input_img_mode=mode)
    try:
        return timm_dataset(args.dataset, root=args.data_dir, split=split, input_img_mode=mode, **options)
    except RuntimeError as e:  # torchvision's, where files are missing
        hint = '' if args.dataset_download else '; --dataset-download fetches it'
        raise ValueError(f'--dataset {args.dataset} is not in {args.data_dir}{hint}') from e
    except Exception as e:  # what data sets raise is of any type, AssertionError for unknown names
        raise ValueError(f'--dataset {args.dataset} cannot be opened: {e or type(e).__name__}') from e
