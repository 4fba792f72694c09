"""onnxruntime: files of both exporters, with batches of any size."""

import onnx
import onnxruntime
import pytest
import torch
from torch.testing import assert_close

from tests.clients.zoo import MODELS, images, make


def exported(model, x, path, dynamo):
    """Write a model with a dynamic batch to an ONNX file."""
    if dynamo:
        batch = torch.export.Dim('batch', min=1, max=64)
        options = dict(dynamic_shapes=({0: batch},), verbose=False)
    else:
        options = dict(dynamic_axes={'x': {0: 'batch'}, 'y': {0: 'batch'}})
    torch.onnx.export(model, (x,), path, dynamo=dynamo, input_names=['x'], output_names=['y'], **options)


@pytest.mark.parametrize('dynamo', (True, False), ids=('dynamo', 'torchscript'))
@pytest.mark.parametrize('name', MODELS)
def test_every_batch_gives_what_the_model_gives(name, dynamo, tmp_path):
    model, path = make(name), str(tmp_path / 'model.onnx')
    exported(model, images(name, 2), path, dynamo)
    assert {node.domain for node in onnx.load(path).graph.node} <= {'', 'ai.onnx', 'pkg.onnxscript.torch_lib'}
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for number in (2, 1, 3):
        x = images(name, number, seed=number)
        (found,) = session.run(None, {'x': x.numpy()})
        assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-3, atol=1e-4)
