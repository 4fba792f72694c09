"""`timm-extra run`: other people's scripts with the models registered."""

import argparse
import os
import runpy
import sys
from typing import List

from ._verb import Verb


def run_script(script: str, args: List[str]) -> None:
    """Run a Python script as `python script args…` would, after registering the models.

    Processes that torchrun starts have them too; children that the script itself starts by 'spawn' must import
    `timm_extra` if they create a model.

    Args:
        script: Path of the script, such as timm's train.py.
        args: Its command line.

    Raises:
        SystemExit: There is no such file; an error of the script itself comes through as it is.
    """
    if not os.path.isfile(script):
        sys.exit(f'timm-extra: no script at {script!r}')
    sys.argv = [script, *args]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('script', help="Python script, e.g. timm's train.py")
    parser.add_argument('args', nargs=argparse.REMAINDER, help='its arguments')


def run(args: argparse.Namespace) -> int:
    run_script(args.script, args.args)
    return 0


VERB = Verb(
    'run',
    'run a script with timm_extra imported',
    'timm-extra run train.py --model ceit_small --data-dir imagenet',
    add_arguments,
    run,
    refusals=(),  # errors are the script's own
)
