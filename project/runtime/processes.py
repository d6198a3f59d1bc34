"""Work that several processes share: each does its part, and all get the result.

The moments are sums over processes, so that each has the same equations to solve. Solving costs the cube of a layer's
unknowns, which no process need spend for another: layers that do not wait for each other are dealt out whole, and of a
single layer its row blocks, in runs of rows where there are more processes than blocks. What was solved is broadcast.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from project.errors import MergeError

LOST = re.compile(r"connection (was )?(closed|reset)|broken pipe|remote process exited", re.IGNORECASE)
"""What collectives tell of where another process has gone."""

Reduce = Callable[[Tensor], object]
"""Sums a tensor over all processes in place."""


@dataclass(frozen=True)
class World:
    """The processes of a run; by default this one alone.

    Args:
        rank: Number of this process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """Read rank and number of processes from ``torch.distributed``; one process where it is not initialised."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def reduce(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            _through(tensor, distributed.all_reduce)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Overwrite a tensor, in place, with what it is in one process."""
        if self.size > 1:
            _through(tensor, lambda moved: distributed.broadcast(moved, src=source))

    @contextmanager
    def together(self, failure: str) -> Iterator[None]:
        """Guard work in which no collective is called: where it fails in one process, it fails in all.

        Args:
            failure: What the others are told that a process could not do.

        Raises:
            MergeError: Where another process failed.
        """
        try:
            yield
        except Exception:
            self._count_failures(1)
            raise
        if self._count_failures(0):
            raise MergeError(f"another process {failure}; its own message says why.")

    def _count_failures(self, local: int) -> int:
        """Sum the failures of all processes."""
        count = torch.tensor(local)
        self.reduce(count)
        return int(count)

    def agree(self, *tables: Mapping[str, Tensor]) -> None:
        """Overwrite what every process has computed for itself, in place, with what the first has found.

        Machines may differ in the last bit, which is enough to match other units.

        Args:
            tables: Of the same names and shapes in every process.
        """
        for table in tables:
            for tensor in table.values():
                self.broadcast(tensor, 0)

    def gather_rows(self, batches: Sequence[Tensor]) -> Tensor:
        """The rows of all processes on the CPU, in the order of the data, whose rows are dealt out to them in turn.

        Args:
            batches: This process's, each (batch, ...).

        Returns:
            Shape (rows, ...), the same in every process.
        """
        local = torch.cat(list(batches))
        total = torch.tensor(len(local), device=local.device)
        self.reduce(total)
        whole = local.new_zeros(int(total), *local.shape[1:])
        whole[self.rank :: self.size] = local
        self.reduce(whole)
        return whole.cpu()

    def deal(self, costs: Sequence[float]) -> list[int]:
        """Assign every piece of work to a process, the same in all of them.

        The dearest first, each to whom has least to do so far: at most 4/3 of the shortest time there is (Graham,
        Bounds on Multiprocessing Timing Anomalies, 1969).

        Args:
            costs: Of the pieces.

        Returns:
            Rank of the process that does each piece.
        """
        return deal_out(costs, self.size)[0]


def lost(error: BaseException) -> bool:
    """Whether an error says that another process, with which this one was about to share something, has gone."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


ALONE = World()
"""One process that does everything."""


def _through(tensor: Tensor, call: Callable[[Tensor], object]) -> None:
    """Let a collective change a tensor; all backends but gloo know tensors of the accelerator alone."""
    accelerator = None if distributed.get_backend() == "gloo" else torch.accelerator.current_accelerator()
    moved = (tensor if accelerator is None else tensor.to(accelerator)).contiguous()
    call(moved)
    if moved is not tensor:
        tensor.copy_(moved)


def deal_out(costs: Sequence[float], size: int) -> tuple[list[int], float]:
    """Assign pieces of work to processes, see :meth:`World.deal`.

    Args:
        costs: Of the pieces.
        size: Number of processes.

    Returns:
        Rank of the process that does each piece, and the work of the process that has most.
    """
    loads, owners = [0.0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners, max(loads)
