"""`timm-extra predict`: classes of images."""

import argparse
import sys
from contextlib import closing
from dataclasses import asdict

from ._arguments import checkpoint_argument, create_classifier, device_argument, model_arguments
from ._json import json_list
from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files or folders')
    model_arguments(parser)
    checkpoint_argument(parser)
    parser.add_argument('--topk', type=int, default=5, help='classes per image (%(default)s)')
    parser.add_argument('-b', '--batch-size', type=int, default=32, help='batch size (%(default)s)')
    device_argument(parser)
    parser.add_argument(
        '--as-timm',
        action='store_true',
        help="read pixels as timm's scripts do: 16 bits clipped, no EXIF orientation, transparency left out",
    )
    parser.add_argument(
        '--stream',
        action='store_true',
        help='read files larger than memory (TIFF, Zarr, .npy, slides) in tiles, each as one image, without resizing',
    )
    parser.add_argument('--state', metavar='FILE', help='with --stream: go on from here after an interruption')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    from timm_extra import accelerate
    from timm_extra._device import find_device
    from timm_extra._progress import print_line
    from timm_extra.images import find_files
    from timm_extra.inference import predict, predict_stream
    from timm_extra.inputs import inputs_of

    if args.state and not args.stream:
        raise ValueError('--state goes with --stream')
    if args.stream and (args.input_size or args.as_timm):
        raise ValueError('--stream reads pixels as they are: it takes no --input-size and no --as-timm')
    find_device(args.device)
    model = accelerate(create_classifier(args))
    shared = dict(topk=args.topk, device=args.device, progress=sys.stderr.isatty(), mean=args.mean, std=args.std)
    if args.stream:
        found = predict_stream(model, args.images, **shared, state=args.state)
    else:
        pixels = dict(input_size=args.input_size, as_timm=args.as_timm)
        files = find_files(args.images, inputs_of(model, mean=args.mean, std=args.std, **pixels).kind)
        found = predict(model, files.files, **shared, batch_size=args.batch_size, **pixels)
        if str(files):
            print(f'timm-extra: {files}', file=sys.stderr)
    unreadable = 0
    with json_list(args.json) as done, closing(found):  # the bar is gone before the list is printed
        for prediction in found:
            if prediction.error:
                unreadable += 1
                print_line(' '.join(['timm-extra:', *prediction.error.splitlines()]), sys.stderr)
            if args.json:
                done.append(asdict(prediction))
            elif not prediction.error:
                guesses = (f'  {100 * guess.probability:6.2f} %  {guess.label}' for guess in prediction.guesses)
                print_line('\n'.join([prediction.path, *guesses]))
    return 1 if unreadable else 0


VERB = Verb(
    'predict',
    'classify images with pretrained weights or a checkpoint',
    'timm-extra predict photo.jpg --model perceiver_io_base\n'
    'timm-extra predict photos/ --model local-dir:output/demo/model --topk 3 --json\n'
    'timm-extra predict photo.jpg --model ceit_small --checkpoint ceit_small_patch16_224.pth\n'
    'timm-extra predict slide.tif --model perceiver_io_base --stream --state slide.state',
    add_arguments,
    run,
)
