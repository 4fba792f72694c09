"""`timm-extra models`: the registered models."""

import argparse
import json
import sys
from dataclasses import asdict

from ._verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', default='*', help='part of a name, or a wildcard pattern (default: all)')
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> int:
    from timm_extra.models.info import list_names, model_info

    infos = [model_info(name) for name in list_names(args.pattern)]
    if not infos:
        print(f'timm-extra: no model matches {args.pattern!r}', file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([asdict(info) for info in infos], indent=1))
        return 0
    print(f'{"model":<26}{"params M":>10}{"GMACs":>9}  {"input":<13}weights')
    for info in infos:
        size = '×'.join(map(str, info.input_size))
        print(f'{info.name:<26}{info.params / 1e6:>10.2f}{info.gmacs:>9.2f}  {size:<13}{info.weights}')
    return 0


VERB = Verb(
    'models',
    'list models with parameters, GMACs and where their weights are',
    "timm-extra models\ntimm-extra models glom\ntimm-extra models 'ceit_*' --json",
    add_arguments,
    run,
)
