"""`python -m benchmarks report`: a report with pictures, and the sections of pages that state figures of it."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import List

from .files import load, write
from .plots import PICTURES
from .report import RATIO, markdown, table
from .rows import Result, overview, where

SECTION = re.compile(r'(<!-- benchmarks: (\S+) -->\n).*?(<!-- /benchmarks -->)', re.DOTALL)
BEGIN = re.compile(r'<!-- benchmarks: (\S+) -->')
SUMMARY = 'summary'  # name of the section with pictures and all families; other sections are named by their rows
EXAMPLES = """examples:
  python -m benchmarks report benchmarks/results/cpu.json
  python -m benchmarks report benchmarks/results/cpu.json --only ceit/
  python -m benchmarks report benchmarks/results/cpu.json --into docs/benchmarks.md docs/glom.md docs/pretraining.md"""


def pictures(result: Result, file: Path, folder: Path) -> List[str]:
    """Lines that show the pictures of a result file.

    Args:
        result: What the file holds.
        file: The file, whose pictures lie beside it.
        folder: Folder of the page that shows them.
    """
    beside = os.path.relpath(file.parent, folder)
    lines: List[str] = []
    for name, picture in PICTURES.items():
        if picture.select(result):
            shown = Path(beside, f'{file.stem}-{name}.png').as_posix()
            lines += [f'![{picture.title}]({shown})', '']
    return lines


def page(result: Result, file: Path, drawn: bool = True) -> List[str]:
    """Lines of the report that lies beside a result file, with its pictures or without."""
    lines = markdown(result)
    return [*lines[:2], *(pictures(result, file, file.parent) if drawn else []), *lines[2:]]


def write_page(result: Result, file: Path) -> None:
    """Write the report and its pictures beside a result file, in place of those that are there.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the report is written, without pictures.
    """
    drawn = False
    for name in PICTURES:
        file.with_name(f'{file.stem}-{name}.png').unlink(missing_ok=True)
    try:
        for name, picture in PICTURES.items():
            picture.draw(result, file.with_name(f'{file.stem}-{name}.png'))
        drawn = True
    finally:
        write('\n'.join(page(result, file, drawn)) + '\n', file.with_suffix('.md'))


def sections(text: str) -> List[str]:
    """Names of the sections of a page, in order.

    Raises:
        ValueError: A section has no end, or another one begins before it.
    """
    names = [match[2] for match in SECTION.finditer(text)]
    begun = BEGIN.findall(text)
    if names != begun:
        open_ended = next(name for i, name in enumerate(begun) if names[i : i + 1] != [name])
        raise ValueError(f'the section {open_ended!r} has no <!-- /benchmarks -->')
    return names


def splice(text: str, result: Result, file: Path, folder: Path) -> str:
    """A page with the figures of a result in all its sections.

    A section is what lies between `<!-- benchmarks: NAME -->` and `<!-- /benchmarks -->`: the pictures and a table of
    all families where NAME is 'summary', a table of the rows whose name begins with NAME elsewhere.

    Args:
        text: The page.
        result: What the result file holds.
        file: The result file.
        folder: Folder of the page.

    Raises:
        ValueError: There is no section, one has no end, or no row belongs to it.
    """
    if not sections(text):
        raise ValueError('there is no section: no <!-- benchmarks: summary --> … <!-- /benchmarks -->')

    def filled(match: 're.Match[str]') -> str:
        return '\n'.join([f'{match[1]}', *_section(match[2], result, file, folder), '', match[3]])

    return SECTION.sub(filled, text)


def _section(name: str, result: Result, file: Path, folder: Path) -> List[str]:
    prefix = '' if name == SUMMARY else name
    rows = [row for row in overview(result) if row['name'].startswith(prefix)]
    if not rows:
        raise ValueError(f'no row belongs to the section {name!r}')
    lines = [f'Measured {where(result)}. {RATIO}', '']
    if name == SUMMARY:
        lines += pictures(result, file, folder)
    lines += table(rows)
    wrong = [f'`{row["name"]}`' for row in result['rows'] if not row['correct'] and row['name'].startswith(prefix)]
    return [*lines, '', f'Wrong or failed, and without a speed: {", ".join(wrong)}.'] if wrong else lines


def _run(args: argparse.Namespace) -> None:
    result = load(args.file)
    if args.only:
        if not any(args.only in row['name'] for row in result['rows']):
            raise ValueError(f'{args.file} has no row whose name contains {args.only!r}')
        print('\n'.join(markdown(result, args.only)))
        return
    texts = []
    for path in args.into:
        try:
            texts.append(splice(path.read_text(encoding='utf-8'), result, args.file.resolve(), path.resolve().parent))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    write_page(result, args.file)
    for path, text in zip(args.into, texts, strict=True):
        write(text, path)
    print('\n'.join(map(str, [args.file.with_suffix('.md'), *args.into])))


def main(argv: List[str]) -> int:
    """Entry point of `python -m benchmarks report`.

    Args:
        argv: Arguments behind the verb.

    Returns:
        Exit status: 0, or 2 when a file is missing or not what it has to be.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks report',
        description='Write a result file as Markdown with pictures, beside it.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', type=Path, metavar='FILE.json', help='what `python -m benchmarks --out` wrote')
    parser.add_argument('--only', default='', metavar='PART', help='print rows whose name contains PART, write nothing')
    parser.add_argument(
        '--into', type=Path, nargs='+', default=[], metavar='PAGE.md', help='fill the sections of these pages too'
    )
    args = parser.parse_args(argv)
    if args.only and args.into:
        parser.error('--into takes all rows: it goes without --only')
    try:
        _run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f'benchmarks report: {error}', file=sys.stderr)
        return 2
    return 0
