"""What a verb of the command is."""

import argparse
from dataclasses import dataclass
from typing import Callable, Tuple, Type

# RuntimeError: of the Hub, whose own class would cost every start the import of its client
HUB_REFUSALS = (ValueError, OSError, RuntimeError)


@dataclass(frozen=True)
class Verb:
    """One word of the command.

    Attributes:
        name: The word.
        help: One line.
        examples: Command lines for `--help`.
        add_arguments: Declares the arguments on a parser.
        run: Carries it out and returns the exit status.
        refusals: Errors that mean bad input and are reported in one line; others show their traceback.
    """

    name: str
    help: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    refusals: Tuple[Type[Exception], ...] = (ValueError, OSError, ModuleNotFoundError)
