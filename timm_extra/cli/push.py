"""`timm-extra push`: publish a folder on the Hub."""

import argparse

from ._verb import HUB_REFUSALS, Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', metavar='FOLDER', help='model folder from finetune, pretrain, convert, pull or demo')
    parser.add_argument('repo', metavar='REPO', help='OWNER/NAME, made if absent')
    parser.add_argument('--private', action='store_true', help='make the repository private')
    parser.add_argument('--revision', help='branch, made if absent')
    parser.add_argument('--create-pr', action='store_true', help='propose the commit as a pull request')
    parser.add_argument('--message', help='commit message title')
    parser.add_argument('--training-data', metavar='TEXT', help='what it was trained on and how, for the card')


def run(args: argparse.Namespace) -> int:
    from timm_extra.hub import push

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


VERB = Verb(
    'push',
    'upload a model folder to the Hub in one commit',
    'timm-extra push output/byol/model OWNER/NAME --private\n'
    'timm-extra push ceit_small OWNER/ceit_small --message "official weights" --create-pr',
    add_arguments,
    run,
    refusals=HUB_REFUSALS,
)
