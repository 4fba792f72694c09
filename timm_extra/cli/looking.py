"""Verbs that show what a model makes of an image: `plot`."""

import argparse

from ._verb import Verb, create_model, model_arguments


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('picture', choices=('islands',), help="islands: how GLOM's columns come to agree")
    parser.add_argument('image', help='image file')
    model_arguments(parser)
    parser.add_argument('--iters', type=int, help="iterations (default: the model's)")
    parser.add_argument('--threshold', type=float, default=0.9, help='cosine that joins neighbours (%(default)s)')
    parser.add_argument('--mask', metavar='FILE', help='image of the same size whose values are numbers of segments')
    parser.add_argument('--output', default='islands.png', help='PNG to write (%(default)s)')


def _plot(args: argparse.Namespace) -> int:
    from ..plot import plot_islands

    found = plot_islands(
        create_model(args).eval(),
        args.image,
        args.output,
        iters=args.iters,
        threshold=args.threshold,
        mask=args.mask,
        input_size=args.input_size,
        mean=args.mean,
        std=args.std,
    )
    for level in reversed(found):
        agreement = '' if level.rand_index is None else f', adjusted Rand index {level.rand_index:.3f}'
        plural = '' if level.islands == 1 else 's'
        print(f'level {level.level}: {level.islands} island{plural}, neighbour cosine {level.cosine:.3f}{agreement}')
    print(args.output)
    return 0


VERBS = (
    Verb(
        'plot',
        'draw what a model makes of an image',
        'timm-extra plot islands photo.jpg --model local-dir:output/glom/model\n'
        'timm-extra plot islands photo.jpg --model glom_tiny --iters 20 --mask segments.png --output islands.png',
        _plot_arguments,
        _plot,
        refusals=(ValueError, OSError, ModuleNotFoundError),
    ),
)
