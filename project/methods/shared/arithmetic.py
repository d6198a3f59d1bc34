"""What all methods share that compute one network's parameters from those of the sources, at one source's size."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from project.alignment import unaligned
from project.allocation import Budget
from project.errors import ConfigurationError
from project.methods.base import Merged, Method
from project.methods.problem import Evidence, Problem, Run
from project.methods.shared.aligned import Align, Space, matching_of
from project.runtime import MemoryEstimate
from project.student import Student


@dataclass(frozen=True, eq=False)
class Combined:
    """Parameters of the student and how they came about.

    Args:
        parameters: By name; those that are left out are the mean of the sources.
        layers: See :class:`~project.methods.base.Merged`.
        curves: See :class:`~project.methods.base.Merged`.
        learned: See :class:`~project.methods.base.Merged`.
    """

    parameters: Mapping[str, Tensor]
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    learned: Mapping[str, Any] = field(default_factory=dict)


class Aligned(Method):
    """Methods at one source's size, whatever the budgets, on sources whose units have been matched.

    Args:
        align: ``none``: unit i of one source with unit i of the others, right for sources of one base; ``weights``,
            ``activations`` or ``both``: match their units first, see Permutation, for sources of different bases;
            with settings of its own: ``{alpha: 0.3}`` or ``{by: activations, similarity: correlation}``, see
            :class:`~project.methods.shared.matching.Matching`.
        label: Name in tables and files.
    """

    def __init__(self, align: Align = "none", label: str | None = None) -> None:
        super().__init__(label)
        matching = matching_of(align)
        self.align: Align = matching if isinstance(align, Mapping) and matching is not None else align
        if matching is not None:
            self.needs = self.needs | matching.needs

    def check(
        self,
        problem: Problem,
        pictures: Mapping[str, int],
        budgets: Sequence[Budget],
        planned: Mapping[str, Method],
    ) -> None:
        """Refuse to go without a base that is needed, or to align what has one, and what alignment refuses."""
        needs_base = self.needs_base(planned)
        if needs_base and problem.base is None:
            raise ConfigurationError(
                f"method {self.name} needs base, which is not given; set it to the file or the torchvision weights "
                f"that the sources were fine-tuned from, or to 'mean' for the mean of the sources."
            )
        matching = matching_of(self.align)
        if matching is None:
            return
        if needs_base and problem.base != "mean":
            raise ConfigurationError(
                f"align of method {self.name} is {self.align!r}, which takes the sources' units out of the order that "
                f"base has them in; use align 'none', or base 'mean'."
            )
        matching.check(problem, "align")

    def needs_base(self, planned: Mapping[str, Method]) -> bool:
        """Whether it needs θ₀, given the methods that will have made a student before it."""
        return False

    def memory_estimate(
        self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget], batch: int
    ) -> MemoryEstimate:
        """Of the units' similarities, or, where that is more, of what follows.

        That is the sources' parameters in float64, as much again for what is made of them, and three networks more.
        """
        parameters = sum(one.numel() for one in problem.sources[0].parameters())
        needed = 8 * (2 * len(problem.sources) + 3) * parameters
        return MemoryEstimate.most(self.matching_demand(problem), MemoryEstimate(needed, needed))

    def matching_demand(self, problem: Problem) -> MemoryEstimate:
        """Of the units' similarities; nothing where they are matched by number."""
        matching = matching_of(self.align)
        return MemoryEstimate() if matching is None else matching.memory_estimate(problem)


class Arithmetic(Aligned):
    """One network, parameter by parameter.

    Buffers are no parameters: batch norm's are the mean of the sources' until they are re-estimated. Heads of different
    label spaces stay the sources' own.
    """

    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """One student of budget 1, whatever the budgets."""
        space = Space.of(problem, evidence, run.world, self.align)
        student = problem.start(space.maps)
        found = self.combine(space, student, run)
        write(student, found.parameters)
        yield Merged(
            self.name, Budget(1.0), student, found.layers, space.matches, curves=found.curves, learned=found.learned
        )

    @abstractmethod
    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """The student's parameters.

        Args:
            space: The sources, in one space.
            student: Of the mean of the sources; what is measured on it may change it.
            run: The processes, and the students that other methods have made.
        """


@torch.no_grad()
def write(student: Student, parameters: Mapping[str, Tensor]) -> None:
    """Give a student of one source's size its parameters, and its buffers where they are among them."""
    state = student.network.state_dict()
    for name, values in parameters.items():
        state[name].copy_(values)


def task_vectors(space: Space, base: Mapping[str, Tensor]) -> Tensor:
    """τᵢ = θᵢ − θ₀ over the base's parameters, in their order: float64, shape (sources, parameters)."""
    return torch.stack([torch.cat([(one[name] - base[name]).flatten() for name in base]) for one in space.sources])


class FromBase(Arithmetic):
    """Methods on the task vectors τᵢ = θᵢ − θ₀.

    A parameter that the base lacks, such as a head for other classes, becomes the mean of the sources.
    """

    def needs_base(self, planned: Mapping[str, Method]) -> bool:
        """It does."""
        return True

    def plan(self, problem: Problem) -> str | None:
        """Which parameters the base lacks."""
        if not isinstance(problem.base, nn.Module):
            return None
        space = Space(problem, Evidence(), unaligned(problem.spec, len(problem.sources)))
        lacking = [name for name in space.names if name not in space.base]
        return f"base lacks {', '.join(lacking)}: {self.name} takes their mean" if lacking else None


class TaskVectors(FromBase):
    """Methods on the task vectors, taken as one vector each."""

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """θ₀ and what is made of the task vectors."""
        base = space.base
        sizes = [tensor.numel() for tensor in base.values()]
        parts = torch.split(self.vector(task_vectors(space, base), sizes), sizes)
        moved = zip(base.items(), parts, strict=True)
        return Combined({name: tensor + part.view_as(tensor) for (name, tensor), part in moved})

    @abstractmethod
    def vector(self, vectors: Tensor, sizes: Sequence[int]) -> Tensor:
        """What is added to the base.

        Args:
            vectors: Task vectors, float64, shape (sources, parameters); may be overwritten.
            sizes: How many of the parameters each tensor has, in order.

        Returns:
            Shape (parameters,).
        """
