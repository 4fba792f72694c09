"""OpenVINO: models converted from exported programs and from ONNX files."""

import openvino
import pytest
import torch
from torch.testing import assert_close

from tests.clients.test_onnxruntime import exported
from tests.clients.zoo import MODELS, TIMM, images, make


def outputs(converted, x):
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
    return torch.from_numpy(openvino.Core().compile_model(converted, 'CPU', options)(x.numpy())[0])


@pytest.mark.parametrize('name', MODELS)
def test_an_exported_program_gives_what_the_model_gives(name):
    options = dict(dynamic_img_size=False) if name == TIMM else {}  # OpenVINO has no antialiased interpolation
    model, x = make(name, **options).requires_grad_(False), images(name)
    converted = openvino.convert_model(torch.export.export(model, (x,)))
    assert_close(outputs(converted, x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', MODELS)
def test_an_onnx_file_gives_what_the_model_gives(name, tmp_path):
    model, x, path = make(name).requires_grad_(False), images(name, 3), str(tmp_path / 'model.onnx')
    exported(model, images(name, 2), path, dynamo=True)
    assert_close(outputs(openvino.Core().read_model(path), x), model(x), rtol=1e-3, atol=1e-4)
