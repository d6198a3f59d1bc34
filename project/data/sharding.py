"""Which pictures each process gets, and in which order."""

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DistributedSampler


class EachOnce(DistributedSampler[Any]):
    """Deals the items of a data set out to the processes, in order, without repeating any to even the shares out.

    Lightning leaves a `DistributedSampler` that is already there alone. Processes are counted when iteration starts,
    so a loader may be made before there are any. Not for loops that synchronise at every batch, such as training.

    Args:
        dataset: What to sample from.
    """

    def __init__(self, dataset: Sized) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self._share = range(len(dataset))

    def __len__(self) -> int:
        """Number of items this process gets."""
        return len(self._mine())

    def __iter__(self) -> Iterator[int]:
        """Indices of the items this process gets."""
        return iter(self._mine())

    def _mine(self) -> range:
        rank, size = _place()
        return self._share[rank::size]


class Shuffled(DistributedSampler[Any]):
    """Deals the items of a data set out to the processes, in an order that the seed and the epoch alone decide.

    A fit that goes on from the end of an epoch so sees what one that was never interrupted would have seen. Item i is
    named i + n · draw, n being the number of items and the draw that of the order, so that the data set can vary the
    item alike, see :class:`~project.data.pictures.TrainingPictures`. Shares are made even by repeating items, as
    training needs it. Processes are counted when iteration starts.

    Args:
        dataset: What to sample from.
        seed: Seed of all orders, the same in every process.
        epoch: That of the first order; later ones come by :meth:`set_epoch`. Within an epoch each round has another.
        dealt: Whether each process has a share; else each has all.
    """

    ROUNDS = 2**20  # more than there are in any epoch

    def __init__(self, dataset: Sized, seed: int, epoch: int = 0, dealt: bool = True) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]
        self.dealt = dealt
        self.items, self.epoch, self.rounds = len(dataset), epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, as Lightning says of every one, after the first has begun already."""
        if epoch != self.epoch:
            self.epoch, self.rounds = epoch, 0

    def __len__(self) -> int:
        """Number of items that each process gets."""
        return -(-self.items // self._place()[1])

    def __iter__(self) -> Iterator[int]:
        """Names of the items this process gets, in the next order."""
        draw = self.epoch * self.ROUNDS + self.rounds
        self.rounds += 1
        generator = torch.Generator().manual_seed(seed_of(self.seed, draw))
        order = torch.randperm(self.items, generator=generator).tolist()
        rank, size = self._place()
        whole = [order[index % self.items] for index in range(len(self) * size)] if order else []
        return iter([index + self.items * draw for index in whole[rank::size]])

    def _place(self) -> tuple[int, int]:
        """Rank and number of the processes that share the items."""
        return _place() if self.dealt else (0, 1)


def seed_of(*numbers: int) -> int:
    """A seed that several numbers, none below 0, decide together."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _place() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
