"""What the command understands beyond argparse, and what it says where it does not."""

import pytest

from timm_extra import cli
from timm_extra.__main__ import arguments


def parsed(line):
    return cli.build_parser().parse_args(line.split())


def refused(line, capsys, status):
    """The one line that a command ends in."""
    if status == 2:
        with pytest.raises(SystemExit) as stop:
            cli.main(line.split())
        assert stop.value.code == 2
    else:
        assert cli.main(line.split()) == status
    (said,) = capsys.readouterr().err.splitlines()
    return said


@pytest.mark.parametrize(
    'line',
    [
        'predict a.jpg b.jpg --model m --mean 0.5 0.5 0.5 --model-kwargs img_size=32 depth=2',
        'predict --model m --mean 0.5 0.5 0.5 --model-kwargs img_size=32 depth=2 a.jpg b.jpg',
        'predict --model-kwargs img_size=32 depth=2 --model m --mean 0.5 0.5 0.5 a.jpg b.jpg',
        'predict --mean 0.5 0.5 0.5 a.jpg b.jpg --model m --model-kwargs img_size=32 depth=2',
        'predict --model m --model-kwargs img_size=32 --mean 0.5 0.5 0.5 --model-kwargs depth=2 a.jpg b.jpg',
        'predict --model m --model-kw img_size=32 depth=2 --mean 0.5 0.5 0.5 -- a.jpg b.jpg',
    ],
)
def test_lists_end_where_the_images_begin(line):
    args = parsed(line)
    assert args.images == ['a.jpg', 'b.jpg']
    assert args.mean == [0.5, 0.5, 0.5]
    assert args.model_kwargs == dict(img_size=32, depth=2)


def test_lists_end_where_another_positional_begins():
    args = parsed('plot --model m --mean -0.5 attention photo.jpg --latents 0 1')
    assert (args.picture, args.image, args.mean, args.latents) == ('attention', 'photo.jpg', [-0.5], [0, 1])
    args = parsed('pretrain --probes knn linear byol --model m --output out')
    assert (args.method, list(args.probes)) == ('byol', ['knn', 'linear'])


def test_arguments_of_a_script_keep_their_order():
    args = parsed('run train.py --mean 0.5 x.jpg --nope 1 -b 2')
    assert (args.script, args.args) == ('train.py', ['--mean', '0.5', 'x.jpg', '--nope', '1', '-b', '2'])


@pytest.mark.parametrize(
    'line, status, message',
    [
        ('predikt a.jpg', 2, "no command 'predikt': did you mean predict?"),
        ('xyz', 2, "no command 'xyz'"),
        ('predict a.jpg --modle m', 2, 'unrecognized argument --modle: did you mean --model?'),
        ('pretrain byol --model m --output o --batch-sise=3', 2, '--batch-sise: did you mean --batch-size?'),
        ('predict a.jpg --model m --model-kwargs =3', 2, "argument --model-kwargs: '=3' is not NAME=VALUE"),
        ('models seit', 1, 'seit'),
    ],
)
def test_misuse_is_one_line(line, status, message, capsys):
    assert message in refused(line, capsys, status)


@pytest.mark.parametrize(
    'model, message',
    [
        ('ceit_smal', "timm has no model 'ceit_smal': did you mean ceit_small?"),
        ('owner/name', 'a model of the Hub is hf-hub:owner/name'),
        ('ceit_small.nope', "ceit_small has no weights 'nope'"),
        ('resnet18.nope', "resnet18 has no weights 'nope', but "),
        ('local-dir:nope', "no folder at 'nope'"),
    ],
)
@pytest.mark.parametrize('verb', ['plot attention {image} --model', 'probe knn --data-dir . --model'])
def test_models_that_are_not_there(model, message, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photo.png').touch()
    assert message in refused(f'{verb.format(image="photo.png")} {model}', capsys, 1)


def test_a_saved_folder_without_its_prefix(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'out' / 'model').mkdir(parents=True)
    said = refused('probe knn --data-dir . --model out/model', capsys, 1)
    assert said.endswith("timm has no model 'out/model'; a saved folder is local-dir:out/model")


@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'mps:3', 'meta', ''])
@pytest.mark.parametrize('verb', ['predict photo.png', 'probe knn --data-dir .'])
def test_devices_that_are_not_there(device, verb, capsys):
    said = refused(f'{verb} --model test_ceit --device={device}', capsys, 1)
    assert said.startswith(f'timm-extra: no device {device!r} here, but cpu')


@pytest.mark.parametrize(
    'kwargs', ['nope=1', 'img_size=abc', 'depth=None', 'embed_dim=x', 'num_heads=0', 'in_chans=[1,2]', 'num_classes=-3']
)
@pytest.mark.parametrize('model', ['test_vit', 'test_ceit', 'test_resnet'])
def test_model_arguments_that_do_not_fit(kwargs, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photo.png').touch()
    refused(f'plot islands photo.png --model {model} --model-kwargs {kwargs}', capsys, 1)


@pytest.mark.parametrize('name', ['torch/nope', 'hfds/nope', 'nope'])
def test_data_sets_that_are_not_there(name, capsys, tmp_path):
    said = refused(f'probe knn --model test_resnet --dataset {name} --data-dir {tmp_path}/none', capsys, 1)
    assert name in said


def test_data_sets_that_could_be_downloaded(capsys, tmp_path):
    said = refused(f'probe knn --model test_resnet --dataset torch/cifar10 --data-dir {tmp_path}', capsys, 1)
    assert said == f'timm-extra: --dataset torch/cifar10 is not in {tmp_path}; --dataset-download fetches it'


@pytest.mark.parametrize(
    'more, message',
    [
        ('--mean 0.5 0.5', '--mean has 2 values for 3 channels'),
        ('--std 1 1 1 1', '--std has 4 values for 3 channels'),
        ('--std 0', '--std must be positive, got (0.0,)'),
        ('--std nan', '--std must be positive, got (nan,)'),
        ('--mean inf', '--mean must be finite, got (inf,)'),
    ],
)
def test_what_images_are_normalised_with(more, message, capsys, tmp_path):
    (tmp_path / 'photo.png').touch()
    assert message in refused(f'plot attention {tmp_path}/photo.png --model test_ceit {more}', capsys, 1)


def test_a_typing_error_is_no_script():
    assert arguments(['predikt', 'x']) == ['predikt', 'x']
    assert arguments(['train.py', 'x']) == ['run', 'train.py', 'x']
