"""What a model takes images for, with its own preprocessing and labels."""

import json

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from timm_extra import cli, hub
from timm_extra.inference.predict import class_labels, predict, predict_stream

CLASSES = ('cat', 'dog', 'cow', 'hen', 'fox', 'owl', 'bee')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Five colour photos of different sizes, two of them in a folder of the folder."""
    root = tmp_path_factory.mktemp('photos')
    generator = np.random.default_rng(0)
    (root / 'more').mkdir()
    for i, name in enumerate(('a.png', 'b.jpg', 'c.png', 'more/d.png', 'more/E.JPG')):
        image = generator.integers(0, 255, (20 + 7 * i, 30, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / name)
    (root / 'notes.txt').write_text('no image')
    return root


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A saved model with labels and a preprocessing of its own."""
    torch.manual_seed(0)
    model = timm.create_model('test_ceit', num_classes=7)
    config = dict(mean=[0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7], crop_pct=0.5)
    return hub.save(
        model, tmp_path_factory.mktemp('model') / 'm', data_config=config, model_config={'label_names': list(CLASSES)}
    )


def test_guesses_are_those_of_the_model_on_its_preprocessing(photos, folder):
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    found = list(predict(model, [photos / 'b.jpg', photos], topk=7, batch_size=2))
    names = ['b.jpg', 'a.png', 'b.jpg', 'c.png', 'more/E.JPG', 'more/d.png']
    assert [p.path for p in found] == [str(photos / name) for name in names]
    config = resolve_model_data_config(model)
    assert config['crop_pct'] == 0.5 and list(config['mean']) == [0.2, 0.3, 0.4]
    for prediction in found:
        x = create_transform(**config)(Image.open(prediction.path).convert('RGB'))[None]
        with torch.no_grad():
            expected = model(x).softmax(1)[0]
        assert [g.probability for g in prediction.guesses] == pytest.approx(sorted(expected.tolist(), reverse=True))
        for guess in prediction.guesses:
            assert guess.label == CLASSES[guess.index]
            assert guess.probability == pytest.approx(expected[guess.index].item(), abs=1e-6)


def test_grey_models_see_grey_images(photos):
    model = timm.create_model('test_glom', in_chans=1, num_classes=3)
    (found,) = predict(model, [photos / 'a.png'], topk=9)
    assert [g.label for g in found.guesses] == [str(g.index) for g in found.guesses]
    assert sum(g.probability for g in found.guesses) == pytest.approx(1)


def test_labels():
    assert class_labels(timm.create_model('test_resnet'))[:2] == ['tench, Tinca tinca', 'goldfish, Carassius auratus']
    assert class_labels(timm.create_model('test_resnet', num_classes=3)) == ['0', '1', '2']
    model = timm.create_model('test_resnet', num_classes=2)
    model.pretrained_cfg = dict(model.pretrained_cfg, label_names=['n1', 'n2'], label_descriptions={'n2': 'two'})
    assert class_labels(model) == ['n1', 'two']
    assert class_labels(timm.create_model('test_resnet', num_classes=0)) == []


TINY = dict(num_latents=8, latent_dim=16, num_heads=2, num_blocks=1, block_depth=1)


@pytest.mark.parametrize(
    'name, kwargs, options, message',
    [
        ('test_ceit', {}, dict(topk=0), 'topk must be at least 1, got 0'),
        ('test_ceit', {}, dict(batch_size=0), 'batch_size must be at least 1, got 0'),
        ('test_ceit', dict(num_classes=0), {}, 'has no classifier'),
        ('test_ceit', dict(in_chans=2), {}, 'images have 1 or 3 channels, the model takes 2'),
        ('perceiver_audio', TINY, {}, 'no audio files in'),
    ],
)
def test_unsuitable_models_and_options_are_refused(name, kwargs, options, message, photos):
    with pytest.raises(ValueError, match=message):
        predict(timm.create_model(name, **kwargs), [photos], **options)


def test_predict_prints_classes_and_json(photos, folder, capsys):
    model = ['--model', f'local-dir:{folder}']
    assert cli.main(['predict', str(photos / 'a.png'), *model, '--topk', '2']) == 0
    path, *guesses = capsys.readouterr().out.splitlines()
    assert path == str(photos / 'a.png') and len(guesses) == 2
    assert all(line.split()[1] == '%' and line.split()[2] in CLASSES for line in guesses)
    assert cli.main(['predict', str(photos), *model, '--json', '-b', '2']) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 5 and len(found[0]['guesses']) == 5
    assert found[0]['guesses'][0].keys() == {'index', 'label', 'probability'}


def test_unreadable_images_are_left_out_and_reported(photos, folder, tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'no image')
    (tmp_path / 'whole.png').write_bytes((photos / 'a.png').read_bytes())
    command = ['predict', str(tmp_path), '--model', f'local-dir:{folder}']
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == str(tmp_path / 'whole.png')
    assert captured.err.count('\n') == 1 and 'broken.png cannot be read: ' in captured.err
    assert cli.main([*command, '--json']) == 1
    broken, whole = json.loads(capsys.readouterr().out)
    assert broken['guesses'] == [] and 'cannot be read' in broken['error']
    assert whole['error'] is None and len(whole['guesses']) == 5


def test_a_checkpoint_brings_its_classes(photos, tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model('test_ceit', num_classes=3)
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    command = ['predict', str(photos / 'a.png'), '--model', 'test_ceit', '--json', '--checkpoint']
    assert cli.main([*command, str(tmp_path / 'x.pth')]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    (expected,) = predict(model, [photos / 'a.png'])
    assert [g['probability'] for g in found['guesses']] == pytest.approx([g.probability for g in expected.guesses])


@pytest.mark.parametrize(
    'more, message',
    [
        (['--model', 'test_ceit'], 'test_ceit has no published weights: give --checkpoint, or local-dir:FOLDER'),
        (['--model', 'test_ce1t'], "timm has no model 'test_ce1t': did you mean test_ceit?"),
        (['--model', 'test_ceit', '--checkpoint', 'nosuch.pth'], "no checkpoint at 'nosuch.pth'"),
        (['--model', 'local-dir:nosuch'], "no folder at 'nosuch'"),
        (['nosuch.png', '--model', 'FOLDER'], "no image or folder at 'nosuch.png'"),
        (['--topk', '0', '--model', 'FOLDER'], 'topk must be at least 1, got 0'),
    ],
)
def test_predict_reports_errors_in_one_line(more, message, photos, folder, capsys):
    more = [f'local-dir:{folder}' if word == 'FOLDER' else word for word in more]
    assert cli.main(['predict', str(photos / 'a.png'), *more]) == 1
    captured = capsys.readouterr()
    assert captured.err.strip() == f'timm-extra: {message}' and not captured.out


@pytest.fixture(scope='module')
def streamed(tmp_path_factory):
    """A saved Perceiver, and an image of 300 × 200 pixels as a tiled TIFF."""
    root = tmp_path_factory.mktemp('streamed')
    torch.manual_seed(0)
    model = timm.create_model('test_perceiver_io', num_classes=7)
    torch.nn.init.normal_(model.head.weight)
    hub.save(model, root / 'model', model_config={'label_names': list(CLASSES)})
    image = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    tifffile.imwrite(root / 'slide.tif', image, tile=(64, 64), photometric='rgb')
    (root / 'short.tif').write_bytes((root / 'slide.tif').read_bytes()[:-5000])
    return root, image


def test_streamed_images_are_seen_whole_and_unscaled(streamed, capsys):
    root, image = streamed
    model = timm.create_model(f'local-dir:{root / "model"}', pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ('mean', 'std'))
    x = ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model(x).softmax(1)[0]
    found = list(predict_stream(model, [root / 'slide.tif', root / 'short.tif'], topk=7))
    assert {g.label: g.probability for g in found[0].guesses} == pytest.approx(
        dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5
    )
    assert found[1].guesses == [] and 'short.tif is truncated' in found[1].error

    state = root / 'state'
    arguments = ['predict', str(root / 'slide.tif'), '--model', f'local-dir:{root / "model"}', '--stream', '--json']
    assert cli.main([*arguments, '--state', str(state)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row['guesses'][0]['label'] == CLASSES[int(expected.argmax())] and not state.exists()


@pytest.mark.parametrize(
    'more, message',
    [
        (['--state', 'a'], '--state goes with --stream'),
        (['--stream', '--as-timm'], '--stream reads pixels as they are: it takes no --input-size and no --as-timm'),
        (['other.tif', '--stream', '--state', 'a'], 'a state is of one image, got 2'),
    ],
)
def test_what_does_not_go_with_streaming_is_named(more, message, streamed, capsys):
    root, _ = streamed
    assert cli.main(['predict', str(root / 'slide.tif'), *more, '--model', f'local-dir:{root / "model"}']) == 1
    assert message in capsys.readouterr().err


def test_models_that_see_beyond_a_tile_are_refused(streamed):
    root, _ = streamed
    with pytest.raises(ValueError, match='this CeiT reads no image in tiles: Perceiver and Perceiver IO do'):
        predict_stream(timm.create_model('test_ceit'), [root / 'slide.tif'])
