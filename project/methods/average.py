"""The plain average: unit i of one source with unit i of the others."""

from collections.abc import Iterator, Sequence

from project.alignment import unaligned
from project.methods.base import Merged, Method, Problem
from project.student import Budget, stagewise


class Average(Method):
    """The mean of the sources' weights, unit by unit of the same number, at one source's size.

    The reference that shows what alignment is for: sources from different bases average to noise.
    """

    def merge(self, problem: Problem, budgets: Sequence[Budget | float | str]) -> Iterator[Merged]:
        """One student of budget 1, whatever the budgets."""
        alignment = unaligned(problem.spec, len(problem.sources))
        yield Merged(self.name, Budget(1.0), problem.start(stagewise(problem.spec, alignment, problem.fixed, 1.0)))
