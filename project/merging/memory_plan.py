"""How much memory a merge may take, and what it will take: told before the long work begins."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import torch

from project.allocation import Budget, stored_bytes
from project.fit.memory_estimate import gather_bytes, gradient_bytes, picture_bytes, walk_bytes, widest
from project.merging.settings import Place, Settings
from project.methods import PictureCounts, Problem
from project.moments import PICTURES, needs_gradients
from project.moments.fisher import chunk
from project.runtime import MemoryEstimate, MemoryPlan, free_bytes, plan_memory, read_bytes
from project.runtime.memory import size


@dataclass(frozen=True)
class Planner:
    """Plans what is gathered together and what waits on disk.

    Args:
        room: Bytes that the merge may take.
        batch: Bytes that running the sources on one batch takes.
        estimate: Most that making students takes, or running one on a batch, with all of them beside it.
        free: What was free, in words.
        running: Bytes that running a student on a batch takes.
        students: Bytes of all students.
        kept: Bytes of pictures that methods look at again.
    """

    room: int
    batch: int
    estimate: MemoryEstimate
    free: str
    running: int = 0
    students: int = 0
    kept: int = 0

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
            sources = stored_bytes(problem.sources[0].state_dict()) * len(problem.sources)
            message += f", {size(sources)} are for the sources"  # which Lightning brings there afterwards
            free = max(0, free - sources)
        room = free if settings.memory is None else min(free, read_bytes(settings.memory))
        batch = gather_bytes(problem.spec, len(problem.sources), largest)
        if needs_gradients(settings.needs(problem.spec)):
            source = problem.sources[0]
            parameters = sum(one.numel() for one in source.parameters())
            batch += gradient_bytes(problem.spec, largest, chunk(source), parameters)
        together = max(place.scored, largest * len(pictures.domains))
        running = walk_bytes(max(_widest(problem, budget) for budget in settings.budgets), together)
        students = student_bytes(problem, settings)
        most = MemoryEstimate.most(estimate, MemoryEstimate(running, running)).adding(students)
        kept = (
            picture_bytes(problem.spec, sum(pictures.local.values())) if PICTURES in settings.needs(problem.spec) else 0
        )
        return cls(room, batch, most, message, running, students, kept)

    def plan(self, moments: Mapping[str, int]) -> MemoryPlan:
        """For some moments, by name, with the bytes of each; see :func:`~project.runtime.memory.plan_memory`."""
        return plan_memory(moments, self.batch if moments else 0, self.estimate, self.room, self.kept)

    def within(self, room: int) -> "Planner":
        """The same with other room."""
        return replace(self, room=room)


def student_bytes(problem: Problem, settings: Settings) -> int:
    """Estimate the bytes of all students; those that hold more than a network of their size take more.

    Args:
        problem: The sources.
        settings: What to make of them.
    """
    one, sizes = stored_bytes(problem.sources[0].state_dict()), [problem.times(budget) for budget in settings.budgets]
    return ceil(one * sum(sum(sizes) if method.single else 1.0 for method in settings.methods))


def _widest(problem: Problem, budget: Budget) -> int:
    """Values for one picture of the widest layer of a student: above one source's size, of all sources apart."""
    apart = len(problem.sources) if problem.times(budget) > 1 else 1
    return apart * widest(problem.spec, problem.spec.sizes)
