"""`timm-extra flow`, as a user types it."""

import json
import sys
import wave

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.flow.standin import create_standin
from tests.samples import clip_file
from timm_extra import cli
from timm_extra.flow import read_flo, video
from timm_extra.flow.video import read_pixels

MODEL = ['--model', 'standin_flow', '--checkpoint', 'weights.pth', '--device', 'cpu']


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with weights, two images, a folder of three, a smaller image and what is none."""
    monkeypatch.chdir(tmp_path)
    torch.save(create_standin(5.0).state_dict(), 'weights.pth')
    (tmp_path / 'frames').mkdir()
    for name, grey in (('a', 0), ('b', 100), ('frames/1', 0), ('frames/2', 100), ('frames/10', 255)):
        Image.fromarray(np.full((6, 8), grey, dtype=np.uint8)).save(f'{name}.png')
    Image.new('L', (4, 3)).save('small.png')
    (tmp_path / 'single').mkdir()
    Image.new('L', (4, 3)).save('single/1.png')
    with wave.open('sound.wav', 'wb') as sound:
        sound.setparams((1, 2, 8000, 0, 'NONE', ''))
        sound.writeframes(bytes(800))
    (tmp_path / 'text.txt').write_text('no image')


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_images(tmp_path, capsys):
    assert cli.main(['flow', 'a.png', 'b.png', *MODEL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'a.png → b.png: mean 5.11 px, longest 5.11 px',
        '  flow/a.flo',
        '  flow/a.png',
    ]
    assert names(tmp_path / 'flow') == ['a.flo', 'a.png']
    assert read_flo('flow/a.flo')[:, 0, 0].tolist() == pytest.approx([-5, 5 * (200 / 255 - 1)], abs=1e-5)
    assert Image.open('flow/a.png').size == (8, 6)


def test_a_folder_of_frames_as_json(tmp_path, capsys):
    assert cli.main(['flow', 'frames', *MODEL, '--output', 'out', '--max-flow', '20', '--json']) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first.keys() == {'first', 'second', 'flo', 'png', 'mean', 'longest'}
    assert (second['first'], second['second']) == ('frames/2.png', 'frames/10.png')
    assert second['mean'] == pytest.approx(np.hypot(5 * (200 / 255 - 1), 5), rel=1e-5)
    assert names(tmp_path / 'out') == ['1.flo', '1.png', '2.flo', '2.png']
    red, green, blue = Image.open('out/1.png').getpixel((0, 0))
    assert min(red, green, blue) > 180  # 5 of 20 pixels: pale


def test_a_video(tmp_path, capsys):
    frame = Image.new('L', (8, 8))
    frame.save('clip.gif', save_all=True, append_images=[Image.new('L', (8, 8), 99), Image.new('L', (8, 8), 200)])
    assert cli.main(['flow', 'clip.gif', *MODEL, '--output', 'out']) == 0
    assert names(tmp_path / 'out') == ['clip-00000.flo', 'clip-00000.png', 'clip-00001.flo', 'clip-00001.png']
    assert 'frame 1 of clip.gif → frame 2 of clip.gif: mean' in capsys.readouterr().out


def test_files_that_are_there_stay_unless_forced(tmp_path, capsys):
    (tmp_path / 'flow').mkdir()
    (tmp_path / 'flow' / 'a.png').write_text('mine')
    assert cli.main(['flow', 'a.png', 'b.png', *MODEL]) == 1
    said = 'timm-extra: flow/a.png exists: name another file, or replace it with --force\n'
    assert capsys.readouterr() == ('', said) and names(tmp_path / 'flow') == ['a.png']
    assert cli.main(['flow', 'a.png', 'b.png', *MODEL, '--force']) == 0
    assert names(tmp_path / 'flow') == ['a.flo', 'a.png']


@pytest.mark.parametrize(
    'words, message',
    [
        ('a.png small.png', 'a.png is 8 × 6 and small.png is 4 × 3 pixels: flow needs images of one size'),
        ('a.png text.txt', 'text.txt cannot be read: cannot identify image file'),
        ('a.png frames', 'frames cannot be read: Is a directory'),
        ('a.png none.png', "no image at 'none.png'"),
        ('a.png', 'a.png has one frame, flow needs two'),
        ('single', 'single has one frame, flow needs two'),
        ('sound.wav', 'sound.wav has no pictures'),
        ('a.png b.png --output a.png/out', 'a.png is a file, not a folder to write to'),
        ('text.txt', 'text.txt cannot be read: Invalid data found when processing input'),
        ('none', "no video or folder at 'none'"),
        ('a.png b.png small.png', 'give two images, or one video or folder of frames, got 3 files'),
        ('a.png b.png --max-flow 0', '--max-flow must be positive and finite, got 0.0'),
        ('a.png b.png --output a.png', 'a.png is a file, not a folder to write to'),
        ('a.png b.png --output . --force', 'a.png is one of the images, and would be replaced: name another folder'),
        ('a.png b.png --device gpu', "no device 'gpu' here, but cpu"),
        ('a.png b.png --model-kwargs scle=3', "unexpected keyword argument 'scle'"),
    ],
)
def test_flow_says_what_is_wrong_before_a_model_is_loaded(words, message, tmp_path, capsys, monkeypatch):
    before = names(tmp_path)
    if '--model-kwargs' not in words:
        monkeypatch.setattr(cli.flow, 'create_classifier', None)
    assert cli.main(['flow', *MODEL, *words.split()]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count('\n') == 1 and printed.out == ''
    assert names(tmp_path) == before


def test_models_without_flow_or_weights_are_refused(capsys):
    assert cli.main(['flow', 'a.png', 'b.png', '--model', 'standin_flow']) == 1
    said = 'standin_flow has no published weights: give --checkpoint, or local-dir:FOLDER'
    assert said in capsys.readouterr().err
    torch.save(timm.create_model('test_ceit').state_dict(), 'ceit.pth')
    assert cli.main(['flow', 'a.png', 'b.png', '--model', 'test_ceit', '--checkpoint', 'ceit.pth']) == 1
    assert 'this CeiT estimates no flow: its inputs are 3×160×160, not 3×2×H×W' in capsys.readouterr().err
    assert cli.main(['flow', 'a.png', 'b.png', '--model-kwargs', 'num_classes=7']) == 1
    said = 'this PerceiverIO estimates no flow: its num_classes is 7, not 2, x and y of every pixel'
    assert capsys.readouterr().err == f'timm-extra: {said}\n'  # without asking the Hub for its weights


@pytest.mark.parametrize('json_wanted', [False, True])
def test_what_is_written_before_an_error_is_said(json_wanted, tmp_path, capsys):
    content = (tmp_path / 'b.png').read_bytes()
    (tmp_path / 'frames' / '10.png').write_bytes(content[:45])  # of which its header takes 41
    assert cli.main(['flow', 'frames', *MODEL, *(['--json'] if json_wanted else [])]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith('timm-extra: frames/10.png cannot be read: ') and printed.err.count('\n') == 1
    assert names(tmp_path / 'flow') == ['1.flo', '1.png']
    if json_wanted:
        assert [pair['flo'] for pair in json.loads(printed.out)] == ['flow/1.flo']
    else:
        assert printed.out.splitlines()[1:] == ['  flow/1.flo', '  flow/1.png']


def test_what_is_written_before_an_interruption_is_said(tmp_path, capsys, monkeypatch):
    def interrupt(path):
        if path.name == '10.png':
            raise KeyboardInterrupt
        return read_pixels(path)

    monkeypatch.setattr(video, 'read_pixels', interrupt)
    assert cli.main(['flow', 'frames', *MODEL, '--json']) == 130
    printed = capsys.readouterr()
    assert [pair['flo'] for pair in json.loads(printed.out)] == ['flow/1.flo']
    assert printed.err == 'timm-extra: interrupted\n'
    assert names(tmp_path / 'flow') == ['1.flo', '1.png']


def test_lines_and_the_bar_do_not_share_a_line_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr(sys, 'stdout', sys.stderr)  # as in a terminal
    assert cli.main(['flow', 'frames', *MODEL]) == 0
    screen = capsys.readouterr().err
    assert '| 0/2 [' in screen
    for line in screen.splitlines():
        assert 'pair' not in line or '→' not in line.split('\r')[-1]
    assert 'pair/s]frames' not in screen and 'pair/s]  flow' not in screen


def test_missing_pyav_is_said_for_videos_alone(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'av', None)
    assert cli.main(['flow', str(clip_file()), *MODEL]) == 1
    assert capsys.readouterr().err == 'timm-extra: videos need PyAV: pip install "timm-extra[video]"\n'
    assert cli.main(['flow', 'frames', *MODEL]) == 0
