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
