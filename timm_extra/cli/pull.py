"""`timm-extra pull`: copy a model from the Hub."""

import argparse

from ._verb import HUB_REFUSALS, Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('repo', metavar='REPO', help='OWNER/NAME')
    parser.add_argument('dest', metavar='DEST', help='folder to write, made if absent')
    parser.add_argument('--revision', help='branch, tag or commit')
    parser.add_argument('--force', action='store_true', help='replace another model, or an edited card, in the folder')


def run(args: argparse.Namespace) -> int:
    from timm_extra.hub import pull

    folder = pull(args.repo, args.dest, revision=args.revision, force=args.force)
    print(f"timm.create_model('local-dir:{folder}', pretrained=True)")
    return 0


VERB = Verb(
    'pull',
    'download a model from the Hub and verify its hashes',
    'timm-extra pull OWNER/NAME models/name\ntimm-extra pull OWNER/NAME models/name --revision v1.0',
    add_arguments,
    run,
    refusals=HUB_REFUSALS,
)
