"""Data sets that stream: images come one after another, and none by its number."""

from itertools import count
from typing import Iterator, Optional

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from timm_extra.images import UNREADABLE, as_tensor
from timm_extra.training.interrupt import ignore_interrupts
from timm_extra.training.workers import BatchesInWords, RaisingLoader, StreamInWords

from .data import Collate, Sample, image_of

CHECKPOINT_INTERVAL = 1000  # steps, for streams of unknown length
NOTE = 'the images stream: resuming is not exact, it begins {}'
NUMBERED = 'another pass, in another order if the data set shuffles'
AGAIN = 'with the first image again, unless the data set shuffles by itself'


def is_stream(dataset: Dataset) -> bool:
    """Whether a data set gives its images one after another only."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, '__len__')


def note_of(dataset: Dataset) -> str:
    """What resuming does with a data set that streams: only one with `set_epoch` knows which pass it is."""
    return NOTE.format(NUMBERED if hasattr(dataset, 'set_epoch') else AGAIN)


def length_of(dataset: Dataset) -> Optional[int]:
    """Images in a data set; None if it is a stream that does not say."""
    try:
        return len(dataset) or (None if is_stream(dataset) else 0)
    except (TypeError, NotImplementedError, AssertionError):
        return None


class Stream(IterableDataset):
    """Images of a data set that streams as tensors, pass after pass without an end.

    As everywhere in PyTorch, such a data set divides itself among the worker processes. Passes are numbered, and those
    after a resumption have other numbers than those before: a data set with `set_epoch` shuffles each in another way.

    Args:
        dataset: The data set; items as `Samples` takes them.
        channels: Channels of the images; PIL's are converted.
        unreadable: 'raise' or 'skip' what cannot be read.
        first_pass: Number of the first pass.
    """

    def __init__(self, dataset: Dataset, channels: int, unreadable: str = 'raise', first_pass: int = 0):
        self.dataset, self.channels, self.unreadable, self.first_pass = dataset, channels, unreadable, first_pass

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        for epoch in count(self.first_pass):
            if hasattr(self.dataset, 'set_epoch'):
                self.dataset.set_epoch(epoch)
            place = -1
            items = iter(self.dataset)
            while True:
                try:
                    item = next(items)
                except StopIteration:
                    break
                except UNREADABLE as e:  # a generator ends with what it raises
                    raise ValueError(f'the stream ends at image {place + 1}, which cannot be read: {e}') from e
                place += 1
                yield self._sample(item, epoch, place * workers + number)
            if place < 0:
                return

    def _sample(self, item, epoch: int, index: int) -> Sample:
        try:
            return Sample(as_tensor(image_of(item, self.channels)[0], self.channels), -1, epoch, index)
        except UNREADABLE as e:
            if self.unreadable == 'raise':
                hint = "; `unreadable='skip'` leaves such images out"
                raise ValueError(f'image {index} of the stream cannot be read: {e}{hint}') from e
            return Sample(None, -1, epoch, index)


def stream_loader(stream: Stream, batch_size: int, collate: Collate, workers: int, pin_memory: bool) -> DataLoader:
    """Batches of a stream, made by worker processes; their errors arrive as those of this process do."""
    return RaisingLoader(
        StreamInWords(stream),
        batch_size=batch_size,
        collate_fn=BatchesInWords(collate),
        num_workers=workers,
        pin_memory=pin_memory,
        drop_last=True,
        worker_init_fn=ignore_interrupts,
    )
