"""The plain average: unit i of one source with unit i of the others."""

from collections.abc import Mapping, Sequence

import torch

from project.allocation import Budget
from project.methods.base import Method
from project.methods.problem import Problem, Run
from project.methods.shared import Arithmetic
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arguments import check_count, check_weights
from project.methods.shared.arithmetic import Combined
from project.runtime import MemoryEstimate
from project.student import Student


class Average(Arithmetic):
    """The mean of the sources' weights, unit by unit of the same number, at one source's size.

    The reference that shows what alignment is for: sources from different bases average to noise.

    Args:
        weights: What each source counts for, in their order; default: all the same. The mean divides by their sum.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``average``.
    """

    def __init__(self, weights: Sequence[float] | None = None, align: Align = "none", label: str | None = None) -> None:
        super().__init__(align, label)
        check_weights(weights)
        self.weights = weights

    def check(
        self,
        problem: Problem,
        pictures: Mapping[str, int],
        budgets: Sequence[Budget],
        planned: Mapping[str, Method],
    ) -> None:
        """Refuse weights of another number of sources."""
        super().check(problem, pictures, budgets, planned)
        check_count(self.weights, problem)

    def memory_estimate(
        self, problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget], batch: int
    ) -> MemoryEstimate:
        """Of matching, and of the weighted mean; the plain one is where every student starts."""
        if self.weights is None:
            return self.matching_demand(problem)
        return super().memory_estimate(problem, pictures, budgets, batch)

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """The weighted mean."""
        if self.weights is None:
            return Combined({})  # the student's start point
        shares = [weight / sum(self.weights) for weight in self.weights]
        pairs = list(zip(shares, space.sources, strict=True))
        # As steps from the mean, so that equal sources give themselves to the last bit.
        return Combined(
            {
                name: mean + torch.stack([share * (one[name] - mean) for share, one in pairs]).sum(0)
                for name, mean in space.mean.items()
            }
        )
