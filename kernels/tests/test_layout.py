"""The kernel project as Hugging Face's kernel tools and our wheel expect it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import timm_extra_kernels

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


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The project as kernel-builder would build it."""
    directory = tmp_path_factory.mktemp('built')
    subprocess.run([sys.executable, ROOT / 'build_local.py', directory], check=True)
    return directory


def run(code, built):
    """Run code with the built layout as `built` in a process of its own: pytest makes a `kernels` of this folder."""
    begin = f'import sys; from pathlib import Path; import torch; import kernels; built = Path({str(built)!r})\n'
    done = subprocess.run([sys.executable, '-c', begin + code], cwd=built, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
