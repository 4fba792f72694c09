"""Messages of the library in the words of the command."""

import argparse
import re
from typing import Dict

# `name` or `name=value`: how the library writes an option in a message
OPTION = re.compile(r'`([\w.]+)(?:=([^`]*))?`')


def as_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """Name options as the command has them: `` `unreadable='skip'` `` is `--unreadable skip`.

    Args:
        message: Text in which options stand between backticks, as in Python.
        parser: Parser of the verb.

    Returns:
        The text with flags; what the verb has no flag for stays, without the backticks.
    """
    flags: Dict[str, str] = {}
    for action in parser._actions:  # argparse has no other way to ask
        long = [flag for flag in action.option_strings if flag.startswith('--')]
        flags[action.dest] = long[0] if long else action.dest.upper()

    def flag(found: re.Match) -> str:
        name, value = found.groups()
        if name not in flags:
            return found[0].strip('`')
        if value == 'False':
            return f'--no-{flags[name].removeprefix("--")}'
        if value in (None, 'True'):
            return flags[name]
        return ' '.join([flags[name], *re.sub(r"[(),\[\]'\"]", ' ', value).split()])

    return OPTION.sub(flag, message)
