"""Verbs that show what a model makes of images: `predict`, `plot`."""

import argparse
import json
import sys
from dataclasses import asdict

from ._verb import Verb, checkpoint_argument, create_classifier, create_model, model_arguments


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files, and folders of them')
    model_arguments(parser)
    checkpoint_argument(parser)
    parser.add_argument('--topk', type=int, default=5, help='classes for each image (%(default)s)')
    parser.add_argument('-b', '--batch-size', type=int, default=32, help='images at a time (%(default)s)')
    parser.add_argument('--device', default='cpu', help='(%(default)s)')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _predict(args: argparse.Namespace) -> int:
    from ..predict import predict

    found = predict(
        create_classifier(args),
        args.images,
        topk=args.topk,
        batch_size=args.batch_size,
        device=args.device,
        progress=sys.stderr.isatty(),
        input_size=args.input_size,
        mean=args.mean,
        std=args.std,
    )
    done, unreadable = [], 0
    for prediction in found:
        if prediction.error:
            unreadable += 1
            print(f'timm-extra: {prediction.error}', file=sys.stderr)
        if args.json:
            done.append(asdict(prediction))
        elif not prediction.error:
            print(prediction.path)
            for guess in prediction.guesses:
                print(f'  {100 * guess.probability:6.2f} %  {guess.label}')
    if args.json:
        print(json.dumps(done, indent=1))
    return 1 if unreadable else 0


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'picture',
        choices=('islands', 'attention'),
        help="islands: how GLOM's columns come to agree; attention: of a CeiT over layers, of a Perceiver over pixels",
    )
    parser.add_argument('image', help='image file')
    model_arguments(parser)
    parser.add_argument('--output', metavar='FILE', help='PNG to write (islands.png, attention.png)')
    islands = parser.add_argument_group('islands')
    islands.add_argument('--iters', type=int, help="iterations (default: the model's)")
    islands.add_argument('--threshold', type=float, help='cosine that joins neighbours (0.9)')
    islands.add_argument('--mask', metavar='FILE', help='image of the same size whose values are numbers of segments')
    attention = parser.add_argument_group('attention')
    checkpoint_argument(attention)
    attention.add_argument('--latents', type=int, nargs='+', help="a Perceiver's latents (six of them)")
    attention.add_argument('--block', type=int, help="a Perceiver's cross-attend (-1, the last)")


PICTURES = dict(islands=('iters', 'threshold', 'mask'), attention=('checkpoint', 'latents', 'block'))


def _plot(args: argparse.Namespace) -> int:
    from ..plot import plot_attention, plot_islands

    (other,) = PICTURES.keys() - {args.picture}
    given = [name for name in PICTURES[other] if getattr(args, name) is not None]
    if given:
        raise ValueError(f'{args.picture} takes no {", ".join(f"--{n}" for n in given)}, which {other} does')
    output = args.output or f'{args.picture}.png'
    options = {name: getattr(args, name) for name in PICTURES[args.picture] if getattr(args, name) is not None}
    options.update(input_size=args.input_size, mean=args.mean, std=args.std)
    if args.picture == 'attention':
        options.pop('checkpoint', None)
        print(plot_attention(create_classifier(args, random=True).eval(), args.image, output, **options))
        print(output)
        return 0
    found = plot_islands(create_model(args).eval(), args.image, output, **options)
    for level in reversed(found):
        agreement = '' if level.rand_index is None else f', adjusted Rand index {level.rand_index:.3f}'
        plural = '' if level.islands == 1 else 's'
        print(f'level {level.level}: {level.islands} island{plural}, neighbour cosine {level.cosine:.3f}{agreement}')
    print(output)
    return 0


VERBS = (
    Verb(
        'predict',
        'classes of images, by a model with its published weights or those of a file',
        'timm-extra predict photo.jpg --model perceiver_io_base\n'
        'timm-extra predict photos/ --model local-dir:output/demo/model --topk 3 --json\n'
        'timm-extra predict photo.jpg --model ceit_small --checkpoint ceit_small_patch16_224.pth',
        _predict_arguments,
        _predict,
        refusals=(ValueError, OSError, ModuleNotFoundError),
    ),
    Verb(
        'plot',
        'draw what a model makes of an image',
        'timm-extra plot islands photo.jpg --model local-dir:output/glom/model\n'
        'timm-extra plot islands photo.jpg --model glom_tiny --iters 20 --mask segments.png --output islands.png\n'
        'timm-extra plot attention photo.jpg --model perceiver_io_base --pretrained --latents 0 7 100\n'
        'timm-extra plot attention digit.png --model local-dir:output/demo/model',
        _plot_arguments,
        _plot,
        refusals=(ValueError, OSError, ModuleNotFoundError),
    ),
)
