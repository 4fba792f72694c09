"""`timm-extra convert | push | pull` and `plot attention`, as a user types them."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_extra import cli, hub
from timm_extra.plot import plot_attention


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('image') / 'photo.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_convert(tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model('test_ceit', num_classes=4)
    torch.save({'state_dict': model.state_dict(), 'epoch': 1}, tmp_path / 'x.pth')
    command = ['convert', str(tmp_path / 'x.pth'), str(tmp_path / 'out'), '--model', 'test_ceit']
    assert cli.main([*command, '--model-kwargs', 'img_size=128']) == 0
    first, mapped, resized, new, dropped, last = capsys.readouterr().out.splitlines()
    assert first.endswith('x.pth → test_ceit, 4 classes')
    assert mapped == f'mapped: {len(model.state_dict()) - 1} tensors'
    assert (resized, new, dropped) == ('resized: 1: pos_embed (of pos_embed)', 'new, not in the file: 0', 'dropped: 0')
    assert last == f"timm.create_model('local-dir:{tmp_path}/out', pretrained=True)"
    assert timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True)(torch.rand(2, 3, 128, 128)).shape == (2, 4)

    assert cli.main([*command, '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['num_classes'] == 4 and report['folder'] == str(tmp_path / 'out') and not report['resized']
    assert report['mapped']['head.weight'] == ['head.weight']


@pytest.mark.parametrize(
    'src, model, message',
    [
        ('nosuch.pth', 'test_ceit', "no checkpoint at 'nosuch.pth'"),
        ('x.pth', 'test_ce1t', "timm has no model 'test_ce1t': did you mean test_ceit?"),
        ('x.pth', 'test_ceit', 'not a CeiT checkpoint: 1 keys, among them weight'),
        (
            'x.pth',
            'test_ceit --model-kwargs wdith=3',
            "test_ceit cannot be built with wdith=3: CeiT.__init__() got an unexpected keyword argument 'wdith'",
        ),
    ],
)
def test_convert_says_what_is_wrong(src, model, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({'weight': torch.ones(1)}, 'x.pth')
    assert cli.main(['convert', src, 'out', '--model', *model.split()]) == 1
    error = capsys.readouterr().err
    assert error == f'timm-extra: {message}\n'
    assert not (tmp_path / 'out').exists()


def recorded(monkeypatch, name, result):
    calls = []

    def call(*args, **kwargs):
        calls.append((args, kwargs))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(hub, name, call)
    return calls


def test_push_hands_its_arguments_on(monkeypatch, capsys):
    calls = recorded(monkeypatch, 'push', 'https://localhost/owner/name/commit/1')
    assert cli.main(['push', 'folder', 'owner/name']) == 0
    assert capsys.readouterr().out == 'https://localhost/owner/name/commit/1\n'
    more = ['--private', '--revision', 'v1', '--create-pr', '--message', 'first', '--training-data', 'ImageNet-1k']
    assert cli.main(['push', 'folder', 'owner/name', *more]) == 0
    plain = dict(private=None, revision=None, create_pr=False, commit_message=None, training_data=None)
    full = dict(private=True, revision='v1', create_pr=True, commit_message='first', training_data='ImageNet-1k')
    assert calls == [(('folder', 'owner/name'), plain), (('folder', 'owner/name'), full)]


def test_pull_hands_its_arguments_on(monkeypatch, capsys):
    calls = recorded(monkeypatch, 'pull', 'dest')
    assert cli.main(['pull', 'owner/name', 'dest', '--revision', 'v1', '--force']) == 0
    assert capsys.readouterr().out == "timm.create_model('local-dir:dest', pretrained=True)\n"
    assert calls == [(('owner/name', 'dest'), dict(revision='v1', force=True))]


@pytest.mark.parametrize('verb', ['push', 'pull'])
def test_errors_of_the_hub_are_reported_in_one_line(verb, monkeypatch, capsys):
    recorded(monkeypatch, verb, hub.HubError('no repository owner/name'))
    assert cli.main([verb, *(('folder', 'owner/name') if verb == 'push' else ('owner/name', 'dest'))]) == 1
    captured = capsys.readouterr()
    assert captured.err == 'timm-extra: no repository owner/name\n' and captured.out == ''


def test_push_needs_a_model(tmp_path, capsys):
    assert cli.main(['push', str(tmp_path), 'owner/name']) == 1
    error = capsys.readouterr().err
    assert error.startswith('timm-extra: ') and error.count('\n') == 1


@pytest.mark.parametrize(
    'model, more, expected',
    [
        ('test_ceit', [], r'class-token attention of block 5 over 10×10 patches; layer-wise .*, 2 heads over 6 layers'),
        ('test_perceiver', ['--block', '0'], r'attention of latents 0, .* over 224×224 inputs'),
        ('test_perceiver_io', ['--latents', '1', '3'], 'attention of latents 1, 3 over 224×224 inputs'),
    ],
)
def test_plot_attention(model, more, expected, image, tmp_path, capsys):
    output = tmp_path / 'a.png'
    command = ['plot', 'attention', image, '--model', model, '--model-kwargs', 'num_classes=3', '--output', str(output)]
    assert cli.main([*command, *more]) == 0
    what, path = capsys.readouterr().out.splitlines()
    assert re.fullmatch(expected, what) and path == str(output)
    assert Image.open(output).size[0] > 150


def test_plot_attention_of_a_checkpoint_and_of_a_backbone(image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = timm.create_model('test_ceit', num_classes=3)
    torch.save(model.state_dict(), 'x.pth')
    command = ['plot', 'attention', image, '--model', 'test_ceit']
    assert cli.main([*command, '--checkpoint', 'x.pth']) == 0
    plot_attention(model.eval(), image, 'b.png')
    assert np.array_equal(Image.open('attention.png'), Image.open('b.png'))
    assert cli.main([*command, '--model-kwargs', 'num_classes=0', '--output', 'c.png']) == 0
    assert Image.open('c.png').size[0] > 100


@pytest.mark.parametrize(
    'more, message',
    [
        (['--model', 'test_resnet'], 'CeiT and Perceivers have attention to draw, got ResNet'),
        (['--model', 'test_ceit', '--block', '6'], 'blocks are 0 to 5, got 6'),
        (['--model', 'test_ceit', '--model-kwargs', 'wdith=3'], "unexpected keyword argument 'wdith'"),
        (['--model', 'test_ceit', '--latents', '1'], 'a CeiT has no latents'),
        (['--model', 'test_perceiver', '--latents', '9999'], 'latents are 0 to '),
        (['--model', 'test_perceiver', '--block', '99'], 'blocks with a cross-attend are 0 to '),
        (
            ['--model', 'test_ceit', '--iters', '3', '--mask', 'x'],
            'attention takes no --iters, --mask, which islands does',
        ),
    ],
)
def test_plot_attention_says_what_is_wrong(more, message, image, tmp_path, capsys):
    output = tmp_path / 'a.png'
    assert cli.main(['plot', 'attention', image, '--output', str(output), *more]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not output.exists()
