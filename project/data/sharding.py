"""Every picture exactly once, however many processes there are."""

from collections.abc import Iterator, Sized
from typing import Any

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
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._share
        return self._share[distributed.get_rank() :: distributed.get_world_size()]
