"""The `timm-extra` command: one file per verb, each a thin call of one library function."""

import argparse
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any, List, Optional

from timm_extra._nearest import nearest
from timm_extra.training.accelerator import in_first_process

from . import convert, demo, doctor, export, finetune, flow, models, plot, predict, pretrain, probe, pull, push, run
from ._messages import as_flags
from ._parser import Parser

MODULES = (models, run, demo, finetune, pretrain, probe, predict, flow, plot, convert, push, pull, export, doctor)
EPILOG = """`python -m timm_extra COMMAND` equals `timm-extra COMMAND`; with a script, `timm-extra run SCRIPT`:
  python -m timm_extra train.py --model ceit_small --data-dir imagenet
  torchrun --nproc_per_node=8 -m timm_extra train.py --model ceit_small --data-dir imagenet"""
VERBS = {module.VERB.name: module.VERB for module in MODULES}


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command, with every verb's arguments."""
    from timm_extra._version import __version__

    parser = Parser(
        prog='timm-extra',
        description='CeiT, Perceiver and GLOM for timm. `timm-extra COMMAND --help` shows examples.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'timm-extra {__version__}')
    verbs = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for verb in VERBS.values():
        examples = '\n'.join(f'  {line}' for line in verb.examples.splitlines())
        sub = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            epilog=f'examples:\n{examples}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(verb=verb, parser=sub)
    return parser


def _warn(message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Print a warning: those of this package as a line of the command, others as Python does."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f'timm-extra: {message}', file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end='', file=sys.stderr)


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point.

    Args:
        argv: Command line without the program's name; that of the process when None.

    Returns:
        Exit status: 0 done, 1 refused with a message, 2 misused, 130 ended by Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text, nor arrows in the terminal's
            stream.reconfigure(errors='backslashreplace')
    parser = None
    try:
        parser = build_parser()
        words = sys.argv[1:] if argv is None else argv
        if not words:
            parser.print_help(sys.stderr)
            sys.exit(2)
        if not words[0].startswith('-') and words[0] not in VERBS:
            parser.error(f'no command {words[0]!r}{nearest(words[0], VERBS)}')
        args = parser.parse_args(words)
        parser = args.parser
        return _run(args)
    except KeyboardInterrupt as e:
        if in_first_process():
            _say(e, parser)
        return 130


def _run(args: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return args.verb.run(args)
    except BrokenPipeError:  # the reader has exited, as head does: Python would raise once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except args.verb.refusals as e:
        _say(e, args.parser)
        return 1


def _say(error: BaseException, parser: Optional[argparse.ArgumentParser]) -> None:
    """What went wrong as one line in words of the command."""
    message = str(error) or 'interrupted'
    message = as_flags(message, parser) if parser else message
    print('timm-extra:', ' '.join(line.strip() for line in message.splitlines()), file=sys.stderr)
