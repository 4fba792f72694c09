"""Order and random numbers of a training, which depend on nothing but seed, epoch and index."""

import random
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import Sampler, Subset

Order = Callable[[np.random.Generator], Sequence[int]]  # of all indices, by a generator of an epoch's own


def order_of(dataset: Any) -> Optional[Order]:
    """The order that a data set, or its reader, wants to be read in, also through a `Subset`; None if it wants none."""
    if isinstance(dataset, Subset):
        order = order_of(dataset.dataset)
        return order and partial(_within, order, dataset.indices)
    found = (getattr(holder, 'epoch_order', None) for holder in (dataset, getattr(dataset, 'reader', None)))
    return next(filter(callable, found), None)


def _within(order: Order, indices: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Places in `indices` in the order that all indices have."""
    whole = np.asarray(order(rng))
    places = np.empty_like(whole)
    places[whole] = np.arange(len(whole))
    return np.argsort(places[np.asarray(indices)], kind='stable')


class Batches(Sampler):
    """Batches of (epoch, index) from one step to another, the same for any number of processes.

    Every epoch has an order of its own. A step takes `batch_size · processes · accumulate` images of it; what is left
    at the end of an epoch is left out.

    Args:
        length: Images in the data set.
        batch_size: Images per process and forward pass.
        steps: First step and the one after the last.
        seed: Seed of the orders.
        rank: Number of this process.
        processes: How many there are.
        accumulate: Forward passes per step.
        order: Gives the order of an epoch; any permutation when None.

    Raises:
        ValueError: The data set is smaller than a step.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        steps: Tuple[int, int],
        seed: int,
        rank: int = 0,
        processes: int = 1,
        accumulate: int = 1,
        order: Optional[Order] = None,
    ):
        self.length, self.batch_size, self.steps, self.seed = length, batch_size, steps, seed
        self.rank, self.processes, self.accumulate = rank, processes, accumulate
        self.order = order or (lambda rng: rng.permutation(length))
        self.steps_per_epoch = steps_per_epoch(length, batch_size * processes * accumulate)

    def __len__(self) -> int:
        return (self.steps[1] - self.steps[0]) * self.accumulate

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        size = self.batch_size * self.processes
        epoch, order = -1, None
        for step in range(*self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(np.random.default_rng([self.seed, epoch]))
            for part in range(self.accumulate):
                first = (step % self.steps_per_epoch * self.accumulate + part) * size + self.rank * self.batch_size
                yield [(epoch, int(i)) for i in order[first : first + self.batch_size]]


def steps_per_epoch(length: int, images: int) -> int:
    """Whole steps in a pass over the data.

    Args:
        length: Images in the data set.
        images: Images per step.

    Raises:
        ValueError: There is not one.
    """
    if length < images:
        raise ValueError(f'the data set has {length} images, fewer than the {images} of a step: lower `batch_size`')
    return length // images


@contextmanager
def random_state(key: Sequence[int]):
    """Random states of PyTorch (put back on the CPU alone), NumPy and Python set by a key, and put back at the end."""
    numbers = np.random.SeedSequence(list(key)).generate_state(3)
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            if torch.accelerator.is_available():
                torch.manual_seed(int(numbers[0]))
            else:  # the same for the CPU, without the stack trace that is kept for a GPU which may come: 0.7 ms a file
                torch.default_generator.manual_seed(int(numbers[0]))
            np.random.seed(numbers[1])
            random.seed(int(numbers[2]))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
