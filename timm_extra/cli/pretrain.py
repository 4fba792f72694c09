"""`timm-extra pretrain`: training without labels."""

import argparse

from ._arguments import (
    create_dataset,
    create_image_model,
    dataset_arguments,
    labelled_splits,
    name_arguments,
    option_arguments,
    options_from,
    output_argument,
)
from ._verb import Verb

EPOCHS = 100  # where the command line does not say how long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from timm_extra.pretrain import PretrainConfig

    name_arguments(parser)
    dataset_arguments(parser)
    parser.add_argument('--split', default='train', help='part of the data set (%(default)s)')
    output_argument(parser, 'folder for the model, checkpoints and log', required=True)
    option_arguments(parser, PretrainConfig)


def run(args: argparse.Namespace) -> int:
    from timm_extra import accelerate
    from timm_extra.hub import base_model
    from timm_extra.images import input_config
    from timm_extra.pretrain import PretrainConfig, pretrain
    from timm_extra.training.accelerator import in_first_process

    if args.epochs is None and args.num_train_steps is None:
        args.epochs = EPOCHS
    config = options_from(args, PretrainConfig)
    model = accelerate(create_image_model(args))
    channels = input_config(model, config.input_size)['input_size'][0]
    probe = labelled_splits(args, channels) if config.probes else None
    options = dict(is_training=True, seed=config.seed, batch_size=config.batch_size) if args.dataset else {}
    images, base = create_dataset(args, args.split, channels, **options), base_model(args.model, model, args.pretrained)
    done = pretrain(model, images, args.output, config, probe=probe, base_model=base)
    if not in_first_process():
        return 0
    accuracies = ''.join(f'; {probe} accuracy {found:.2f} %' for probe, found in done.accuracies.items())
    skipped = f'; {done.skipped} unreadable images left out' if done.skipped else ''
    print(f'{done.steps} steps done{accuracies}{skipped}')
    print(f"timm.create_model('local-dir:{done.folder}/model', pretrained=True)")
    return 0


VERB = Verb(
    'pretrain',
    'self-supervised pretraining of any timm model',
    'timm-extra pretrain byol --model resnet50 --data-dir photos --epochs 100 --output output/byol\n'
    'timm-extra pretrain simsiam --model ceit_tiny --data-dir photos --output output/simsiam --opt adamw\n'
    'timm-extra pretrain glom --model glom_tiny --data-dir photos --output output/glom --noise 0.5 1.5\n'
    'timm-extra pretrain pixpro --model resnet50 --data-dir photos --output output/pixpro\n'
    'accelerate launch -m timm_extra pretrain byol --model resnet50 --data-dir photos --output output/byol',
    add_arguments,
    run,
)
