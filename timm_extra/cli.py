"""The `timm-extra` command: a table of verbs, each a thin call of one library function."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Callable, List, Optional, Tuple, Type


@dataclass(frozen=True)
class Verb:
    """One word of the command.

    Attributes:
        name: The word.
        help: One line.
        examples: Command lines for `--help`.
        add_arguments: Declares the arguments on a parser.
        run: Carries it out and returns the exit status.
        refusals: Errors that mean bad input and are told in a line; others show their traceback.
    """

    name: str
    help: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    refusals: Tuple[Type[Exception], ...] = (ValueError, FileExistsError, FileNotFoundError, ModuleNotFoundError)


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', default='*', help='wildcard filter of names (default: all)')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _models(args: argparse.Namespace) -> int:
    from .info import list_names, model_info

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
        weights = 'hosted' if info.weights else 'from a file'
        print(f'{info.name:<26}{info.params / 1e6:>10.2f}{info.gmacs:>9.2f}  {size:<13}{weights}')
    return 0


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('script', help='Python script, as train.py of timm')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='its command line')


def _run(args: argparse.Namespace) -> int:
    from .run import run_script

    run_script(args.script, args.args)
    return 0


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--output', default='output/demo', help='folder for model, pictures and log (%(default)s)')
    parser.add_argument('--model', default='ceit', help='ceit, perceiver or perceiver-permuted (%(default)s)')
    parser.add_argument('--epochs', type=int, help="passes over the training images (default: the model's own number)")
    parser.add_argument('--batch-size', type=int, default=64, help='images per step (%(default)s)')
    parser.add_argument('--lr', type=float, help="peak learning rate (default: the model's own)")
    parser.add_argument('--seed', type=int, default=0, help='seed of split, initialisation and order (%(default)s)')


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    run_demo(args.output, model=args.model, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
    return 0


VERBS = (
    Verb(
        'models', 'list the models', "timm-extra models\ntimm-extra models 'ceit_*' --json", _models_arguments, _models
    ),
    Verb(
        'run',
        'run a script with the models registered',
        'timm-extra run train.py --model ceit_small --data-dir imagenet',
        _run_arguments,
        _run,
        refusals=(),  # errors are the script's own
    ),
    Verb(
        'demo',
        'train a small model on 5,000 handwritten digits, save, reload and draw it',
        'timm-extra demo\ntimm-extra demo --model perceiver --output output/perceiver',
        _demo_arguments,
        _demo,
    ),
)


def _parser() -> argparse.ArgumentParser:
    from ._version import __version__

    parser = argparse.ArgumentParser(
        prog='timm-extra', description='CeiT and friends for timm. `timm-extra VERB --help` shows examples.'
    )
    parser.add_argument('--version', action='version', version=f'timm-extra {__version__}')
    verbs = parser.add_subparsers(title='verbs', metavar='VERB', required=True)
    for verb in VERBS:
        examples = '\n'.join(f'  {line}' for line in verb.examples.splitlines())
        sub = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            epilog=f'examples:\n{examples}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(verb=verb)
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point.

    Args:
        argv: Command line without the program's name; that of the process when None.

    Returns:
        Exit status: 0 done, 1 refused with a message, 2 misused.
    """
    args = _parser().parse_args(argv)
    try:
        return args.verb.run(args)
    except args.verb.refusals as e:
        print(f'timm-extra: {e}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
