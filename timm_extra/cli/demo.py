"""`timm-extra demo`: a small model on handwritten digits."""

import argparse

from ._arguments import output_argument
from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    output_argument(parser, 'folder for model, pictures and log (%(default)s)', default='output/demo')
    parser.add_argument(
        '--model', default='ceit', help='ceit, perceiver or perceiver-permuted, with shuffled pixels (%(default)s)'
    )
    parser.add_argument('--epochs', type=int, help="passes over the training images (default: the model's own number)")
    parser.add_argument('--batch-size', type=int, default=64, help='images per step (%(default)s)')
    parser.add_argument('--lr', type=float, help="peak learning rate (default: the model's own)")
    parser.add_argument('--seed', type=int, default=0, help='seed of split, initialisation and order (%(default)s)')
    parser.add_argument('--force', action='store_true', help='write to a folder that the demo did not make')


def run(args: argparse.Namespace) -> int:
    from timm_extra.demo import run_demo

    options = dict(epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed, force=args.force)
    run_demo(args.output, model=args.model, **options)
    return 0


VERB = Verb(
    'demo',
    'train a small model on 5,000 handwritten digits, save, reload and plot it',
    'timm-extra demo\ntimm-extra demo --model perceiver --output output/perceiver',
    add_arguments,
    run,
)
