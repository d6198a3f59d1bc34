"""Linear mode connectivity: networks on the straight line between two sources (arXiv 1912.05671)."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from project.errors import ConfigurationError
from project.methods.arithmetic import Aligned, write
from project.methods.base import Merged, Problem
from project.methods.space import Align, Space
from project.student import Budget


class Interpolation(Aligned):
    """Networks (1 − t) θᵃ + t θᵇ for t from 0 to 1, for every pair of sources.

    Two networks are linearly connected where no point between them does worse than its share of both ends: the largest
    gap is their *barrier*. ``results.json`` has it under ``connectivity``, ``connectivity.png`` shows the lines. The
    ends are among the points, with batch norms re-estimated as on the way, so that all are treated alike.

    Args:
        steps: Number of steps from one source to the other; there is one point more.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``interpolation``.

    Raises:
        ConfigurationError: If there is not even one step.
    """

    def __init__(self, steps: int = 10, align: Align = "none", label: str | None = None) -> None:
        super().__init__(align, label)
        if steps < 1:
            raise ConfigurationError(f"steps of method {self.name} is {steps}; allowed: 1 or more.")
        self.steps = steps

    def merge(self, problem: Problem, budgets: Sequence[Budget | float | str]) -> Iterator[Merged]:
        """The points of every pair, each of one source's size, whatever the budgets."""
        space, names = Space.of(problem, self.align), [name.replace(" ", "") for name in problem.source_names]
        for a, b in combinations(range(len(names)), 2):
            start, end = space.sources[a], space.sources[b]
            for step in range(self.steps + 1):
                t = step / self.steps
                student = problem.start(space.maps)
                write(student, {name: (1 - t) * one + t * end[name] for name, one in start.items()})
                yield Merged(
                    f"{self.name}-{names[a]}-{names[b]}-{t:.3g}",
                    Budget(1.0),
                    student,
                    matches={} if step else space.matches,
                    learned={"path": {"method": self.name, "from": names[a], "to": names[b], "t": t}},
                )
