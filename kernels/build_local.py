"""Build the kernel project as kernel-builder would, without Nix: a folder that `kernels` takes as a repository.

`python kernels/build_local.py DIRECTORY` writes DIRECTORY/build/torch-<backend>/ for every backend of build.toml, each
with the sources, the operator namespace of that build (`_ops.py`) and `metadata.json` with a digest of every file; and
beside build/ what an upload has there: the card as README.md, with its blanks filled, and the benchmarks.
"""

import ast
import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List

import jinja2  # which PyTorch depends on

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent
OPS = """import torch

ops = getattr(torch.ops, "{namespace}")


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{namespace}::{{op_name}}"
"""


def build(directory: Path) -> List[Path]:
    """Write every build variant, the card and the benchmarks.

    Args:
        directory: Where `build/`, `benchmarks/` and README.md are replaced.

    Returns:
        The folders of the variants.
    """
    general = tomllib.loads((ROOT / 'build.toml').read_text())['general']
    module = general['name'].replace('-', '_')
    sources = ROOT / 'torch-ext' / module
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'README.md').write_text(_card(general, sources), encoding='utf-8')
    shutil.rmtree(directory / 'benchmarks', ignore_errors=True)
    shutil.copytree(ROOT / 'benchmarks', directory / 'benchmarks', ignore=shutil.ignore_patterns('__pycache__'))
    revision = hashlib.sha256(b''.join(p.read_bytes() for p in sorted(sources.rglob('*.py')))).hexdigest()[:7]
    shutil.rmtree(directory / 'build', ignore_errors=True)
    variants = []
    for backend in general['backends']:
        variant = directory / 'build' / f'torch-{backend}'
        shutil.copytree(sources, variant, ignore=shutil.ignore_patterns('__pycache__', '_ops.py'))
        namespace = f'_{module}_{backend}_{revision}'
        (variant / '_ops.py').write_text(OPS.format(namespace=namespace))
        metadata = {
            'id': namespace,
            'name': general['name'],
            'version': general['version'],
            'license': general['license'],
            'source': general['source'],
            'python-depends': [],
            'backend': {'type': backend},
            'digest': {'algorithm': 'sha256', 'files': _digests(variant)},
        }
        (variant / 'metadata.json').write_text(json.dumps(metadata, indent=1))
        variants.append(variant)
    return variants


def _card(general: Dict[str, Any], sources: Path) -> str:
    """The card with its blanks filled, by the names that kernel-builder knows."""
    template = jinja2.Environment(trim_blocks=True).from_string((ROOT / 'CARD.md').read_text(encoding='utf-8'))
    assigned = [node for node in ast.parse((sources / '__init__.py').read_text()).body if isinstance(node, ast.Assign)]
    (public,) = (ast.literal_eval(node.value) for node in assigned if node.targets[0].id == '__all__')
    return template.render(
        repo_id=general['hub']['repo-id'],
        version=general['version'],
        license=general['license'].lower(),
        source=general['source'],
        functions=[name for name in public if name != 'layers'],
        has_benchmark=(ROOT / 'benchmarks' / 'benchmark.py').exists(),
    )


def _digests(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


if __name__ == '__main__':
    for made in build(Path(sys.argv[1])):
        print(made)
