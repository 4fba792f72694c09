"""Errors where items are read and put together, in words: those of other processes arrive with their tracebacks."""

from typing import Any, Callable, Iterator, NamedTuple, Sequence, Union

from torch.utils.data import DataLoader, Dataset, IterableDataset


class Failed(NamedTuple):
    """What stands for an item or a batch that could not be made.

    Attributes:
        reason: Why, in a line.
        memory: It did not fit into memory, which says nothing about the item.
    """

    reason: str
    memory: bool = False


def in_words(call: Callable[..., Any], *args: Any) -> Any:
    """What a call returns, or `Failed` for a ValueError or MemoryError."""
    try:
        return call(*args)
    except ValueError as e:
        return Failed(str(e))
    except MemoryError as e:
        return Failed(str(e) or 'there is not enough memory', memory=True)


class ItemsInWords(Dataset):
    """A map-style data set with `Failed` in place of its errors."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, at: Any) -> Any:
        return in_words(self.dataset.__getitem__, at)


class StreamInWords(IterableDataset):
    """A data set that streams with `Failed` in place of its error, to fill the batch: what is not full is dropped."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        items, end = iter(self.dataset), object()
        while (item := in_words(next, items, end)) is not end:
            yield item
            while isinstance(item, Failed):
                yield item


class BatchesInWords:
    """Puts items together; `Failed` if one of them is or that cannot be done."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]):
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        failed = next((item for item in items if isinstance(item, Failed)), None)
        return failed or in_words(self.collate, items)


class RaisingLoader(DataLoader):
    """A loader that raises a ValueError in this process where a batch has failed."""

    def __iter__(self) -> Iterator[Any]:
        return _raised(super().__iter__())  # whose processes start now


def _raised(batches: Iterator[Union[Failed, Any]]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Failed):
            raise ValueError(batch.reason)
        yield batch
