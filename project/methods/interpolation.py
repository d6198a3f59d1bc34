"""Linear mode connectivity: networks on the straight line between two sources (arXiv 1912.05671)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from project.allocation import Budget, stored_bytes
from project.errors import whole
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import Aligned, write


class Interpolation(Aligned):
    """Networks (1 − t) θᵃ + t θᵇ for t from 0 to 1, for every pair of sources a and b, by their numbers in their order.

    Two networks are linearly connected where no point between them does worse than its share of both ends: the largest
    gap is their *barrier*. ``results.json`` has it under ``connectivity``, ``connectivity.png`` shows the lines. The
    ends are among the points: where there are calibration pictures their batch norms are re-estimated as on the way,
    so that all are treated alike; else the statistics lie on the line between the sources' own.

    Args:
        steps: Number of steps from one source to the other, 1 to 1000; there is one point more.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files; default: ``interpolation``.

    Raises:
        ConfigurationError: If there is not even one step, or there are more than 1000.
    """

    single = False

    def __init__(self, steps: int = 10, align: Align = "none", label: str | None = None) -> None:
        super().__init__(align, label)
        whole(1, 1000, steps=steps)
        self.steps = steps

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Count in the memory of all points, which are held until they are scored."""
        count = len(problem.sources)
        points = (self.steps + 1) * count * (count - 1) // 2
        held = points * stored_bytes(problem.sources[0].state_dict())
        return super().prepare(problem, pictures, budgets, planned).adding(held, held)

    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make the points of every pair, each of one source's size, whatever the budgets."""
        space, names = Space.of(problem, evidence, run.world, self.align), problem.source_names
        averaged = [name for name, buffer in problem.sources[0].named_buffers() if buffer.is_floating_point()]
        buffers = {name: space.buffers(name) for name in averaged}
        for a, b in combinations(range(len(names)), 2):
            start, end = (
                space.sources[index] | {name: values[index].double() for name, values in buffers.items()}
                for index in (a, b)
            )
            for step in range(self.steps + 1):
                t = step / self.steps
                student = problem.start(space.maps)
                write(student, {name: (1 - t) * values + t * end[name] for name, values in start.items()})
                yield Merged(
                    f"{self.name}-{a + 1}-{b + 1}-{t:.3g}",
                    Budget(1.0),
                    student,
                    matches={} if step else space.matches,
                    learned={"path": {"method": self.name, "from": names[a], "to": names[b], "t": t}},
                )
