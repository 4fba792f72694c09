"""Options that stand in one dataclass: `option` declares a field, from which flags, checks and a table follow."""

from dataclasses import Field, field, fields
from typing import Any, Optional, Sequence, Tuple, Union


def option(
    default: Any,
    help: str,
    *,
    none: Optional[str] = None,
    choices: Optional[Sequence[str]] = None,
    flags: Optional[Sequence[str]] = None,
    metavar: Optional[Union[str, Tuple[str, ...]]] = None,
    group: Optional[str] = None,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: The default.
        help: What it does, in a sentence or two; `--help` and the docs show it.
        none: What the default None means.
        choices: The allowed values, or the allowed items of a tuple.
        flags: Flags of the command where they are not `--name-of-the-field`; one word for a positional argument.
        metavar: As argparse has it.
        group: Title of the group in `--help`.

    Returns:
        The field.
    """
    metadata = dict(help=help, none=none, choices=choices and tuple(choices), flags=flags, metavar=metavar, group=group)
    return field(default=default, metadata=metadata)


def flags_of(one: Field) -> Tuple[str, ...]:
    """Flags of the command."""
    return tuple(one.metadata['flags'] or [f'--{one.name.replace("_", "-")}'])


def default_of(one: Field) -> str:
    """The default as `--help` and the docs show it, empty if there is none."""
    if one.default is None:
        return one.metadata['none'] or ''
    if isinstance(one.default, tuple):
        return ' '.join(map(str, one.default))
    return {True: 'on', False: 'off'}[one.default] if isinstance(one.default, bool) else str(one.default)


def check_choices(options: Any) -> None:
    """Refuse values that are none of an option's choices.

    Args:
        options: Instance of a dataclass of options.

    Raises:
        ValueError: There is such a value.
    """
    for one in fields(options):
        value, choices = getattr(options, one.name), one.metadata['choices']
        for item in value if isinstance(value, tuple) else (value,):
            if choices and item is not None and item not in choices:
                raise ValueError(f'`{one.name}` must be one of {", ".join(choices)}, got {item!r}')


def markdown_table(options: type) -> str:
    """Options of a dataclass as a Markdown table: name in Python, flags of the command, default, help."""
    rows = ['| option | command | default | meaning |', '|---|---|---|---|']
    for one in fields(options):
        flags, choices = flags_of(one), one.metadata['choices']
        if not flags[0].startswith('-'):
            flags = [word.upper() for word in flags]
        if one.default is True:
            flags = [f'--no-{flag[2:]}' for flag in flags]
        shown = ', '.join(f'`{flag}`' for flag in flags)
        words = f' One of {", ".join(f"`{c}`" for c in choices)}.' if choices else ''
        rows.append(f'| `{one.name}` | {shown} | {default_of(one)} | {one.metadata["help"]}{words} |')
    return '\n'.join(rows) + '\n'
