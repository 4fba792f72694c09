"""The loop: what it leaves behind, how it resumes, what it refuses; and the command around it."""

import csv
import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from tests.finetune.folders import write_images
from timm_extra import cli, hub
from timm_extra.finetune import FinetuneConfig, Labelled, finetune
from timm_extra.training import checkpoints
from timm_extra.training.interrupt import Interrupted

# all that has a state or draws random numbers
OPTIONS = dict(
    epochs=2, batch_size=8, lr=0.01, opt='adamw', warmup_epochs=0.5, mixup=0.2, cutmix=0.5, model_ema=True,
    clip_grad=1.0, layer_decay=0.9, checkpoint_interval=2, workers=0, device='cpu',
)  # fmt: skip


@dataclass
class Noisy(Dataset):
    """Random inputs of two classes that differ in brightness, and a signal at the read of one's choice."""

    count: int = 42
    at: Optional[int] = None
    number: int = signal.SIGINT
    reads: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.reads == self.at:
            os.kill(os.getpid(), self.number)
        self.reads += 1
        return torch.rand(1, 16, 16) + index % 2 / 2, index % 2


def train(output, at=None, number=signal.SIGINT, where='train', **options):
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = timm.create_model('test_resnet', num_classes=2, in_chans=1, drop_path_rate=0.2)
    sets = dict(train=Noisy(), validation=Noisy(20))
    sets[where].at, sets[where].number = at, number
    data = Labelled(**sets, label_names=['dark', 'bright'], data_config=dict(mean=(0.5,), std=(0.25,)))
    return finetune(model, data, output, FinetuneConfig(**{**OPTIONS, **options}))


def results(output):
    """All that a training computes: the weights of the last step and of the best, and the rows of the log."""
    (*_, last) = checkpoints.steps(output / 'checkpoints')
    state = checkpoints.read(output / 'checkpoints' / checkpoints.NAME.format(last))
    with open(output / 'log.csv') as file:
        rows = [{name: value for name, value in row.items() if name != 'seconds'} for row in csv.DictReader(file)]
    return last, state['task'], load_file(output / 'model' / 'model.safetensors'), rows


def assert_same(one, other):
    assert (one[0], one[3]) == (other[0], other[3])
    for mine, others in ((one[1]['state_dict'], other[1]['state_dict']), (one[2], other[2])):
        assert mine.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in mine.items())


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A training that nothing interrupted."""
    output = tmp_path_factory.mktemp('finished')
    done = train(output)
    return output, done


def test_it_leaves_the_best_model_a_curve_and_a_log(finished):
    output, done = finished
    assert {file.name for file in output.iterdir()} == {'model', 'checkpoints', 'log.csv', 'curve.png'}
    step, task, _, rows = results(output)
    assert step == 10 and [row['step'] for row in rows] == ['4', '9']
    assert [float(row['top1']) for row in rows] == [entry['top1'] for entry in done.history]
    assert done.best == max(entry['top1'] for entry in done.history)
    model = timm.create_model(f'local-dir:{output}/model', pretrained=True).eval()
    assert model.pretrained_cfg['label_names'] == ['dark', 'bright']
    assert tuple(model.pretrained_cfg['mean']) == (0.5,)
    # the average is what was evaluated and saved
    assert not torch.equal(task['state_dict']['fc.weight'], task['state_dict_ema']['fc.weight'])
    torch.manual_seed(0)
    data = [(torch.rand(1, 16, 16) + label / 2, label) for label in (0, 1) * 50]
    right = sum(int(model(x[None]).argmax() == label) for x, label in data)
    assert right > 70


@pytest.mark.parametrize('at', [0, 60], ids=lambda at: f'read {at}')
def test_killed_it_resumes_bit_for_bit_with_any_number_of_workers(at, finished, tmp_path):
    # not a fork, in which autograd refuses to run after it has run here
    child = multiprocessing.get_context('spawn').Process(target=train, args=(tmp_path, at, signal.SIGKILL))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    train(tmp_path, resume=True, workers=2)
    assert_same(results(tmp_path), results(finished[0]))


@pytest.mark.parametrize(('where', 'at', 'step'), [('train', 60, 8), ('validation', 10, 5)])
def test_ctrl_c_writes_a_checkpoint_of_the_step_and_resumes_bit_for_bit(where, at, step, finished, tmp_path):
    with pytest.raises(Interrupted, match=rf'stopped after step {step} of 10; `resume=True` goes on from there'):
        train(tmp_path, at, where=where)
    assert checkpoints.steps(tmp_path / 'checkpoints')[-1] == step
    train(tmp_path, resume=True)
    assert_same(results(tmp_path), results(finished[0]))


def test_a_finished_training_stays_as_it_is(finished):
    output, done = finished
    before = results(output)
    assert train(output, resume=True).history == done.history
    assert_same(results(output), before)


def test_another_training_is_not_overwritten_or_gone_on_with(finished):
    output, _ = finished
    with pytest.raises(FileExistsError, match='is a file, not a folder'):
        train(output / 'log.csv')
    with pytest.raises(FileExistsError, match='has a model already'):
        train(output)
    with pytest.raises(ValueError, match=r'of another training: `lr` was 0\.01 and is 0\.02'):
        train(output, lr=0.02, resume=True)


def test_a_training_that_diverges_is_ended_before_it_is_saved(tmp_path):
    with pytest.raises(ValueError, match='diverged by step'):
        train(tmp_path, lr=1e30, opt='sgd', clip_grad=None, warmup_epochs=0)
    assert not (tmp_path / 'model').exists()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(train(None, epochs=1).history) == 1
    assert not list(tmp_path.iterdir())


COMMAND = [
    *('--model', 'test_resnet', '--input-size', '1', '16', '16', '--mean', '0.4', '--std', '0.3', '--device', 'cpu'),
    *('--epochs', '2', '-j', '0', '-b', '8', '--opt', 'sgd', '--lr', '0.01', '--hflip', '0', '--color-jitter', '0'),
]


def test_the_command_trains_a_model_that_predict_takes_from_its_folder(tmp_path, capsys):
    folder = write_images(tmp_path / 'images')
    assert cli.main(['finetune', str(folder), *COMMAND, '--output', str(tmp_path / 'out')]) == 0
    out, err = capsys.readouterr()
    assert 'best held-out accuracy' in out
    assert 'test_resnet' in err and '2: bright, dark' in err and '16 of' in err and 'steps' in err
    assert cli.main(['predict', str(folder / 'dark' / '0.png'), '--model', f'local-dir:{tmp_path}/out/model']) == 0
    out = capsys.readouterr().out
    assert 'dark' in out and 'bright' in out
    card = (tmp_path / 'out' / 'model' / 'README.md').read_text()
    assert 'Trained with labels: ' in card and 'on 16 images.' in card
    config = timm.create_model(f'local-dir:{tmp_path}/out/model').pretrained_cfg
    assert (tuple(config['input_size']), tuple(config['mean'])) == ((1, 16, 16), (0.4,))


@pytest.mark.parametrize('words', [['--unreadable', 'raise'], ['--unreadable', 'skip']], ids='='.join)
def test_a_file_that_is_no_image_ends_the_training_in_one_line_or_is_counted(words, tmp_path, capsys):
    folder = write_images(tmp_path / 'images', each=20)
    (folder / 'dark' / 'broken.png').write_bytes(b'no image')
    (folder / 'dark' / 'notes.txt').write_text('no image by its name')
    status = cli.main(['finetune', str(folder), *COMMAND, *words, '--output', str(tmp_path / 'out')])
    out, err = capsys.readouterr()
    assert 'notes.txt' in err
    if 'skip' in words:
        assert status == 0 and '2 unreadable files left out' in out
    else:
        assert status == 1 and 'broken.png cannot be read' in err.splitlines()[-1]
        assert not Path(tmp_path / 'out' / 'model').exists()


def test_an_unreadable_held_out_file_alone_in_its_batch_is_counted(tmp_path, capsys):
    for split, each in (('train', 8), ('validation', 4)):
        write_images(tmp_path / 'images' / split, each=each)
    (tmp_path / 'images' / 'validation' / 'dark' / 'z.png').write_bytes(b'no image')
    words = ['finetune', str(tmp_path / 'images'), *COMMAND, '--output', str(tmp_path / 'out')]
    assert cli.main(words) == 1  # the ninth of nine, in batches of eight
    assert 'z.png cannot be read' in capsys.readouterr().err.splitlines()[-1]
    assert checkpoints.steps(tmp_path / 'out' / 'checkpoints') == [2]  # what was learned is kept
    words[-1] = str(tmp_path / 'skip')
    assert cli.main([*words, '--unreadable', 'skip']) == 0
    assert '2 unreadable files left out' in capsys.readouterr().out  # in two epochs


def test_it_goes_on_with_the_same_files_alone(tmp_path, capsys):
    folder = write_images(tmp_path / 'images')
    words = ['finetune', str(folder), *COMMAND, '--output', str(tmp_path / 'out')]
    assert cli.main(words) == 0
    (folder / 'dark' / '0.png').rename(folder / 'dark' / '99.png')
    capsys.readouterr()
    assert cli.main([*words, '--resume']) == 1
    assert 'is of another training: files was ' in capsys.readouterr().err


@pytest.mark.parametrize(
    'words, message',
    [
        ('--output {images}/dark/out', 'lies in'),
        ('--output', 'it is empty'),
        ('--output {other}', 'has a model already: choose another folder, or go on by --resume'),
        ('--output {other} --resume', 'holds a test_vit of 2 classes, not a test_resnet of 2 classes: choose another'),
        ('--output {log}', 'log.csv is no log of such a training: choose another folder'),
        ('--output {out} --drop-path 2', '--drop-path must be at least 0 and below 1, got 2.0'),
        ('--output {out} --drop-path nan', '--drop-path must be at least 0 and below 1, got nan'),
        ('--output {out} --opt adahessian', '--opt adahessian needs second derivatives'),
        ('--output {out} --opt bnbadamw', '--opt bnbadamw cannot be made'),
        ('--output {out} --opt nope', '--opt nope cannot be made'),
        ('--output {out} --color-jitter inf', '--color-jitter must be finite'),
        ('--output {out} --ratio 1 inf', '--ratio must be a range'),
        ('--output {out} --input-size 1 0 16', '--input-size must be positive, got (1, 0, 16)'),
        ('--output {out} --model-kwargs features_only=True', 'no classifier'),
        ('--output {out} --model-kwargs global_pool=', 'the model takes no inputs of (1, 16, 16)'),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(words, message, tmp_path, capsys):
    places = {name: str(tmp_path / name) for name in ('images', 'other', 'log', 'out')}
    write_images(tmp_path / 'images')
    hub.save(timm.create_model('test_vit', num_classes=2), tmp_path / 'other' / 'model')
    (tmp_path / 'log').mkdir()
    (tmp_path / 'log' / 'log.csv').write_text('mine\n')
    before = sorted(tmp_path.rglob('*'))
    given = [word.format(**places) for word in words.split()] + ([''] if words == '--output' else [])
    try:
        status = cli.main(['finetune', places['images'], *COMMAND, *given])
    except SystemExit as e:
        status = e.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.rglob('*')) == before


def test_what_a_kill_left_behind_is_removed(finished):
    output, _ = finished
    for name in ('checkpoints/.1.step-00000003.pt', '.writing-a/x', 'model/.writing-b/x'):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).touch()
    train(output, resume=True)
    assert {file.name for file in output.iterdir()} == {'model', 'checkpoints', 'log.csv', 'curve.png'}
    assert not list(output.rglob('.*'))


def test_an_epoch_that_was_logged_and_not_kept_is_logged_once(finished, tmp_path):
    """Ended between the row of an epoch and its checkpoint, with one of the same step before."""
    shutil.copytree(finished[0], tmp_path / 'out')
    rows = (tmp_path / 'out' / 'log.csv').read_text()
    train(tmp_path / 'out', resume=True)
    assert (tmp_path / 'out' / 'log.csv').read_text() == rows
    file = tmp_path / 'out' / 'checkpoints' / checkpoints.NAME.format(10)
    state = checkpoints.read(file)
    state.update(history=state['history'][:1])  # as before the last epoch was measured
    checkpoints.write(state, file)
    train(tmp_path / 'out', resume=True)
    with open(tmp_path / 'out' / 'log.csv') as lines:
        assert [row['step'] for row in csv.DictReader(lines)] == ['4', '9']
