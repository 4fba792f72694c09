"""Audio files as a model sees them."""

import numpy as np
import pytest
import soundfile
import timm
import torch

from tests.finetune.folders import write_audio
from timm_extra import cli
from timm_extra.inputs import inputs_of
from timm_extra.inputs.audio import AudioReader

SAMPLES = 960  # 20 ms


def write(path, audio, rate=48_000, **options):
    soundfile.write(path, audio, rate, **options)
    return path


@pytest.fixture
def ramp():
    """A second that rises from −0.5 to 0.5, so that a value says where it was."""
    return np.linspace(-0.5, 0.5, 48_000)


@pytest.mark.parametrize(('ending', 'subtype'), [('wav', 'PCM_16'), ('wav', 'FLOAT'), ('flac', 'PCM_24')])
def test_the_middle_of_a_file_is_measured_sample_by_sample(ending, subtype, ramp, tmp_path):
    path = write(tmp_path / f'a.{ending}', ramp, subtype=subtype)
    x = AudioReader((1, SAMPLES)).read(path)
    assert (x.shape, x.dtype) == ((1, SAMPLES), torch.float32)
    expected = torch.from_numpy(ramp[24_000 - SAMPLES // 2 :][:SAMPLES]).float()
    torch.testing.assert_close(x[0], expected, atol=2**-15, rtol=0)


def test_training_takes_any_part_by_the_random_state(ramp, tmp_path):
    path = write(tmp_path / 'a.wav', ramp)
    reader = AudioReader((1, SAMPLES), random=True)
    torch.manual_seed(0)
    begins = [float(reader.read(path)[0, 0]) for _ in range(50)]
    torch.manual_seed(0)
    assert begins[0] == float(reader.read(path)[0, 0])
    assert min(begins) < -0.3 and max(begins) > 0.3


def test_what_is_shorter_is_followed_by_silence(tmp_path):
    x = AudioReader((1, SAMPLES)).read(write(tmp_path / 'a.wav', np.full(100, 0.5)))
    assert torch.equal(x[0] != 0, torch.arange(SAMPLES) < 100)


@pytest.mark.parametrize('rate', [16_000, 44_100, 96_000])
def test_another_sampling_rate_gives_the_same_sound_of_the_same_length(rate, tmp_path):
    times = np.arange(rate) / rate
    x = AudioReader((1, 4800)).read(write(tmp_path / 'a.wav', 0.5 * np.sin(2 * np.pi * 1000 * times), rate))
    spectrum = torch.fft.rfft(x[0]).abs()
    assert int(spectrum.argmax()) == 100  # of 10 Hz each
    assert float(x.abs().max()) == pytest.approx(0.5, abs=0.05)


def test_channels_are_averaged_or_kept_as_the_model_takes_them(tmp_path):
    stereo = write(tmp_path / 'stereo.wav', np.stack([np.full(2000, 0.5), np.full(2000, -0.25)], 1))
    mono = write(tmp_path / 'mono.wav', np.full(2000, 0.5))
    many = write(tmp_path / 'many.wav', np.zeros((2000, 3)))
    assert AudioReader((1, 10)).read(stereo)[:, 0].tolist() == pytest.approx([0.125], abs=1e-4)
    assert AudioReader((2, 10)).read(stereo)[:, 0].tolist() == pytest.approx([0.5, -0.25], abs=1e-4)
    assert AudioReader((2, 10)).read(mono)[:, 0].tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
    with pytest.raises(ValueError, match=r'many\.wav cannot be read: it has 3 channels, the model takes 2'):
        AudioReader((2, 10)).read(many)


def test_damaged_files_are_named_in_one_line(ramp, tmp_path):
    whole = write(tmp_path / 'whole.flac', ramp)
    cases = dict(
        text=b'no audio',
        empty=b'',
        cut=whole.read_bytes()[:30],
        nan=write(tmp_path / 'n.wav', [np.nan] * 9, subtype='FLOAT').read_bytes(),
        none=write(tmp_path / 'none.wav', []).read_bytes(),
    )
    for name, content in cases.items():
        path = tmp_path / f'damaged-{name}.wav'
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf'^\S*{path.name} cannot be read: [^\n]+$'):
            AudioReader((1, SAMPLES)).read(path)


def test_the_model_says_which_files_it_takes():
    audio = dict(stem='patches', patch_size=16, img_size=(SAMPLES,), in_chans=1)
    assert inputs_of(timm.create_model('test_perceiver', **audio)).kind.several == 'audio files'
    assert inputs_of(timm.create_model('test_resnet')).kind.several == 'images'
    with pytest.raises(ValueError, match='no files are read for this Perceiver, which takes inputs of 3×4×32×32'):
        inputs_of(timm.create_model('test_perceiver', img_size=(4, 32, 32)))


def test_sound_is_not_normalised_as_rgb_is():
    audio = dict(stem='patches', patch_size=16, img_size=(960,), in_chans=1)
    model = timm.create_model('test_perceiver', **audio)
    assert inputs_of(model).data_config == dict(mean=(0.0,), std=(1.0,))
    assert inputs_of(model, None, (0.5,), (0.25,)).data_config == dict(mean=(0.5,), std=(0.25,))
    model.pretrained_cfg.update(mean=(0.1,), std=(0.2,))  # as a saved folder states them
    assert inputs_of(model).data_config == dict(mean=(0.1,), std=(0.2,))


def test_finetune_and_predict_take_audio(tmp_path, capsys):
    folder = write_audio(tmp_path / 'audio')
    out = tmp_path / 'out'
    model = [
        *('--model', 'test_perceiver', '--model-kwargs'),
        *('stem=patches', 'patch_size=16', 'img_size=(960,)', 'in_chans=1'),
    ]
    options = ['--epochs', '6', '-b', '8', '-j', '0', '--lr', '3e-3', '--device', 'cpu', '--output', str(out)]
    words = ['finetune', str(folder), *model, *options]
    assert cli.main(words) == 0
    printed, shown = capsys.readouterr()
    assert float(printed.split('accuracy ')[1].split()[0]) > 70
    assert 'audio files  20 of' in shown
    wrong = 0
    for name in ('noise', 'tone'):
        assert cli.main(['predict', str(folder / name), '--model', f'local-dir:{out}/model', '--topk', '1']) == 0
        lines = capsys.readouterr().out.splitlines()
        wrong += sum(name not in line for line in lines[1::2])
    assert wrong < 7
    assert cli.main([*words[:1], str(tmp_path), *words[2:-1], str(tmp_path / 'x'), '--cutmix', '1']) == 1
    assert '--cutmix is not for audio files' in capsys.readouterr().err
