"""How much memory a merge may take, and what it will take: told before the long work begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from project.allocation import Budget, stored_bytes
from project.fit.memory_estimate import gather_bytes, gradient_bytes
from project.merging.settings import Place, Settings
from project.methods import Method, PictureCounts, Problem
from project.moments import needs_gradients
from project.moments.fisher import chunk
from project.runtime import MemoryEstimate, MemoryPlan, free_bytes, plan_memory, read_bytes
from project.runtime.memory import size


@dataclass(frozen=True)
class Planner:
    """Plans what is gathered together and what waits on disk.

    Args:
        room: Bytes that the merge may take.
        batch: Bytes that running the sources on one batch takes.
        estimate: Most that any method's fit takes.
        free: What was free, in words.
    """

    room: int
    batch: int
    estimate: MemoryEstimate
    free: str

    @classmethod
    def of(
        cls,
        problem: Problem,
        settings: Settings,
        pictures: PictureCounts,
        estimate: MemoryEstimate,
        place: Place,
    ) -> "Planner":
        """From what is known before any picture is opened.

        Args:
            problem: The sources.
            settings: What to make of them.
            pictures: How many calibration pictures there will be.
            estimate: Most that any method's fit takes.
            place: Where the merge is going to run.
        """
        largest, device = pictures.largest, place.device
        free = free_bytes(device, place.sharing)
        message = f"{size(free)} are free on {device}"
        if torch.device(device).type != "cpu":
            message += f", {size(free_bytes())} on the host"
            networks = _networks(problem, settings.methods, settings.budgets)  # which Lightning brings there afterwards
            message += f", {size(networks)} are for sources and students"
            free = max(0, free - networks)
        room = free if settings.memory is None else min(free, read_bytes(settings.memory))
        batch = gather_bytes(problem.spec, len(problem.sources), largest)
        if needs_gradients(settings.needs):
            source = problem.sources[0]
            parameters = sum(one.numel() for one in source.parameters())
            batch += gradient_bytes(problem.spec, largest, chunk(source), parameters)
        return cls(room, batch, estimate, message)

    def plan(self, moments: Mapping[str, int]) -> MemoryPlan:
        """For some moments, by name, with the bytes of each; see :func:`~project.runtime.memory.plan_memory`."""
        return plan_memory(moments, self.batch if moments else 0, self.estimate, self.room)

    def within(self, room: int) -> "Planner":
        """The same with other room."""
        return replace(self, room=room)


def _networks(problem: Problem, methods: Sequence[Method], budgets: Sequence[Budget]) -> int:
    """Bytes of the sources, and of a student of every method and budget."""
    one = stored_bytes(problem.sources[0].state_dict())
    students = len(methods) * sum(problem.times(budget) for budget in budgets)
    return ceil(one * (len(problem.sources) + students))
