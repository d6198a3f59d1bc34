"""The plain average: unit i of one source with unit i of the others."""

from collections.abc import Mapping, Sequence

import torch

from project.allocation import Budget
from project.methods.base import Method, Preparation
from project.methods.problem import PictureCounts, Problem, Run
from project.methods.shared import Arithmetic
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arguments import check_count, check_weights
from project.methods.shared.arithmetic import Combined
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

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse weights of another number of sources; the plain mean takes nothing, as every student starts there."""
        preparation = super().prepare(problem, pictures, budgets, planned)
        check_count(self.weights, problem)
        return preparation if self.weights is not None else Preparation(self.matching_memory(problem))

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """Compute the weighted mean."""
        if self.weights is None:
            return Combined({})  # the student's start point
        shares = [weight / sum(self.weights) for weight in self.weights]
        pairs = list(zip(shares, space.sources, strict=True))
        # As steps from the mean, so that equal sources give themselves to the last bit.
        return Combined(
            {
                name: mean + torch.stack([share * (source[name] - mean) for share, source in pairs]).sum(0)
                for name, mean in space.mean.items()
            }
        )
