"""What the code is made of and who imports whom, read from its source: the facts behind tests/test_architecture.py.

`python tests/architecture.py [ROOT …]` prints them for this checkout, or for others side by side.
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Set, Tuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {'timm_extra': 'timm_extra', 'timm_extra_kernels': 'kernels/torch-ext/timm_extra_kernels'}
SOURCES['benchmarks'] = 'benchmarks'
OPTION = 'clip_grad'  # an option of pretraining whose mentions are counted, as one of many


@dataclass(frozen=True)
class Module:
    """A source file.

    Attributes:
        name: Dotted name; that of the package for its `__init__`.
        path: File.
        tree: Its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__` of a folder."""
        return self.path.name == '__init__.py'

    @property
    def part(self) -> str:
        """The folder or loose module of the first two levels that it belongs to, as `timm_extra.models`."""
        return '.'.join([*self.name.split('.'), '__init__'][:2])


def modules(root: Path = ROOT) -> Dict[str, Module]:
    """Every source file below the packages, by dotted name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted((root / folder).rglob('*.py')):
            parts = path.relative_to(root / folder).with_suffix('').parts
            name = '.'.join([package, *(parts[:-1] if parts[-1] == '__init__' else parts)])
            found[name] = Module(name, path, ast.parse(path.read_text()))
    ops = 'timm_extra_kernels._ops'  # generated, so it may be absent
    found[ops] = Module(ops, Path('_ops.py'), ast.parse(''))
    return found


def imports(module: Module) -> Iterator[str]:
    """Absolute dotted names that a module imports, those within functions too."""
    package = module.name.split('.')
    if not module.is_package:
        package = package[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = '.'.join([*base, *([node.module] if node.module else [])])
            yield from (f'{name}.{alias.name}' for alias in node.names)


def target(name: str, known: Dict[str, Module]) -> str:
    """The module that an imported name is or stands in; empty if it is none of ours."""
    while name and name not in known:
        name = name.rpartition('.')[0]
    return name


def graph(known: Dict[str, Module]) -> Dict[str, Set[str]]:
    """Modules that each module imports, of ours."""
    arrows = {}
    for name, module in known.items():
        arrows[name] = {t for t in (target(i, known) for i in imports(module)) if t and t != name}
    return arrows


def circles(arrows: Dict[str, Set[str]]) -> List[List[str]]:
    """Groups of modules that reach one another by imports (Tarjan's strongly connected components)."""
    index: Dict[str, int] = {}
    low: Dict[str, int] = {}
    stack: List[str] = []
    found: List[List[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in arrows:
        if name not in index:
            visit(name)
    return found


def part_arrows(known: Dict[str, Module]) -> Set[Tuple[str, str]]:
    """Imports between packages and loose modules of the first two levels."""
    arrows = set()
    for name, others in graph(known).items():
        for other in others:
            pair = known[name].part, known[other].part
            if pair[0] != pair[1]:
                arrows.add(pair)
    return arrows


def functions(known: Dict[str, Module]) -> Iterator[Tuple[str, int, int]]:
    """Name, lines and number of parameters of every function but Triton's."""
    for module in known.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and not any(
                'triton.jit' in ast.unparse(d) for d in node.decorator_list
            ):
                a = node.args
                count = len([*a.posonlyargs, *a.args, *a.kwonlyargs])
                own = sum(arg.arg in ('self', 'cls') for arg in a.args[:1])
                yield f'{module.name}:{node.name}', node.end_lineno - node.lineno + 1, count - own


def mentions(known: Dict[str, Module], word: str) -> List[str]:
    """Lines of the package that name a word."""
    pattern = re.compile(word.replace('_', '[_-]'))
    return [
        f'{module.name}:{number}'
        for module in known.values()
        if module.name.startswith('timm_extra.')
        for number, line in enumerate(module.path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def report(root: Path) -> List[str]:
    """The facts about a checkout, a line each."""
    known = modules(root)
    lines: Dict[str, int] = {}
    for module in known.values():
        if module.path.is_absolute():
            lines[module.part] = lines.get(module.part, 0) + len(module.path.read_text().splitlines())
    loose = [n.split('.')[1] for n, m in known.items() if re.fullmatch(r'timm_extra\.\w+', n) and not m.is_package]
    loose = [n for n in loose if n not in ('__main__', '_version')]
    every = list(functions(known))
    plain = [f for f in every if not f[0].endswith(':__init__')]
    named = mentions(known, OPTION)
    out = [f'{root.name}: {sum(lines.values()):,} lines in {len(known)} files']
    out += [f'  {part:<45}{count:>6}' for part, count in sorted(lines.items()) if not part.startswith('benchmarks.')]
    out.append(f'  {"benchmarks":<45}{sum(n for p, n in lines.items() if p.startswith("benchmarks")):>6}')
    out.append(f'loose modules of timm_extra: {len(loose)} ({", ".join(loose)})')
    out.append(
        f'import arrows: {sum(map(len, graph(known).values()))} between files, {len(part_arrows(known))} between'
    )
    out[-1] += ' packages'
    groups = circles(graph(known))
    out.append(f'circles: {len(groups)}' + ''.join(f'\n  {" ↔ ".join(group)}' for group in groups))
    for title, found, at in (('longest functions', plain, 1), ('longest parameter lists', plain, 2)):
        top = sorted(found, key=lambda f: -f[at])[:3]
        out.append(f'{title}: ' + ', '.join(f'{f[0]} {f[at]}' for f in top))
    top = sorted((f for f in every if f[0].endswith(':__init__')), key=lambda f: -f[2])[:3]
    out.append('longest constructors: ' + ', '.join(f'{f[0]} {f[2]}' for f in top))
    out.append(f'places that name {OPTION}: {len(named)} ({", ".join(named)})')
    return out


def main(roots: Sequence[str]) -> None:
    """Print the facts."""
    for root in roots or [str(ROOT)]:
        print('\n'.join(report(Path(root).resolve())), end='\n\n')


if __name__ == '__main__':
    main(sys.argv[1:])
