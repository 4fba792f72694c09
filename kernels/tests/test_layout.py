"""The kernel project as Hugging Face's kernel tools and our wheel expect it."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import timm_extra_kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest depends on it there

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'torch-ext' / 'timm_extra_kernels'
BEGIN = 'import sys; from pathlib import Path; import torch; import kernels; built = Path({!r})\n'


def test_the_build_file_names_the_package():
    build = tomllib.loads((ROOT / 'build.toml').read_text())
    assert build['general']['name'].replace('-', '_') == PACKAGE.name
    assert build['general']['license'] == 'Apache-2.0'
    assert 'torch-noarch' in build
    assert (ROOT / 'flake.nix').exists(), 'kernel-builder starts from it'


def test_it_imports_without_timm():
    code = 'import sys; sys.modules["timm"] = None; import timm_extra_kernels; assert "timm_extra" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_operator_namespace_is_generated_and_not_tracked():
    from timm_extra_kernels._ops import add_op_namespace_prefix

    assert add_op_namespace_prefix('x') == 'timm_extra::x'
    ignored = subprocess.run(['git', 'check-ignore', '-q', PACKAGE / '_ops.py'], cwd=ROOT)
    assert ignored.returncode == 0


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The project as kernel-builder would build it."""
    directory = tmp_path_factory.mktemp('built')
    subprocess.run([sys.executable, ROOT / 'build_local.py', directory], check=True)
    return directory


def started(built, *command, **environment):
    """A process in the built layout, without a network; what it printed."""
    environment = dict(os.environ, HF_HUB_OFFLINE='1', **environment)
    done = subprocess.run(command, cwd=built, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(code, built, **environment):
    """Run code with the built layout as `built` in a process of its own: pytest makes a `kernels` of this folder."""
    return started(built, sys.executable, '-c', BEGIN.format(str(built)) + code, **environment)


def test_the_tools_read_the_project_and_its_build(built):
    code = f"""
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
backends = Build.open({str(ROOT)!r}).general.backends
variants = sorted((built / 'build').iterdir())
assert len(variants) == len(backends)
for variant in variants:
    metadata = Metadata.read_from_file(variant / 'metadata.json')
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
    assert metadata.backend.backend_type in backends
"""
    run(code, built)
    info = started(built, sys.executable, '-c', 'from kernels.cli import main; main()', 'info', '.', '--json')
    found = json.loads(info)
    expected = tomllib.loads((ROOT / 'build.toml').read_text())['general']
    assert {key: found[key] for key in ('name', 'version', 'license', 'source', 'backends')} == {
        key: expected[key] for key in ('name', 'version', 'license', 'source', 'backends')
    }


def test_a_changed_file_is_noticed(built, tmp_path):
    code = """
import shutil, sys
from kernels._rust import Digest, DigestAlgorithm, DigestValidationError, Metadata
variant = shutil.copytree(built / 'build' / 'torch-cpu', Path(sys.argv[1]) / 'variant')
with open(variant / '__init__.py', 'a') as file:
    file.write(' ')
reference = Metadata.read_from_file(variant / 'metadata.json').digest
try:
    reference.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
except DigestValidationError as error:
    print(*error.violations)
"""
    assert '__init__.py' in started(built, sys.executable, '-c', f'{BEGIN.format(str(built))}{code}', str(tmp_path))


def test_the_code_of_the_card_runs(built):
    card = (built / 'README.md').read_text()
    assert '{' not in re.sub(r'```.*?```', '', card, flags=re.DOTALL), 'a blank was not filled'
    (code,) = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    repository = tomllib.loads((ROOT / 'build.toml').read_text())['general']['hub']['repo-id']
    assert f"get_kernel('{repository}', version=1, trust_remote_code=True)" in code
    assert 'PyTorch' in run(code, built, LOCAL_KERNELS=f'{repository}={built}') or torch.cuda.is_available()
    assert all(f'- `{name}`' in card for name in set(timm_extra_kernels.__all__) - {'layers'})


def test_the_example_runs(built):
    assert 'equal to attention to tokens' in started(built, sys.executable, str(ROOT / 'example.py'), str(built))


def test_benchmarks_are_what_the_tool_runs(built):
    code = """
from kernels.cli.benchmark import discover_benchmark_classes, discover_benchmark_scripts, run_benchmark_class
scripts = discover_benchmark_scripts('.', built)
assert 'benchmark.py' in [script.name for script in scripts]  # which the card looks for
found = [one for script in scripts for one in discover_benchmark_classes(script, built)]
for name in kernels.get_local_kernel(built).layers.__all__:
    assert name in [one.__name__ for one in found], name
for one in found:
    workloads = [name for name in dir(one) if name.startswith('benchmark_')]
    assert workloads and all(hasattr(one, name.replace('benchmark_', 'verify_')) for name in workloads)
(smallest,) = (one for one in found if one.__name__ == 'ClassAttention')
results, _ = run_benchmark_class(smallest, 1, 0, str(built), True, 'local')
assert all(result.verified for result in results.values())
"""
    run(code, built)


@pytest.mark.slow
def test_the_benchmark_command_runs_on_the_build(built):
    code = """
import kernels.cli.benchmark as benchmark
if benchmark.tabulate is None:  # what it prints its table with comes with the extra `kernels[benchmark]`
    benchmark.tabulate, benchmark.MISSING_DEPS = (lambda *args, **kwargs: ''), []
result = benchmark.run_benchmark('.', None, None, iterations=1, warmup=0)
assert len(result.timing_results) > 5
assert all(one.verified for one in result.timing_results.values())
"""
    run(code, built)


INPUTS = """
torch.manual_seed(0)
device = 'cuda' if torch.cuda.is_available() else 'cpu'
q, k, v = (torch.randn(2, 3, n, 8, device=device) for n in (1, 5, 5))
expected = (q @ k.mT * 0.5).softmax(-1) @ v
"""


def test_the_built_kernel_loads_and_runs(built):
    code = """
kernel = kernels.get_local_kernel(built)
assert Path(kernel.__file__).is_relative_to(built)
assert 'timm_extra_kernels' not in sys.modules and 'triton' not in sys.modules
torch.testing.assert_close(kernel.class_attention(q, k, v, scale=0.5), expected)
print(kernel.explain(kernel.class_attention, q, k, v, scale=0.5))
"""
    run(INPUTS + code, built)


def test_its_layers_take_the_place_of_functions(built):
    code = """
@kernels.use_kernel_forward_from_hub('ClassAttention')
def attend(q, k, v, *, scale):
    raise AssertionError('the function was not replaced')

@kernels.use_kernelized_func(attend)
class Model(torch.nn.Module):
    def forward(self, q, k, v):
        return attend(q, k, v, scale=0.5)

layer = kernels.LocalLayerRepository(built, layer_name='ClassAttention')
mapping = {'ClassAttention': {kernels.Device(type=device): layer}}
with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
    model = kernels.kernelize(Model(), mode=kernels.Mode.TRAINING, device=device)
torch.testing.assert_close(model(q, k, v), expected)
"""
    run(INPUTS + code, built)


def test_every_layer_has_the_signature_of_its_function():
    from timm_extra_kernels import layers

    names = {name.replace('_', ''): getattr(timm_extra_kernels, name) for name in timm_extra_kernels.__all__}
    for name in layers.__all__:
        layer = getattr(layers, name)
        ours = list(inspect.signature(layer.forward).parameters.values())[1:]
        assert ours == list(inspect.signature(names[name.lower()]).parameters.values()), name
