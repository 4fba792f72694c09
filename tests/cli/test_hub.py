"""The command against the stand-in Hub, in processes of its own."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.hub.standin import TOKEN, Hub
from tests.reference.perceiver import transformers_classifier
from timm_extra import hub
from timm_extra.inference.predict import predict

pytestmark = pytest.mark.slow


@pytest.fixture
def there():
    with Hub() as there:
        yield there


@pytest.fixture
def photo(tmp_path):
    pixels = torch.randint(0, 256, (60, 80, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


def timm_extra(there, folder, *words, **environment):
    env = {**os.environ, **there.environment(folder / 'home'), **environment}
    command = [sys.executable, '-m', 'timm_extra', *map(str, words)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


def test_a_model_goes_there_and_comes_back(there, photo, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_glom', num_classes=7).eval()
    hub.save(model, tmp_path / 'saved')
    pushed = timm_extra(there, tmp_path, 'push', 'saved', 'me/model', '--message', 'First')
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f'{there.url}/me/model/commit/')
    pulled = timm_extra(there, tmp_path, 'pull', 'me/model', 'back')
    assert pulled.returncode == 0, pulled.stderr
    again = timm.create_model(f'local-dir:{tmp_path}/back', pretrained=True).eval()
    x = torch.randn(2, 3, 56, 56)
    assert torch.equal(again(x), model(x))

    predicted = timm_extra(there, tmp_path, 'predict', photo, '--model', 'hf-hub:me/model', '--json', '--topk', 7)
    assert predicted.returncode == 0, predicted.stderr
    (found,) = json.loads(predicted.stdout)
    (expected,) = predict(model, [photo], topk=7)
    assert [p['label'] for p in found['guesses']] == [p.label for p in expected.guesses]
    assert TOKEN not in pushed.stdout + pushed.stderr + pulled.stdout + pulled.stderr + predicted.stderr


def test_refusals_are_a_line(there, tmp_path):
    hub.save(timm.create_model('test_glom', num_classes=7), tmp_path / 'saved')
    wrong = timm_extra(there, tmp_path, 'push', 'saved', 'me/model', HF_TOKEN='hf_wrong')
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith('timm-extra: nothing was pushed to me/model: ')
    assert 'hf_wrong' not in wrong.stderr and not there.repos
    absent = timm_extra(there, tmp_path, 'pull', 'me/nothing', 'back')
    assert absent.returncode == 1 and not (tmp_path / 'back').exists()
    assert 'there is no repository me/nothing' in absent.stderr.strip().splitlines()[-1]


def test_predicting_with_published_weights(there, photo, tmp_path):
    """`timm-extra predict photo.png --model perceiver_io_base`, with weights as transformers writes them."""
    other = transformers_classifier('perceiver_io_base')
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / 'model.safetensors')
    there.add('deepmind/vision-perceiver-fourier', {'model.safetensors': (tmp_path / 'model.safetensors').read_bytes()})
    predicted = timm_extra(there, tmp_path, 'predict', photo, '--model', 'perceiver_io_base', '--json')
    assert predicted.returncode == 0, predicted.stderr
    (found,) = json.loads(predicted.stdout)
    overlay = dict(state_dict=other.state_dict())
    model = timm.create_model('perceiver_io_base', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    (expected,) = predict(model, [photo])
    assert [p['label'] for p in found['guesses']] == [p.label for p in expected.guesses]
    assert [p['probability'] for p in found['guesses']] == pytest.approx([p.probability for p in expected.guesses])
