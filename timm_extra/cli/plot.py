"""`timm-extra plot`: attention and islands of a model on an image."""

import argparse

from ._arguments import (
    checkpoint_argument,
    create_classifier,
    create_model,
    model_arguments,
    note_random_weights,
    output_argument,
)
from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'picture',
        choices=('islands', 'attention'),
        help="attention: CeiT's over patches and layers, Perceiver's over pixels; islands: where GLOM's columns agree",
    )
    parser.add_argument('image', help='image file')
    model_arguments(parser)
    output_argument(parser, 'PNG to write (islands.png, attention.png)')
    parser.add_argument('--force', action='store_true', help='replace the PNG if it exists')
    islands = parser.add_argument_group('islands')
    islands.add_argument('--iters', type=int, help="iterations (default: the model's)")
    islands.add_argument('--threshold', type=float, help='cosine similarity that joins neighbours (0.9)')
    islands.add_argument('--mask', metavar='FILE', help='segment ids, as an image of the same size')
    attention = parser.add_argument_group('attention')
    checkpoint_argument(attention)
    attention.add_argument('--latents', type=int, nargs='+', help='latent indices of a Perceiver (six of them)')
    attention.add_argument('--block', type=int, help='index of the block of a CeiT, or cross-attention (-1, the last)')


PICTURES = dict(islands=('iters', 'threshold', 'mask'), attention=('checkpoint', 'latents', 'block'))


def run(args: argparse.Namespace) -> int:
    from timm_extra._files import check_output
    from timm_extra.plot import plot_attention, plot_islands

    (other,) = PICTURES.keys() - {args.picture}
    given = [name for name in PICTURES[other] if getattr(args, name) is not None]
    if given:
        raise ValueError(f'{args.picture} takes no {", ".join(f"--{n}" for n in given)}, which {other} does')
    output = args.output or f'{args.picture}.png'
    check_output(output, args.force)
    options = {name: getattr(args, name) for name in PICTURES[args.picture] if getattr(args, name) is not None}
    options.update(input_size=args.input_size, mean=args.mean, std=args.std)
    if args.picture == 'attention':
        options.pop('checkpoint', None)
        print(plot_attention(create_classifier(args, random=True).eval(), args.image, output, **options))
        print(output)
        note_random_weights(args)
        return 0
    found = plot_islands(create_model(args).eval(), args.image, output, **options)
    for level in reversed(found):
        agreement = '' if level.rand_index is None else f', adjusted Rand index {level.rand_index:.3f}'
        plural = '' if level.islands == 1 else 's'
        print(f'level {level.level}: {level.islands} island{plural}, neighbour cosine {level.cosine:.3f}{agreement}')
    print(output)
    note_random_weights(args)
    return 0


VERB = Verb(
    'plot',
    'plot the attention of CeiT and Perceivers, or the islands of GLOM',
    'timm-extra plot islands photo.jpg --model local-dir:output/glom/model\n'
    'timm-extra plot islands photo.jpg --model glom_tiny --iters 20 --mask segments.png --output islands.png\n'
    'timm-extra plot attention photo.jpg --model perceiver_io_base --pretrained --latents 0 7 100\n'
    'timm-extra plot attention digit.png --model local-dir:output/demo/model',
    add_arguments,
    run,
)
