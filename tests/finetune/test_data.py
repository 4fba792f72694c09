"""What is learned from and what is held out, from folders of any form."""

import os

import pytest
import timm
import torch

from tests.finetune.folders import write_images
from timm_extra.finetune import FinetuneConfig, folder_data
from timm_extra.finetune.data import split_folder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=2, in_chans=1)


def paths(samples):
    return {path for path, _ in samples}


@pytest.mark.parametrize('names', [('train', 'validation'), ('training', 'val')], ids='-'.join)
def test_splits_of_a_folder_are_taken_by_any_name_that_timm_knows(names, tmp_path):
    write_images(tmp_path / names[0], ('a', 'b', 'c'), each=3)
    write_images(tmp_path / names[1], ('a', 'c'), each=2)  # no b: numbers are those of training all the same
    split = split_folder(tmp_path, holdout=0.5, seed=0)
    assert split.classes == ['a', 'b', 'c']
    assert [label for _, label in split.train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [label for _, label in split.validation] == [0, 0, 2, 2]
    assert not paths(split.train) & paths(split.validation)
    assert f'9 in {tmp_path / names[0]}, 4 held out in {tmp_path / names[1]}' in split.source


@pytest.mark.parametrize('inside', ['.', 'train'])
def test_without_a_folder_of_held_out_files_a_part_of_each_class_is_drawn_by_the_seed(inside, tmp_path):
    write_images(tmp_path / inside, each=10)
    one, again, other = (split_folder(tmp_path, holdout=0.3, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert paths(one.validation) != paths(other.validation)
    assert [label for _, label in one.validation] == [0] * 3 + [1] * 3  # bright, dark
    assert len(paths(one.train) | paths(one.validation)) == 20
    assert not paths(one.train) & paths(one.validation)
    assert 'holdout 0.3, seed 0' in one.source


@pytest.mark.parametrize(
    ('wanted', 'message'),
    [
        ({'train': ('a', 'b'), 'validation': ('a', 'x')}, "has the class 'x', which .*train has not"),
        ({'validation': ('a', 'b')}, 'has the folder validation, but none called train'),
        ({'.': ('a',)}, "has one class only, 'a'"),
        ({'.': ('.',)}, 'has no folders of classes'),
        ({'.': ('.', 'a')}, r'4 files in .* are in no folder of a class, such as .*\.png'),
    ],
    ids=['class', 'no train', 'one', 'none', 'outside'],
)
def test_folders_that_cannot_be_learned_from_are_refused_in_words(wanted, message, tmp_path):
    for split, classes in wanted.items():
        for name in classes:
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            write_images(tmp_path / 'aside', each=4)
            for file in (tmp_path / 'aside' / 'dark').iterdir():
                file.rename(folder / file.name)
            for file in [*tmp_path.glob('aside/*/*'), *tmp_path.glob('aside/*'), tmp_path / 'aside']:
                file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(ValueError, match=message):
        split_folder(tmp_path, holdout=0.2, seed=0)


def test_of_a_small_class_one_file_is_held_out_and_of_one_file_none(tmp_path):
    for name, each in (('many', 10), ('rare', 3), ('unique', 1)):
        write_images(tmp_path, (name,), each=each)
    split = split_folder(tmp_path, holdout=0.2, seed=0)
    assert [split.classes[label] for _, label in split.validation] == ['many', 'many', 'rare']


def test_one_file_a_class_leaves_nothing_to_measure(tmp_path):
    write_images(tmp_path, each=1)
    with pytest.raises(ValueError, match=r'`holdout=0\.2` holds out none'):
        split_folder(tmp_path, holdout=0.2, seed=0)


@pytest.mark.parametrize(
    'outer, inner',
    [(('cat', 'dog'), ('b1', 'b2')), (('chair', 'desk'), ('train', 'test')), (('Train', 'Val'), ('cat', 'dog'))],
    ids=['deep', 'ModelNet40', 'other names'],
)
def test_folders_that_would_be_one_class_are_refused(outer, inner, tmp_path):
    for name in outer:
        write_images(tmp_path / name, inner)
    with pytest.raises(ValueError, match='would be one class, as the name of a class is that of the folder'):
        split_folder(tmp_path, holdout=0.2, seed=0)


def test_folders_without_files_are_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty has no images: remove the folder'):
        split_folder(tmp_path, holdout=0.2, seed=0)


def test_a_linked_file_is_in_one_split(tmp_path):
    write_images(tmp_path / 'drawn', each=6)
    for name in ('bright', 'dark'):
        for file in list((tmp_path / 'drawn' / name).iterdir()):
            (file.parent / f'again-{file.name}').symlink_to(file)
    split = split_folder(tmp_path / 'drawn', holdout=0.4, seed=0)
    real = [{os.path.realpath(path) for path, _ in part} for part in (split.train, split.validation)]
    assert not real[0] & real[1] and len(real[1]) == 4 and len(split.validation) == 8
    write_images(tmp_path / 'train')
    (tmp_path / 'validation').symlink_to(tmp_path / 'train')
    with pytest.raises(ValueError, match='is held out and trained on'):
        split_folder(tmp_path, holdout=0.2, seed=0)


def test_numbers_of_classes_do_not_depend_on_the_process(tmp_path):
    """Names that sort alike come from a set, whose order is of the process."""
    write_images(tmp_path, ('1', '01', '001', '0001', '00001', '2', '02', '002'), each=2)
    split = split_folder(tmp_path, holdout=0.5, seed=0)
    assert split.classes == ['00001', '0001', '001', '01', '1', '002', '02', '2']


def test_held_out_images_are_seen_as_predict_sees_them_and_training_images_by_the_seed(tmp_path, model):
    from timm_extra.images import preprocessing

    config = FinetuneConfig(holdout=0.5)
    data = folder_data(write_images(tmp_path), model, config, input_size=(1, 24, 20), mean=(0.2,), std=(0.3,))
    image, label = data.validation[0]
    path = data.validation.samples[0][0]
    assert torch.equal(image, preprocessing(model, (1, 24, 20), (0.2,), (0.3,)).read(path))
    assert (image.shape, label, list(data.label_names)) == ((1, 24, 20), 0, ['bright', 'dark'])
    assert data.data_config['input_size'] == (1, 24, 20) and data.data_config['mean'] == (0.2,)
    torch.manual_seed(0)
    crops = [data.train[0][0] for _ in range(3)]
    assert not torch.equal(crops[0], crops[1])
