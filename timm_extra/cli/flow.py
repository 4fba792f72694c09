"""`timm-extra flow`: optical flow between two images or along a video."""

import argparse
import sys
from contextlib import closing

from ._arguments import (
    checkpoint_argument,
    create_classifier,
    device_argument,
    name_arguments,
    output_argument,
    shape_of_model,
)
from ._json import json_list
from ._verb import Verb

FOLDER = 'flow'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('frames', nargs='+', metavar='FILE', help='two images, or a video, or a folder of its frames')
    name_arguments(parser, default='perceiver_io_flow')
    parser.set_defaults(input_size=None)  # any
    checkpoint_argument(parser)
    output_argument(parser, f'folder for a .flo and a PNG of each pair ({FOLDER})', default=FOLDER)
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    longest = 'length that has the full colour (default: the longest of a pair)'
    parser.add_argument('--max-flow', type=float, metavar='PIXELS', help=longest)
    device_argument(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    from timm_extra import accelerate
    from timm_extra._device import find_device
    from timm_extra._progress import print_line
    from timm_extra.flow import check_estimates_flow, check_frames, open_frames
    from timm_extra.plot import check_flow_files, plot_flow

    find_device(args.device)
    video = open_frames(args.frames)
    options = dict(max_flow=args.max_flow, force=args.force)
    check_flow_files(video, args.output, **options)
    check_frames(video)
    if (shape := shape_of_model(args)) is not None:
        check_estimates_flow(shape)
    model = accelerate(create_classifier(args))
    found = plot_flow(model, video, args.output, device=args.device, progress=sys.stderr.isatty(), **options)
    with json_list(args.json) as done, closing(found):  # the bar is gone before the list is printed
        for pair in found:
            done.append(pair._asdict())
            if not args.json:
                what = f'{pair.first} → {pair.second}: mean {pair.mean:.2f} px, longest {pair.longest:.2f} px'
                print_line(f'{what}\n  {pair.flo}\n  {pair.png}')
    return 0


VERB = Verb(
    'flow',
    'estimate optical flow between two images or along a video: .flo files and pictures',
    'timm-extra flow first.png second.png --output flow\n'
    'timm-extra flow clip.mp4 --output clip-flow --max-flow 20 --json\n'
    'timm-extra flow frames/ --model local-dir:output/flow/model --force',
    add_arguments,
    run,
)
