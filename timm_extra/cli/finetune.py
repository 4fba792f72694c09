"""`timm-extra finetune`: a classifier from a folder whose folders are classes."""

import argparse

from ._arguments import (
    checkpoint_argument,
    create_classifier,
    model_arguments,
    option_arguments,
    options_from,
    output_argument,
    shard_arguments,
)
from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from timm_extra.finetune import FinetuneConfig

    help = 'folder with train/CLASS and validation/CLASS, or with CLASS, or with .tar or .parquet shards'
    parser.add_argument('folder', metavar='FOLDER', help=help)
    shard_arguments(parser)
    model_arguments(parser)
    checkpoint_argument(parser)
    parser.add_argument('--drop-path', type=float, metavar='RATE', help="stochastic depth (default: the model's)")
    output_argument(parser, 'folder for the model, checkpoints, log and curve', required=True)
    option_arguments(parser, FinetuneConfig)


def run(args: argparse.Namespace) -> int:
    from timm_extra import accelerate
    from timm_extra.finetune import FinetuneConfig, finetune, folder_data
    from timm_extra.hub import base_model

    config = options_from(args, FinetuneConfig)
    if args.drop_path is not None:
        if not 0 <= args.drop_path < 1:
            raise ValueError(f'`drop_path` must be at least 0 and below 1, got {args.drop_path}')
        args.model_kwargs = {**args.model_kwargs, 'drop_path_rate': args.drop_path}
    model = accelerate(create_classifier(args, random=True))
    given = {name: getattr(args, name) for name in ('input_size', 'mean', 'std', 'input_key', 'target_key')}
    data = folder_data(args.folder, model, config, **given)
    if not hasattr(model, 'reset_classifier'):
        raise ValueError(f'{args.model} with these arguments is a {type(model).__name__}, no classifier')
    if model.num_classes != len(data.label_names):
        model.reset_classifier(len(data.label_names))
    loaded = bool(args.pretrained or args.checkpoint or ':' in args.model)
    base = f'saved weights of {args.model}' if args.checkpoint else base_model(args.model, model, args.pretrained)
    done = finetune(model, data, args.output, config, pretrained=loaded, base_model=base)
    skipped = f'; {done.skipped} unreadable files left out' if done.skipped else ''
    print(f'best held-out accuracy {done.best:.2f} %{skipped}')
    print(f"timm.create_model('local-dir:{done.folder}/model', pretrained=True)")
    return 0


VERB = Verb(
    'finetune',
    'train a classifier on a folder whose folders are classes, from any weights or none',
    'timm-extra finetune photos --model vit_small_patch16_224 --pretrained --output output/photos\n'
    'timm-extra finetune photos --model local-dir:output/byol/model --output output/photos --epochs 30 --resume\n'
    'timm-extra finetune digits --model test_ceit --output output/digits --model-kwargs img_size=28 in_chans=1',
    add_arguments,
    run,
)
