"""What the command writes takes the place of nothing that it did not make."""

from pathlib import Path

import pytest
import timm
from PIL import Image

from timm_extra import _files, cli, demo, hub

PLOT = ['plot', 'islands', 'image.png', '--model', 'test_glom', '--output']
EXPORT = ['export', 'torch-export']
MODEL = ['--model', 'test_glom']


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((56, 56), 90).save('image.png')


@pytest.mark.parametrize('command', [[*PLOT, 'out.png'], [*EXPORT, 'out.png', *MODEL]], ids=['plot', 'export'])
def test_a_file_that_is_there_stays_unless_forced(command, capsys):
    Path('out.png').write_text('mine')
    assert cli.main(command) == 1
    error = 'timm-extra: out.png exists: name another file, or replace it with --force\n'
    assert capsys.readouterr().err == error and Path('out.png').read_text() == 'mine'
    assert cli.main([*command, '--force']) == 0
    assert Path('out.png').stat().st_size > 1000


@pytest.mark.parametrize(
    'name, said', [('nodir/x.png', "no folder at 'nodir'"), ('.', '. is a folder, not a file to write')]
)
@pytest.mark.parametrize('force', [[], ['--force']])
def test_places_that_are_none_are_named(name, said, force, capsys):
    for command in ([*PLOT, name], [*EXPORT, name, *MODEL]):
        assert cli.main([*command, *force]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f'timm-extra: {said}'
    with pytest.raises(OSError, match=said), _files.atomic_file(name):
        pytest.fail('something is written')


def test_a_message_names_a_folder_that_is_no_image_once(capsys):
    Path('odd_folder').mkdir()
    assert cli.main(['plot', 'islands', 'odd_folder', *MODEL]) == 1
    assert capsys.readouterr().err == 'timm-extra: odd_folder cannot be read: Is a directory\n'


@pytest.fixture
def untrained(monkeypatch):
    """A demo that is let through ends here."""

    class Started(Exception):
        pass

    def start(*args):
        raise Started

    monkeypatch.setattr(demo, 'write_digits', start)
    return Started


def test_the_demo_writes_to_its_own_folder_and_no_other(untrained, tmp_path, capsys):
    (tmp_path / 'photos').mkdir()
    with pytest.raises(untrained):
        demo.run_demo('photos')  # empty
    (tmp_path / 'photos' / 'me.jpg').touch()
    assert cli.main(['demo', '--output', 'photos']) == 1
    said = 'timm-extra: photos is no folder of a demo: choose another, or write there with --force\n'
    assert capsys.readouterr().err == said
    with pytest.raises(untrained):
        demo.run_demo('photos', force=True)
    (tmp_path / 'mine' / 'digits-seed0').mkdir(parents=True)
    model = timm.create_model('test_ceit', img_size=28, patch_size=4, in_chans=1, num_classes=10)
    hub.save(model, tmp_path / 'mine' / 'model', model_config=demo.LABELS)
    with pytest.raises(untrained):
        demo.run_demo('mine', seed=1)
    with pytest.raises(FileExistsError, match='holds a test_ceit of 10 classes, not a test_perceiver of 10 classes'):
        demo.run_demo('mine', model='perceiver')
