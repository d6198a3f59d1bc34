"""What conjugate gradients measure on their way, for TensorBoard and the table."""

from math import sqrt

from project.methods.shared.conjugate import ConjugateGradients
from project.methods.shared.systems import System

ALL = "all layers"


class Curves:
    """What is measured while systems are solved.

    Attributes:
        divergence: step -> what watching found.
    """

    def __init__(self) -> None:
        self.distances: dict[str, list[float]] = {}
        self.losses: dict[str, list[float]] = {}
        self.divergence: dict[int, float] = {}
        self._scales: dict[str, tuple[float, float]] = {}

    def note(self, system: System, solver: ConjugateGradients, step: int) -> None:
        """Measure a system that has just taken a step, or is about to take its first."""
        if step == 0:
            self._scales[system.name] = (solver.scale, system.scale)
            self.distances[system.name], self.losses[system.name] = [], []
        elif solver.steps < step:
            return
        self.distances[system.name].append(solver.distance)
        self.losses[system.name].append(system.energy(solver.solution, solver.residual))

    def summary(self, system: System, solver: ConjugateGradients) -> dict[str, float]:
        """Measure a solved system."""
        right, scale = (max(scale, 1e-300) for scale in self._scales[system.name])
        losses = self.losses[system.name]
        return {
            "residual_before": losses[0] / scale,
            "residual_after": losses[-1] / scale,
            "cg_residual": self.distances[system.name][-1] / right,
            "iterations": float(solver.steps),
        }

    def plain(self) -> dict[str, dict[str, dict[int, float]]]:
        """Collect the curves by quantity and tensor, and of all of them: those that are done stay where they are."""
        if not self.distances:
            return {}
        curves: dict[str, dict[str, dict[int, float]]] = {"cg residual": {}, "cg loss": {}}
        for name, distances in self.distances.items():
            right, scale = (max(scale, 1e-300) for scale in self._scales[name])
            curves["cg residual"][name] = dict(enumerate(distance / right for distance in distances))
            curves["cg loss"][name] = dict(enumerate(loss / scale for loss in self.losses[name]))
        right = max(sqrt(sum(scale**2 for scale, _ in self._scales.values())), 1e-300)
        scale = max(sum(scale for _, scale in self._scales.values()), 1e-300)
        steps = range(max(map(len, self.distances.values())))
        curves["cg residual"][ALL] = {
            step: sqrt(sum(distances[min(step, len(distances) - 1)] ** 2 for distances in self.distances.values()))
            / right
            for step in steps
        }
        curves["cg loss"][ALL] = {
            step: sum(losses[min(step, len(losses) - 1)] for losses in self.losses.values()) / scale for step in steps
        }
        if self.divergence:
            curves["cg divergence"] = {ALL: self.divergence}
        return curves
