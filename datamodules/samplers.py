"""Which images a process gets, and when. Every image counts once, however many processes there are."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class Filler(int):
    """The index of a sample that is only there so that a process has a batch to compute; it weighs nothing.

    >>> Filler(3) == 3, isinstance(Filler(3), Filler)
    (True, True)
    """


class FillerBatches(Sampler[list[int]]):
    """One batch of a filler alone, for a process that has no image to test.

    >>> list(FillerBatches())
    [[0]]
    """

    def __iter__(self) -> Iterator[list[int]]:
        yield [Filler(0)]

    def __len__(self) -> int:
        return 1


class EpochSampler(Sampler[int]):
    """The order of the training images, and the number of the epoch for their augmentation.

    Lightning calls `set_epoch` before each epoch, with the number of epochs done: a resumed run goes on as if it had
    not stopped.

    Args:
        dataset: what is drawn from.
        shuffle: a new order each epoch, or always that of the records.
        seed: of the orders.
        epoch: scalar that holds the epoch; shared with the dataset.

    >>> sampler = EpochSampler(range(5), shuffle=True, seed=0)
    >>> first = list(sampler)
    >>> sampler.set_epoch(1)
    >>> sorted(first), list(sampler) == first
    ([0, 1, 2, 3, 4], False)
    """

    def __init__(self, dataset: Sized, shuffle: bool, seed: int, epoch: Tensor | None = None) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = torch.tensor(0) if epoch is None else epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is drawn next."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(len(self.dataset)))
        order = np.random.default_rng((self.seed, int(self.epoch))).permutation(len(self.dataset))
        return iter(order.tolist())


class SharedBatchSampler(Sampler[list[int]]):
    """Training batches of one order, each dealt out to all processes: a step sees the images it sees in one process.

    A process for which a last, small batch has no image gets a `Filler`, since all have to take part in a step.

    Args:
        sampler: the order.
        batch_size: images of a step, over all processes.
        rank: this process's number, from 0.
        processes: how many there are.

    >>> order = EpochSampler(range(5), shuffle=False, seed=0)
    >>> [list(SharedBatchSampler(order, batch_size=4, rank=rank, processes=2)) for rank in range(2)]
    [[[0, 2], [4]], [[1, 3], [4]]]
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.sampler = sampler  # Lightning finds its `set_epoch` by this name
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield batch[self.rank :: self.processes] or [Filler(batch[0])]


def own_slice(count: int, batch_size: int, rank: int = 0, processes: int = 1) -> slice:
    """Find the images that one of several processes tests: whole batches, as one process has them, in file order.

    Args:
        count: images in all.
        batch_size: images a batch.
        rank: this process's number, from 0.
        processes: how many there are; with more of them than batches some get nothing.

    >>> [own_slice(count=10, batch_size=4, rank=rank, processes=2) for rank in range(2)]
    [slice(0, 4, None), slice(4, 10, None)]
    """
    batches = -(-count // batch_size)
    first, last = (batches * number // processes * batch_size for number in (rank, rank + 1))
    return slice(min(first, count), min(last, count))
