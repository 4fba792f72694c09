"""`timm-extra export`: ONNX and torch.export."""

import argparse
import json
import sys
from dataclasses import asdict

from ._arguments import checkpoint_argument, create_classifier, name_arguments, note_random_weights
from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('format', choices=('onnx', 'torch-export'), help='format to write')
    parser.add_argument('dst', metavar='DST', help='file to write, e.g. model.onnx or model.pt2')
    name_arguments(parser)
    parser.add_argument(
        '--input-size',
        type=int,
        nargs='+',
        metavar='N',
        help="e.g. 3 224 224 (default: the model's)",
    )
    checkpoint_argument(parser)
    parser.add_argument(
        '--dynamic-size',
        action='store_true',
        help='accept inputs of any size that the model accepts',
    )
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), help="default: the model's")
    parser.add_argument(
        '--tolerance',
        type=float,
        help='maximum absolute difference (default: 1e-4; in half precision what rounding explains)',
    )
    parser.add_argument('--opset', type=int, help="ONNX opset (default: PyTorch's)")
    parser.add_argument('--force', action='store_true', help='replace the file if it exists')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    import torch

    from timm_extra._files import check_output
    from timm_extra.inference import export

    check_output(args.dst, args.force)
    model = create_classifier(args, random=True)
    if args.dtype:
        model = model.to(getattr(torch, args.dtype))
    options = dict(
        input_size=args.input_size, dynamic_size=args.dynamic_size, tolerance=args.tolerance, opset=args.opset
    )
    done = export(model, args.dst, args.format, **options)
    note_random_weights(args)
    if done.constant:
        print('timm-extra: the outputs do not depend on the image, so that comparing says little', file=sys.stderr)
    if args.json:
        print(json.dumps(asdict(done), indent=1))
        return 0
    size = '×'.join(map(str, done.input_size))
    batches = ' and '.join(map(str, done.batch_sizes))
    print(f'{done.path}: {done.megabytes:.1f} MB, batches of any size of {size}')
    if len(done.sizes) > 1:
        print(f'inputs of other sizes too, as compared: {", ".join("×".join(map(str, s)) for s in done.sizes[1:])}')
    print(f'largest difference to the model: {done.largest_error:.1e} (batches of {batches})')
    if done.format == 'torch-export':
        print('load it by torch.export.load in a process that imports timm_extra')
    return 0


VERB = Verb(
    'export',
    'export a model with ONNX or torch.export, and verify its outputs',
    'timm-extra export onnx ceit.onnx --model ceit_small --checkpoint ceit_small_patch16_224.pth\n'
    'timm-extra export onnx digits.onnx --model local-dir:output/demo/model --json\n'
    'timm-extra export torch-export perceiver.pt2 --model perceiver_io_base --pretrained',
    add_arguments,
    run,
)
