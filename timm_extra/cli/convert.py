"""`timm-extra convert`: weights of a known layout in the format of the Hub."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any, Dict, List

from ._arguments import model_kwargs_argument
from ._verb import Verb

SHOWN = 8  # keys of a kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('src', metavar='SRC', help='checkpoint, or a folder with model.safetensors')
    parser.add_argument('dst', metavar='DST', help='folder to write: config.json, model.safetensors, README.md')
    parser.add_argument('--model', required=True, help='model name')
    model_kwargs_argument(parser)
    data = parser.add_argument_group(
        'images and classes', "what the checkpoint's own args do not say, or say otherwise"
    )
    data.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help='shape of an image')
    data.add_argument('--mean', type=float, nargs='+', help='per channel')
    data.add_argument('--std', type=float, nargs='+', help='per channel')
    data.add_argument('--crop-pct', type=float, help='part of the image that is seen')
    data.add_argument('--labels', metavar='FILE', help='class map (.txt, .pkl), or the folder of images')
    parser.add_argument('--force', action='store_true', help='replace another model in the folder')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    from timm_extra.hub import convert

    options = dict(data_config=_data_config(args), labels=args.labels, force=args.force)
    report = convert(args.src, args.dst, args.model, args.model_kwargs, **options)
    if args.json:
        print(json.dumps(asdict(report), indent=1))
        return 0
    for note in report.notes:
        print(f'timm-extra: {note}', file=sys.stderr)
    print(f'{report.source} → {report.model}, {report.num_classes} classes')
    print(f'mapped: {len(report.mapped)} tensors')
    resized = [f'{key} (of {", ".join(sources)})' for key, sources in report.resized.items()]
    for kind, keys in (('resized', resized), ('new, not in the file', report.new), ('dropped', report.dropped)):
        _print_keys(kind, keys)
    config = dict(report.config)
    labels = config.pop('label_names', None)
    if config:
        print('images: ' + ', '.join(f'{key} {value}' for key, value in config.items()))
    if labels:
        print(f'labels: {", ".join(labels[:SHOWN])}' + (f', and {len(labels) - SHOWN} more' if labels[SHOWN:] else ''))
    print(f"timm.create_model('local-dir:{report.folder}', pretrained=True)")
    return 0


def _data_config(args: argparse.Namespace) -> Dict[str, Any]:
    names = ('input_size', 'mean', 'std', 'crop_pct')
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _print_keys(kind: str, keys: List[str]) -> None:
    more = f', and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''
    print(f'{kind}: {len(keys)}' + (f': {", ".join(keys[:SHOWN])}{more}' if keys else ''))


VERB = Verb(
    'convert',
    'convert weights of the original code, transformers or lucidrains to the Hub format',
    'timm-extra convert ceit_small_patch16_224.pth ceit_small --model ceit_small\n'
    'timm-extra convert output/train/first/model_best.pth.tar mine --model ceit_small\n'
    'timm-extra convert glom.pt glom --model glom_base --model-kwargs compat=lucidrains learned_mean=False\n'
    'timm-extra convert vision-perceiver-fourier/ perceiver --model perceiver_io_base --json',
    add_arguments,
    run,
)
