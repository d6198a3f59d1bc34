"""Threads that meet at every collective, in place of processes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Barrier, Thread, local
from typing import Any

import pytest
import torch
from helpers import Case
from torch import Tensor, fx, nn

from project.runtime import World
from project.student import reestimation
from project.student.graph import student_graph


@dataclass
class Meeting:
    """Where the threads of one run meet."""

    size: int
    barrier: Barrier = field(init=False)
    slots: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier, self.slots = Barrier(self.size, timeout=60), [None] * self.size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Thready(World):
    """A process that is a thread."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def reduce(self, tensor: Tensor) -> None:
        tensors = self.meeting.exchange(self.rank, tensor.clone())
        assert len({(one.shape, one.dtype) for one in tensors}) == 1
        tensor.copy_(torch.stack(tensors).sum(0))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        told = self.meeting.exchange(self.rank, (source, tensor.clone()))
        assert {owner for owner, _ in told} == {source}
        tensor.copy_(told[source][1])


CURRENT = local()


def in_turn(network: nn.Module) -> fx.GraphModule:
    """Trace a network, one thread after the other: meanwhile torch.fx changes what calling any module does."""
    world, graph = CURRENT.world, None
    for rank in range(world.size):
        if rank == world.rank:
            graph = student_graph(network)
        world.meeting.barrier.wait()
    assert graph is not None
    return graph


def together(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What the work returns in every process."""
    meeting, results = Meeting(size), [None] * size

    def process(rank: int) -> None:
        CURRENT.world = Thready(rank, size, meeting)
        try:
            with torch.no_grad():
                results[rank] = work(CURRENT.world)
        except BaseException:
            meeting.barrier.abort()
            raise

    threads = [Thread(target=process, args=(rank,)) for rank in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reestimation, "student_graph", in_turn)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(one is not None for one in results)
    return results


def dealt(problem: Case, world: World) -> Case:
    """The problem as one process has it: every picture is in one of them, the statistics are in all."""
    mine = {
        domain: [part for batch in batches if len(part := batch[world.rank :: world.size])]
        for domain, batches in problem.pictures.items()
    }
    return replace(problem, pictures=mine, world=world)
