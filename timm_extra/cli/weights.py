"""Verbs that bring weights in and out: `convert`, `push`, `pull`."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import List

from ._verb import Verb, known_arguments

SHOWN = 8  # keys of a kind


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    from timm.utils import ParseKwargs

    parser.add_argument('src', metavar='SRC', help='checkpoint, or a folder with model.safetensors')
    parser.add_argument('dst', metavar='DST', help='folder to write: config.json, model.safetensors, README.md')
    parser.add_argument('--model', required=True, help='name of a model of this package')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='NAME=VALUE')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _convert(args: argparse.Namespace) -> int:
    from ..convert import convert

    with known_arguments(args.model):
        report = convert(args.src, args.dst, args.model, args.model_kwargs)
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
    print(f"timm.create_model('local-dir:{report.folder}', pretrained=True)")
    return 0


def _print_keys(kind: str, keys: List[str]) -> None:
    more = f', and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''
    print(f'{kind}: {len(keys)}' + (f': {", ".join(keys[:SHOWN])}{more}' if keys else ''))


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', metavar='FOLDER', help='of convert, pull or demo, or the output of pretrain')
    parser.add_argument('repo', metavar='REPO', help='OWNER/NAME, made if absent')
    parser.add_argument('--private', action='store_true', help='make the repository a private one')
    parser.add_argument('--revision', help='branch, made if absent')
    parser.add_argument('--create-pr', action='store_true', help='propose the commit as a pull request')
    parser.add_argument('--message', help='first line of the commit')
    parser.add_argument('--training-data', metavar='TEXT', help='what it was trained on and how, for the card')


def _push(args: argparse.Namespace) -> int:
    from ..hub import push

    url = push(
        args.folder,
        args.repo,
        private=True if args.private else None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
        training_data=args.training_data,
    )
    print(url)
    return 0


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('repo', metavar='REPO', help='OWNER/NAME')
    parser.add_argument('dest', metavar='DEST', help='folder to write, made if absent')
    parser.add_argument('--revision', help='branch, tag or commit')


def _pull(args: argparse.Namespace) -> int:
    from ..hub import pull

    folder = pull(args.repo, args.dest, revision=args.revision)
    print(f"timm.create_model('local-dir:{folder}', pretrained=True)")
    return 0


# RuntimeError: of the Hub, whose own class would cost every start the import of its client
HUB_REFUSALS = (ValueError, OSError, RuntimeError)

VERBS = (
    Verb(
        'convert',
        "the authors', transformers' and lucidrains' weights into a folder in the Hub's format",
        'timm-extra convert ceit_small_patch16_224.pth ceit_small --model ceit_small\n'
        'timm-extra convert glom.pt glom --model glom_base --model-kwargs compat=lucidrains learned_mean=False\n'
        'timm-extra convert vision-perceiver-fourier/ perceiver --model perceiver_io_base --json',
        _convert_arguments,
        _convert,
        refusals=(ValueError, OSError),
    ),
    Verb(
        'push',
        'publish a folder on the Hub, in one commit',
        'timm-extra push output/byol/model OWNER/NAME --private\n'
        'timm-extra push ceit_small OWNER/ceit_small --message "official weights" --create-pr',
        _push_arguments,
        _push,
        refusals=HUB_REFUSALS,
    ),
    Verb(
        'pull',
        'copy a model from the Hub, with its hashes checked',
        'timm-extra pull OWNER/NAME models/name\ntimm-extra pull OWNER/NAME models/name --revision v1.0',
        _pull_arguments,
        _pull,
        refusals=HUB_REFUSALS,
    ),
)
