"""What a batch is made of: any data set, any number of processes, the same images."""

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset, TensorDataset

from timm_extra.pretrain.data import Collate, MakeViews, Samples, as_tensor, loader
from timm_extra.pretrain.located import LocatedView
from timm_extra.pretrain.views import BYOL_VIEWS, RandomView
from timm_extra.training.order import Batches


def pictures(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, 10 + i, 12), generator=generator, dtype=torch.uint8) for i in range(n)]


def folder(path, n=6, classes=True):
    for i, image in enumerate(pictures(n)):
        (path / (str(i % 2) if classes else '.')).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / (str(i % 2) if classes else '.') / f'{i}.png')
    return path


@pytest.mark.parametrize('kind', ['PIL', 'array', 'tensor', 'tuple', 'dict', 'grey'])
def test_items_of_any_kind(kind):
    image = pictures(1)[0]
    array = image.permute(1, 2, 0).numpy()
    item = {
        'PIL': Image.fromarray(array), 'array': array, 'tensor': image, 'tuple': (array, 4, 'more'),
        'dict': {'image': Image.fromarray(array), 'label': 4}, 'grey': Image.fromarray(array[..., 0]),
    }[kind]  # fmt: skip
    labelled = kind in ('tuple', 'dict')
    sample = Samples([item], 3, labelled=labelled)[(2, 0)]
    expected = image[:1].expand(3, -1, -1) if kind == 'grey' else image
    assert torch.equal(sample.image, expected)
    assert sample[1:] == (4 if labelled else -1, 2, 0)


def test_other_things_are_refused():
    with pytest.raises(ValueError, match='got str'):
        as_tensor('image', 3)
    with pytest.raises(ValueError, match=r'shape \(3, H, W\), got \(1, 4, 4\)'):
        as_tensor(np.zeros((4, 4)), 3)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match='Stream streams'):
        Samples(Stream(), 3)
    with pytest.raises(ValueError, match="one of raise, skip, got 'ignore'"):
        Samples([], 3, unreadable='ignore')
    with pytest.raises(ValueError, match="items have no 'image', their keys are img, label"):
        Samples([dict(img=0, label=1)], 3)[(0, 0)]
    with pytest.raises(ValueError, match=r'uint8, uint16 or floating-point in \[0, 1\], got torch.int32'):
        as_tensor(np.zeros((4, 4, 3), np.int32), 3)
    with pytest.raises(ValueError, match=r"image 0 has no class, a number, but 'cat'"):
        Samples([(pictures(1)[0], 'cat')], 3, labelled=True)[(0, 0)]


def test_classes_of_any_kind_are_no_matter_without_a_probe():
    image = pictures(1)[0]
    for label in ('cat', {'boxes': []}, torch.zeros(40), None):
        assert Samples([(image, label)], 3)[(0, 0)].label == -1


@pytest.mark.parametrize('channels', [1, 3])
def test_sixteen_bits_are_not_clipped(tmp_path, channels):
    grey = torch.linspace(0, 65535, 64).round().view(8, 8)
    array = grey.numpy().astype(np.uint16)
    Image.fromarray(array).save(tmp_path / 'deep.png')
    expected = (grey / 65535).expand(channels, 8, 8)
    for image in (Image.open(tmp_path / 'deep.png'), Image.fromarray(array.astype(np.int32))):
        torch.testing.assert_close(as_tensor(image, channels), expected)
    torch.testing.assert_close(as_tensor(Image.fromarray(array / np.float32(65535)), channels), expected)
    deep = np.repeat(array[..., None], 5, 2)
    torch.testing.assert_close(as_tensor(deep, 5), (grey / 65535).expand(5, 8, 8))


def test_too_many_pixels_are_unreadable(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 20)
    dataset = create_dataset('', root=str(tmp_path), split='train')
    assert Samples(dataset, 3, unreadable='skip')[(0, 0)].image is None


@pytest.mark.parametrize('classes', [True, False])
def test_timms_folders(tmp_path, classes):
    samples = Samples(create_dataset('', root=str(folder(tmp_path, classes=classes)), split='train'), 3)
    assert len(samples) == 6
    found = sorted((samples[(0, i)].image for i in range(6)), key=lambda image: image.shape)
    assert all(torch.equal(a, b) for a, b in zip(found, pictures(), strict=True))


@pytest.mark.parametrize('broken', [b'', b'no image', 'cut'])
def test_unreadable_images_raise_or_are_counted(tmp_path, broken):
    file = folder(tmp_path) / '1' / '3.png'
    file.write_bytes(file.read_bytes()[:60] if broken == 'cut' else broken)
    dataset = create_dataset('', root=str(tmp_path), split='train')
    with pytest.raises(ValueError, match=r"image \d \(.*3\.png\) cannot be read: .*unreadable='skip'"):
        [Samples(dataset, 3)[(0, i)] for i in range(6)]
    samples = Samples(dataset, 3, unreadable='skip')
    batch = Collate(None)([samples[(0, i)] for i in range(6)])
    assert batch['skipped'] == 1 and batch['at'] == [(0, i) for i in range(6)]
    assert len(batch['images']) == 6  # another one stands in
    unreadable = next(s for s in (samples[(0, i)] for i in range(6)) if s.image is None)
    with pytest.raises(ValueError, match='none of the 2 images'):
        Collate(None)([unreadable] * 2)


@pytest.mark.parametrize('processes, accumulate', [(1, 1), (2, 1), (3, 2), (1, 6)])
def test_any_number_of_processes_shares_the_same_steps(processes, accumulate):
    size = 6 // processes // accumulate or 1
    each = processes * accumulate * size
    parts = [
        list(Batches(32, size, steps=(0, 12), seed=5, rank=r, processes=processes, accumulate=accumulate))
        for r in range(processes)
    ]
    one = list(Batches(32, each, steps=(0, 12), seed=5))
    for step, batch in enumerate(one):
        micro = [parts[r][step * accumulate + a] for a in range(accumulate) for r in range(processes)]
        assert list(chain(*micro)) == batch


def test_every_epoch_has_its_own_order_and_no_image_twice():
    batches = list(Batches(20, 6, steps=(0, 6), seed=0))
    epochs = [list(chain(*batches[:3])), list(chain(*batches[3:]))]
    for epoch, items in enumerate(epochs):
        assert {e for e, _ in items} == {epoch}
        assert len({i for _, i in items}) == 18
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]
    assert list(Batches(20, 6, steps=(0, 6), seed=1)) != batches


def test_a_later_start_goes_on_where_it_would_have():
    batches = list(Batches(20, 3, steps=(0, 14), seed=0, accumulate=2))
    for start in (1, 3, 8):
        assert list(Batches(20, 3, steps=(start, 14), seed=0, accumulate=2)) == batches[2 * start :]


def test_too_few_images():
    with pytest.raises(ValueError, match='1 images, fewer than the 8 of a step'):
        Batches(1, 2, steps=(0, 1), seed=0, processes=2, accumulate=2)


@pytest.mark.parametrize('workers', [0, 2])
def test_views_do_not_depend_on_batches_or_workers(workers):
    samples = Samples(TensorDataset(torch.stack([p[:, :10] for p in pictures(6)])), 3)
    view = RandomView(BYOL_VIEWS[0], (3, 8, 8))
    make = MakeViews((view, view), seed=3)
    found = {}
    for batch in loader(samples, Batches(6, 2, steps=(0, 3), seed=0), Collate(make), workers):
        for i, at in enumerate(batch['at']):
            found[at] = torch.stack([v[i] for v in batch['views']])
    whole = make(torch.stack([p[:, :10] for p in pictures(6)]), [(0, i) for i in range(6)])
    for i in range(6):
        torch.testing.assert_close(found[(0, i)], torch.stack([v[i] for v in whole]))
        assert not torch.equal(*found[(0, i)])  # two views


@pytest.mark.parametrize('workers', [0, 2])
def test_places_of_views_do_not_depend_on_batches_or_workers(workers):
    samples = Samples(TensorDataset(torch.stack([p[:, :10] for p in pictures(6)])), 3)
    make = MakeViews((LocatedView(RandomView(BYOL_VIEWS[0], (3, 8, 8))),), seed=3)
    whole = make(torch.stack([p[:, :10] for p in pictures(6)]), [(0, i) for i in range(6)])[0]
    for batch in loader(samples, Batches(6, 2, steps=(0, 3), seed=0), Collate(make), workers):
        for i, (_, index) in enumerate(batch['at']):
            (view,) = batch['views']
            torch.testing.assert_close(view.images[i], whole.images[index])
            assert torch.equal(view.box[i], whole.box[index]) and view.flip[i] == whole.flip[index]


def test_callables_get_a_random_state_by_key():
    def noise(x):
        return x + torch.rand_like(x) + np.random.rand()

    make = MakeViews((noise, noise), seed=3)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    torch.manual_seed(0)
    first = make(images, [(0, 5), (0, 7)])
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))  # the state outside is what it was
    again = make(images, [(0, 5), (0, 9)])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], make(images, [(1, 5), (0, 7)])[0])
