"""The kernel project as Hugging Face's kernel tools and our wheel expect it."""

import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest depends on it there

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'torch-ext' / 'timm_extra_kernels'


def test_the_build_file_names_the_package():
    build = tomllib.loads((ROOT / 'build.toml').read_text())
    assert build['general']['name'].replace('-', '_') == PACKAGE.name
    assert build['general']['license'] == 'Apache-2.0'
    assert 'torch-noarch' in build


def test_it_imports_without_timm():
    code = 'import sys; sys.modules["timm"] = None; import timm_extra_kernels; assert "timm_extra" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_operator_namespace_is_generated_and_not_tracked():
    from timm_extra_kernels._ops import add_op_namespace_prefix

    assert add_op_namespace_prefix('x') == 'timm_extra::x'
    ignored = subprocess.run(['git', 'check-ignore', '-q', PACKAGE / '_ops.py'], cwd=ROOT)
    assert ignored.returncode == 0
