"""The parser of the command: lists end where a word is no item of them, and misuse is one line."""

import argparse
import ast
import re
import sys
from typing import Any, List, NoReturn, Optional, Sequence, Tuple

from timm_extra._nearest import nearest

LISTS = (argparse.ZERO_OR_MORE, argparse.ONE_OR_MORE)
REST = (argparse.REMAINDER, argparse.PARSER)
NUMBER = re.compile(r'-\.?\d')


class Pairs(argparse.Action):
    """`NAME=VALUE …` as a dictionary; values are read as Python where they can be, as in timm's scripts."""

    def __call__(self, parser, namespace, values, option_string=None):
        found = dict(getattr(namespace, self.dest) or {})
        for word in values:
            name, equals, value = word.partition('=')
            if not name or not equals:
                parser.error(f'argument {option_string}: {word!r} is not NAME=VALUE')
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[name] = value
        setattr(namespace, self.dest, found)


class Parser(argparse.ArgumentParser):
    """Understands `predict --mean 0.5 0.5 0.5 photo.jpg`, where argparse takes the image for a fourth number."""

    def parse_known_args(self, args: Optional[Sequence[str]] = None, namespace: Any = None) -> Tuple[Any, List[str]]:
        words = list(sys.argv[1:] if args is None else args)
        if not any(action.nargs in REST for action in self._actions):
            words = self._ordered(words)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, and exit status 2."""
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())} ({self.prog} --help)\n')

    def _ordered(self, words: List[str]) -> List[str]:
        """Words with those that end a list moved in front of the options.

        Raises:
            SystemExit: An option is not known.
        """
        kept: List[str] = []
        moved: List[str] = []
        items: Optional[argparse.Action] = None  # the option whose list the words are in
        ended, first = False, None
        for index, word in enumerate(words):
            if word == '--':
                kept += words[index:]
                break
            if len(word) > 1 and word[0] == '-' and not NUMBER.match(word):
                option, ended = self._option(word), False
                items = option if option is not None and option.nargs in LISTS and '=' not in word else None
                first = len(kept) if first is None else first
            else:
                ended = ended or (items is not None and not _fits(items, word))
                if ended:
                    moved.append(word)
                    continue
            kept.append(word)
        first = len(kept) if first is None else first
        return kept[:first] + moved + kept[first:]

    def _option(self, word: str) -> Optional[argparse.Action]:
        """The option that a word is or begins; None where argparse must decide."""
        flag = word.partition('=')[0]
        flags = {flag: action for action in self._actions for flag in action.option_strings}
        if flag in flags or not flag.startswith('--'):
            return flags.get(flag)
        begun = [action for name, action in flags.items() if name.startswith(flag)]
        if not begun:
            self.error(f'unrecognized argument {flag}{nearest(flag, flags)}')
        return begun[0] if len(begun) == 1 else None


def _fits(option: argparse.Action, word: str) -> bool:
    """Whether a word can be an item of an option's list."""
    if isinstance(option, Pairs):
        return '=' in word
    try:
        value = option.type(word) if option.type else word
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        return False
    return option.choices is None or value in option.choices
