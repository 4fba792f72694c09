"""Verbs about where models run: `export`, `doctor`."""

import argparse
import json
import sys
from dataclasses import asdict

from ._verb import Verb, checkpoint_argument, create_classifier, model_arguments


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('format', choices=('onnx', 'torch-export'))
    parser.add_argument('dst', metavar='DST', help='file to write, as model.onnx or model.pt2')
    model_arguments(parser)
    checkpoint_argument(parser)
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest difference allowed (%(default)s)')
    parser.add_argument('--opset', type=int, help="of ONNX (default: PyTorch's)")
    parser.add_argument('--json', action='store_true', help='print JSON')


def _export(args: argparse.Namespace) -> int:
    from ..export import export

    if not args.pretrained and not args.checkpoint and ':' not in args.model:
        print('timm-extra: the weights are random: give --pretrained, --checkpoint or local-dir:…', file=sys.stderr)
    model = create_classifier(args, random=True)
    options = dict(input_size=args.input_size, tolerance=args.tolerance, opset=args.opset)
    done = export(model, args.dst, args.format, **options)
    if done.constant:
        print('timm-extra: the outputs do not depend on the image, so that comparing says little', file=sys.stderr)
    if args.json:
        print(json.dumps(asdict(done), indent=1))
        return 0
    size = '×'.join(map(str, done.input_size))
    batches = ' and '.join(map(str, done.batch_sizes))
    print(f'{done.path}: {done.megabytes:.1f} MB, batches of any size of {size}')
    print(f'largest difference to the model: {done.largest_error:.1e} (batches of {batches})')
    if done.format == 'torch-export':
        print('load it by torch.export.load in a process that imports timm_extra')
    return 0


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--no-hub', action='store_true', help='do not ask the Hub who is logged in')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _doctor(args: argparse.Namespace) -> int:
    from ..doctor import doctor

    health = doctor(hub=not args.no_hub)
    if args.json:
        print(json.dumps(asdict(health), indent=1))
        return 1 if health.problems else 0
    print(f'{health.platform}, {health.threads} threads')
    for title, versions in (('installed', health.versions), ('optional', health.optional)):
        print(f'{title}:', ', '.join(f'{name} {version or "missing"}' for name, version in versions.items()))
    for gpu in health.gpus:
        print(f'GPU: {gpu.name}, {gpu.gibibytes} GiB, capability {gpu.capability}')
    if not health.gpus:
        print('GPU: none')
    for name, value in health.switches.items():
        print(f'{name}={value}')
    for path in health.paths:
        print(path)
    print(f'Hub: {health.hub}')
    for problem in health.problems:
        print(f'timm-extra: {problem}', file=sys.stderr)
    return 1 if health.problems else 0


VERBS = (
    Verb(
        'export',
        'write a model as ONNX or as a program of torch.export, and compare it with the original',
        'timm-extra export onnx ceit.onnx --model ceit_small --checkpoint ceit_small_patch16_224.pth\n'
        'timm-extra export onnx digits.onnx --model local-dir:output/demo/model --json\n'
        'timm-extra export torch-export perceiver.pt2 --model perceiver_io_base --pretrained',
        _export_arguments,
        _export,
        refusals=(ValueError, OSError, ModuleNotFoundError),
    ),
    Verb(
        'doctor',
        'versions, GPUs, which path operations take and why, login to the Hub',
        'timm-extra doctor\ntimm-extra doctor --no-hub --json',
        _doctor_arguments,
        _doctor,
    ),
)
