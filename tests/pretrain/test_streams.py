"""Data sets that stream: they train, and say that resuming is not exact."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from timm_extra import hub
from timm_extra.cli import main
from timm_extra.pretrain import loop
from timm_extra.pretrain.data import Collate
from timm_extra.pretrain.streams import Stream, stream_loader
from timm_extra.training import checkpoints
from timm_extra.training.log import read_log

sys.path.insert(0, str(Path(__file__).parent))
from train import run


class Numbers(IterableDataset):
    """Images whose pixels are their number, divided among workers; the order depends on the pass."""

    def __init__(self, n=20, passes=None):
        self.n, self.epoch, self.left, self.begun = n, 0, passes, []

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.begun.append(self.epoch)
        if self.left is not None:
            self.left -= 1
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        info = get_worker_info()
        for i in order[info.id :: info.num_workers] if info else order:
            if self.left is None or self.left >= 0:
                yield dict(image=torch.full((1, 20, 20), i, dtype=torch.uint8), label=i)


class Sized(Numbers):
    def __len__(self):
        return self.n


SIMSIAM = dict(method='simsiam', checkpoint_interval=None)


def test_a_stream_trains_and_says_how_it_resumes(tmp_path, capsys):
    dataset = Numbers()
    assert run(tmp_path, dataset=dataset, num_train_steps=5, **SIMSIAM).steps == 5
    said = capsys.readouterr().err
    assert 'a stream, views of 1×16×16' in said
    assert 'note    the images stream: resuming is not exact, it begins another pass, in another order if the' in said
    assert dataset.begun == [0, 1]
    assert yaml.safe_load((tmp_path / 'args.yaml').read_text())['images'] is None
    assert 'on a stream of images' in (tmp_path / 'model' / 'README.md').read_text()
    hub.load(str(tmp_path / 'model'))
    again = Numbers()
    run(tmp_path, dataset=again, num_train_steps=9, resume=True, **SIMSIAM)
    assert again.begun == [5, 6]  # other passes than before
    assert 'resuming is not exact' in capsys.readouterr().err
    assert [int(row['step']) for row in read_log(tmp_path / 'log.csv')] == list(range(9))
    assert checkpoints.steps(tmp_path / 'checkpoints') == [5, 9]


def test_epochs_need_a_length(tmp_path):
    with pytest.raises(ValueError, match='how many there are is not known: give `num_train_steps`, not `epochs`'):
        run(tmp_path, dataset=Numbers(), epochs=2, num_train_steps=None)
    assert run(tmp_path, dataset=Sized(), epochs=2, num_train_steps=None, **SIMSIAM).steps == 4  # of 8 images each
    assert yaml.safe_load((tmp_path / 'args.yaml').read_text())['images'] == 20


@pytest.mark.parametrize('workers', [0, 2])
def test_every_image_comes_once_a_pass(workers):
    batches = iter(stream_loader(Stream(Numbers(), 1), 2, Collate(None), workers, False))
    first = [next(batches) for _ in range(10)]
    assert sorted(int(image.max()) for batch in first for image in batch['images']) == list(range(20))
    at = [at for batch in first for at in batch['at']]
    assert len(set(at)) == 20 and {epoch for epoch, _ in at} == {0}


def test_streams_that_end_or_have_nothing_are_named(tmp_path):
    with pytest.raises(ValueError, match='the images of the stream have ended at step 2'):
        run(tmp_path / 'once', dataset=Numbers(passes=1), num_train_steps=5, **SIMSIAM)
    with pytest.raises(ValueError, match='the images of the stream have ended at step 0'):
        run(tmp_path / 'none', dataset=Numbers(0), num_train_steps=5, **SIMSIAM)


class Broken(IterableDataset):
    def __init__(self, file, opened):
        self.file, self.opened = file, opened

    def __iter__(self):
        for i in range(16):
            image = Image.open(self.file) if i == 3 else Image.new('L', (20, 20), i)
            if i == 3 and self.opened:
                image.load()
            yield image, i


def test_an_image_that_cannot_be_read(tmp_path):
    file = tmp_path / 'cut.png'
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:900])
    options = dict(num_train_steps=2, **SIMSIAM)
    with pytest.raises(ValueError, match=r"image 3 of the stream cannot be read: .+; `unreadable='skip'` leaves"):
        run(tmp_path / 'a', dataset=Broken(file, False), **options)
    assert run(tmp_path / 'b', dataset=Broken(file, False), unreadable='skip', **options).skipped == 1
    with pytest.raises(ValueError, match='the stream ends at image 3, which cannot be read: '):
        run(tmp_path / 'c', dataset=Broken(file, True), unreadable='skip', **options)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'create_accelerator', lambda *_: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match='Numbers streams, which one process does: 2 need a data set with a length'):
        run(tmp_path, dataset=Numbers())


@pytest.mark.parametrize('opened', [False, True])
def test_messages_of_workers_are_a_line(opened, tmp_path):
    file = tmp_path / 'cut.png'
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:900])
    message = '^the stream ends at image 3, which' if opened else '^image [36] of the stream'
    with pytest.raises(ValueError, match=rf'{message} cannot be read: ') as caught:
        run(tmp_path / 'a', dataset=Broken(file, opened), num_train_steps=2, workers=2, **SIMSIAM)
    assert len(str(caught.value)) < 200 and '\n' not in str(caught.value)


class Plain(IterableDataset):
    """As most of them: every pass is the same."""

    def __iter__(self):
        return iter(torch.full((1, 20, 20), i, dtype=torch.uint8) for i in range(20))


def test_what_is_said_of_resuming_is_true_of_the_stream(tmp_path, capsys):
    run(tmp_path, dataset=Plain(), num_train_steps=1, **SIMSIAM)
    said = ' '.join(capsys.readouterr().err.split())
    assert 'resuming is not exact, it begins with the first image again, unless the data set shuffles by itself' in said
    first = next(iter(Stream(Plain(), 1, first_pass=3))).image
    assert not first.any()  # it is the first
    assert next(iter(Stream(Numbers(), 1, first_pass=3))).image.any()


@pytest.mark.parametrize('name', ['wds/shards', 'hfids/shards'])
def test_streams_of_timm_shuffle_by_the_seed(name, tmp_path, monkeypatch, capsys):
    """They do if they are of a training; labelled images for probes come in order."""
    made = []

    def create(name, **options):
        made.append(dict(options, name=name))
        return Numbers()

    monkeypatch.setattr('timm.data.create_dataset', create)
    words = 'pretrain simsiam --model test_vit --model-kwargs img_size=16 --input-size 1 16 16 --num-train-steps 1 -b 4'
    more = ['--cpu', '--workers', '0', '--seed', '5', '--task-args', 'projection_size=16', '--dataset', name]
    assert main([*words.split(), *more, '--data-dir', str(tmp_path), '--output', str(tmp_path / 'out')]) == 0
    (options,) = made
    assert options['name'] == name and (options['is_training'], options['seed'], options['batch_size']) == (True, 5, 4)
