"""Exported models compute what the originals do, for batches of any size."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from timm_extra import cli, hub
from timm_extra.inference.export import export

pytestmark = pytest.mark.slow


def create(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=6, **kwargs).eval()
    nn.init.normal_(model.head.weight, std=0.1)  # some begin at zero, where nothing could go wrong
    return model


def assert_onnx(model, path, input_size):
    """Only standard operators, the model's outputs for a batch of a size never seen, and no other file."""
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} <= {'', 'ai.onnx'}
    session = onnxruntime.InferenceSession(path)
    x = torch.randn(4, *input_size)
    with torch.no_grad():
        expected = model(x).numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(session.run(None, {'input': x.numpy()})[0], expected, rtol=0, atol=1e-4)
    assert [f for f in path.parent.iterdir() if f.is_file()] == [path]


@pytest.mark.parametrize('name', ['test_ceit', 'test_perceiver', 'test_perceiver_io'])
def test_onnx(name, tmp_path):
    model = create(name)
    done = export(model, tmp_path / 'm.onnx')
    assert done.largest_error < 1e-4 and done.batch_sizes == (1, 3) and not done.constant
    assert_onnx(model, tmp_path / 'm.onnx', done.input_size)


@pytest.mark.parametrize(
    'name, kwargs, size',
    [
        ('perceiver_audio', dict(img_size=(640,), patch_size=16), (1, 640)),
        ('perceiver_pointcloud', dict(img_size=50), (50, 3)),
        ('test_perceiver', dict(img_size=(4, 8, 8)), (3, 4, 8, 8)),
        ('test_perceiver', dict(img_size=(24, 32)), (3, 24, 32)),
    ],
)
def test_perceivers_are_exported_for_inputs_of_their_own_shape(name, kwargs, size, tmp_path):
    tiny = dict(num_latents=8, latent_dim=16, num_heads=2, num_blocks=1, block_depth=1, num_bands=4)
    model = create(name, **tiny, **kwargs)
    done = export(model, tmp_path / 'm.pt2', 'torch-export')
    assert done.input_size == size and done.largest_error < 1e-4 and not done.constant


TINY = dict(num_latents=8, latent_dim=16, num_heads=2, num_blocks=1, block_depth=1, num_bands=4)
ANY_SIZE = [
    ('test_ceit', dict(dynamic_img_size=True), (3, 160, 160)),
    ('test_perceiver', dict(img_size=(24, 32)), (3, 24, 32)),
    ('test_perceiver_io', dict(img_size=32), (3, 32, 32)),
    ('test_perceiver', dict(pos_embed='learned', img_size=16, pos_dim=8, dynamic_img_size=True), (3, 16, 16)),
    ('test_perceiver', dict(stem='patches', patch_size=4, img_size=32), (3, 32, 32)),
    ('test_glom', dict(dynamic_img_size=True), (3, 56, 56)),
    ('perceiver_audio', dict(TINY, img_size=(640,)), (1, 640)),
    ('perceiver_pointcloud', dict(TINY, img_size=50), (50, 3)),
]


@pytest.mark.parametrize('format', ['onnx', 'torch-export'])
@pytest.mark.parametrize('name, kwargs, size', ANY_SIZE)
def test_inputs_of_any_size(name, kwargs, size, format, tmp_path):
    done = export(create(name, **kwargs), tmp_path / 'm', format, dynamic_size=True)
    assert done.input_size == done.sizes[0] == size and done.largest_error < 1e-4 and not done.constant
    axes = [i for i, s in enumerate(size) if s not in (1, 3)]
    doubled = [tuple(2 * s if i == axis else s for i, s in enumerate(size)) for axis in axes]
    assert list(done.sizes[1:]) == doubled


@pytest.mark.parametrize('format', ['onnx', 'torch-export'])
@pytest.mark.parametrize('name, size', [('test_ceit', '3×160×160'), ('test_glom', '3×56×56')])
def test_models_of_one_size_are_named(name, size, format, tmp_path):
    with pytest.raises(ValueError, match=f'takes inputs of {size} alone: .*dynamic_img_size=True'):
        export(create(name), tmp_path / 'm', format, dynamic_size=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('format', ['onnx', 'torch-export'])
@pytest.mark.parametrize('name', ['test_ceit', 'test_perceiver', 'test_glom', 'test_vit'])
def test_features(name, format, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    done = export(model, tmp_path / 'm', format)
    assert done.largest_error < 1e-4 and not done.constant
    if format == 'onnx':
        outputs = onnxruntime.InferenceSession(tmp_path / 'm').get_outputs()
        assert [y.name for y in outputs] == [f'output_{i}' for i in range(len(model.feature_info.channels()))]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['test_ceit', 'test_perceiver', 'test_perceiver_io', 'test_glom'])
def test_half_precision(name, dtype, tmp_path):
    model = create(name, **(dict(img_size=32) if 'perceiver' in name else {})).to(dtype)
    done = export(model, tmp_path / 'm.pt2', 'torch-export')
    assert 1e-4 < done.tolerance < 0.5 and done.largest_error <= done.tolerance and not done.constant
    if dtype == torch.bfloat16:
        with pytest.raises(ValueError, match='onnxruntime has no bfloat16'):
            export(model, tmp_path / 'm.onnx')
    else:
        done = export(model, tmp_path / 'm.onnx')
        assert done.largest_error <= done.tolerance


class Shifted(nn.Module):
    """Exports something else than it computes, by more than rounding in half precision explains."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x):
        return (x @ self.weight) * (1.05 if torch.compiler.is_compiling() else 1)


def test_half_precision_is_no_excuse(tmp_path):
    with pytest.raises(ValueError, match='outputs differ from the model by up to'):
        model = Shifted().half()
        model.pretrained_cfg = dict(input_size=(3, 8, 8))
        export(model, tmp_path / 'm.pt2', 'torch-export', input_size=(3, 8, 8))
    assert not list(tmp_path.iterdir())


class Fixed(nn.Module):
    """Exports a batch of two alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.pretrained_cfg = dict(input_size=(3, 8, 8))

    def forward(self, x):
        return x.view(2, -1) if torch.compiler.is_compiling() else x.flatten(1)


class Airy(Fixed):
    """ONNX has no operator for it."""

    def forward(self, x):
        return torch.special.airy_ai(x)


@pytest.mark.parametrize(
    'model, format, message',
    [
        (Fixed(), 'torch-export', r'Fixed does not export: .* your code specialized it to be a constant \(2\)'),
        (Airy(), 'onnx', 'Airy does not export to ONNX: No ONNX function found for .*airy_ai'),
        (Fixed(), 'onnx', r'outputs are \(2, 96\), those of the model \(1, 192\)'),
    ],
)
def test_the_reason_is_in_the_message(model, format, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        export(model, tmp_path / 'm', format, input_size=(3, 8, 8))
    assert '\n' not in str(raised.value)
    assert not list(tmp_path.iterdir())


BY_TORCHSCRIPT = [
    ('test_ceit', {}, (3, 160, 160)),
    ('test_perceiver', dict(img_size=16), (3, 16, 16)),
    ('test_perceiver', dict(img_size=16, pos_embed='learned', pos_dim=8), (3, 16, 16)),
    ('test_perceiver_io', dict(img_size=16, num_queries=3, global_pool='token'), (3, 16, 16)),
    ('perceiver_audio', dict(TINY, img_size=(640,)), (1, 640)),
    ('perceiver_pointcloud', dict(TINY, img_size=50), (50, 3)),
    ('test_glom', {}, (3, 56, 56)),
    ('test_glom', dict(local_consensus_radius=2), (3, 56, 56)),
]


@pytest.mark.parametrize('dynamo', [False, True])
@pytest.mark.parametrize('name, kwargs, size', BY_TORCHSCRIPT)
@pytest.mark.filterwarnings('ignore')
def test_both_exporters_of_torch_onnx(name, kwargs, size, dynamo, tmp_path):
    model, x = create(name, **kwargs), torch.randn(2, *size)
    shapes = dict(dynamic_shapes=({0: torch.export.Dim('b')},)) if dynamo else dict(dynamic_axes={'x': {0: 'b'}})
    torch.onnx.export(model, (x,), tmp_path / 'm.onnx', input_names=['x'], dynamo=dynamo, verbose=False, **shapes)
    session = onnxruntime.InferenceSession(tmp_path / 'm.onnx')
    for batch in (1, 2, 5):
        x = torch.randn(batch, *size)
        with torch.no_grad():
            expected = model(x).numpy()
        assert expected.std() > 1e-3
        np.testing.assert_allclose(session.run(None, {'x': x.numpy()})[0], expected, rtol=0, atol=1e-4)


def own_operators(program):
    return {str(n.target) for n in program.graph.nodes if str(n.target).startswith('timm_extra')}


FAMILIES = [
    ('test_ceit', dict(dynamic_img_size=True), (3, 160, 160), (96, 64)),
    ('test_perceiver', dict(img_size=64), (3, 64, 64), (17, 33)),
    ('test_perceiver', dict(img_size=64, stem='conv'), (3, 64, 64), (17, 33)),
    ('test_perceiver_io', dict(img_size=64), (3, 64, 64), (9, 20)),
    ('test_glom', dict(dynamic_img_size=True), (3, 56, 56), (28, 70)),
]


@pytest.mark.parametrize('name, kwargs, size, other', FAMILIES)
def test_programs_of_any_size_decompose(name, kwargs, size, other, tmp_path):
    model = create(name, **kwargs)
    auto = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, *size),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
        decomposed = program.run_decompositions()
        assert own_operators(program) or name == 'test_glom'
        assert not own_operators(decomposed)
        for batch, sizes in ((1, size[1:]), (3, other)):
            x = torch.randn(batch, 3, *sizes)
            expected = model(x)
            assert expected.std() > 1e-3
            for found in (program, decomposed):
                torch.testing.assert_close(found.module()(x), expected, rtol=0, atol=1e-4)


def built_so(name, kwargs):
    return create(name, exportable=True, **kwargs)


def set_afterwards(name, kwargs):
    model = create(name, **kwargs)
    timm.layers.set_exportable(True)
    return model


@pytest.mark.parametrize('make', [built_so, set_afterwards])
@pytest.mark.parametrize('name, kwargs, size, other', FAMILIES)
def test_exportable_models_have_no_operators_of_this_package(name, kwargs, size, other, make):
    x = torch.randn(2, *size)
    with torch.no_grad():
        expected = create(name, **kwargs)(x)
        try:
            model = make(name, kwargs)
            program = torch.export.export(model, (x,))
        finally:
            timm.layers.set_exportable(False)
        assert not own_operators(program)
        torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name, size', [('perceiver_audio', (1, 1, 640)), ('perceiver_pointcloud', (1, 50, 3))])
def test_perceivers_are_exported_for_inputs_as_timms_configuration_has_them(name, size, tmp_path):
    model = create(name, num_latents=8, latent_dim=16, num_heads=2, num_blocks=1, block_depth=1, num_bands=4)
    done = export(model, tmp_path / 'm.pt2', 'torch-export', input_size=size)
    assert done.input_size == size and done.largest_error < 1e-4


LOAD = """
import sys
import torch
import timm_extra
program = torch.export.load(sys.argv[1]).module()
print(program(torch.ones(5, 3, 160, 160)).sum().item())
"""


def test_programs_load_where_the_package_is_imported(tmp_path):
    model = create('test_ceit')
    done = export(model, tmp_path / 'm.pt2', 'torch-export')
    assert done.largest_error < 1e-4
    ran = subprocess.run([sys.executable, '-c', LOAD, str(tmp_path / 'm.pt2')], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        expected = model(torch.ones(5, 3, 160, 160)).sum().item()
    assert float(ran.stdout) == pytest.approx(expected, abs=1e-3)


class Wrong(nn.Module):
    """Computes something else than was exported."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * (2 if torch.compiler.is_compiling() else 1)


class Unclear(nn.Module):
    """What it does depends on values."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize('format', ['onnx', 'torch-export'])
@pytest.mark.parametrize(
    'model, message', [(Wrong(), 'outputs differ from the model by up to'), (Unclear(), 'does not export')]
)
def test_what_differs_is_not_left_behind(format, model, message, tmp_path):
    (tmp_path / 'm').write_text('mine')
    model.pretrained_cfg = dict(input_size=(3, 8, 8))
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / 'm', format, input_size=(3, 8, 8))
    assert (tmp_path / 'm').read_text() == 'mine'
    assert list(tmp_path.iterdir()) == [tmp_path / 'm']


def test_onnx_by_command(tmp_path, capsys):
    model = create('test_glom')
    hub.save(model, tmp_path / 'model')
    file = tmp_path / 'm.onnx'
    assert cli.main(['export', 'onnx', str(file), '--model', f'local-dir:{tmp_path}/model', '--json']) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found['largest_error'] < 1e-4 and found['input_size'] == [3, 56, 56] and not found['constant']
    assert found['megabytes'] == pytest.approx(file.stat().st_size / 1e6, abs=1e-3)
    assert captured.err == ''
    assert_onnx(model, file, found['input_size'])


def test_command_takes_sizes_dtypes_and_any_rank(tmp_path, capsys):
    tiny = [f'{name}={value}' for name, value in TINY.items()]
    model = ['--model', 'perceiver_audio', '--model-kwargs', *tiny, '--input-size', '1', '640']
    assert cli.main(['export', 'torch-export', str(tmp_path / 'm.pt2'), *model, '--dynamic-size']) == 0
    out = capsys.readouterr().out
    assert 'batches of any size of 1×640' in out
    assert 'inputs of other sizes too, as compared: 1×1280' in out
    half = ['--model', 'test_glom', '--dtype', 'float16', '--json']
    assert cli.main(['export', 'onnx', str(tmp_path / 'm.onnx'), *half]) == 0
    assert json.loads(capsys.readouterr().out)['tolerance'] > 1e-4
    assert onnx.load(tmp_path / 'm.onnx').graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_command_warns_of_random_weights_and_of_outputs_that_say_nothing(tmp_path, capsys):
    tiny = ['num_latents=8', 'latent_dim=16', 'num_heads=2', 'num_blocks=1', 'block_depth=1']
    model = ['--model', 'perceiver_pointcloud', '--model-kwargs', *tiny]
    assert cli.main(['export', 'torch-export', str(tmp_path / 'm.pt2'), *model]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        'timm-extra: the weights are random: give --pretrained, --checkpoint or local-dir:…',
        'timm-extra: the outputs do not depend on the image, so that comparing says little',
    ]
    assert 'batches of any size of 2048×3' in captured.out
    assert 'in a process that imports timm_extra' in captured.out


@pytest.mark.parametrize(
    'more, message',
    [
        (['onnx', 'm.onnx', '--model', 'test_gl0m'], "timm has no model 'test_gl0m'"),
        (['onnx', 'no/m.onnx', '--model', 'test_glom'], "no folder at 'no'"),
        (['onnx', '.', '--model', 'test_glom'], '. is a folder, not a file to write'),
        (['torch-export', 'm.pt2', '--model', 'test_glom', '--opset', '20'], 'torch-export has no opset'),
        (['onnx', 'm.onnx', '--model', 'test_glom', '--pretrained'], 'test_glom has no published weights: give '),
    ],
)
def test_export_reports_errors_in_one_line(more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['export', *more]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'timm-extra: {message}')
    assert not list(tmp_path.iterdir())


def test_onnx_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    assert cli.main(['export', 'onnx', str(tmp_path / 'm.onnx'), '--model', 'test_glom']) == 1
    assert 'ONNX needs more packages: pip install "timm-extra[export]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_formats_are_named():
    with pytest.raises(SystemExit) as stop:
        cli.main(['export', 'caffe', 'x', '--model', 'test_glom'])
    assert stop.value.code == 2
    with pytest.raises(ValueError, match="formats are onnx and torch-export, got 'caffe'"):
        export(create('test_glom'), 'x', 'caffe')
