"""Methods that learn a few numbers by gradient descent on the entropy of unlabelled pictures, tensors staying fixed."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from project.allocation import Budget
from project.errors import above, at_least, one_of, seeds, whole
from project.fit.memory_estimate import gradient_bytes, picture_bytes
from project.methods.base import Method, Preparation
from project.methods.problem import PictureCounts, Problem, Run
from project.methods.shared.aligned import Align, Space
from project.methods.shared.arithmetic import Combined, FromBase
from project.methods.shared.blend import Blend
from project.methods.shared.curves import ALL
from project.methods.shared.entropy import Draws, Norms, Objective, check_heads
from project.moments import PICTURES
from project.student import Student

POINTS = 200
"""Points of a curve, about."""
COPIES = 12
"""Of one source's parameters, beside base, task vectors and student: a mask with its gradient and Adam's moments."""


class Learned(FromBase):
    """Coefficients of task vectors, or a mask of them, that make predictions on the calibration pictures sure.

    Args:
        scale: Where all coefficients λ start.
        steps: Steps of Adam.
        batch: Pictures of each domain in a step, over all processes.
        rate: Learning rate.
        norms: What batch norms normalise by meanwhile, see :class:`~project.methods.shared.entropy.Objective`.
        seed: Seed of the order of the pictures.
        align: ``none``, or how the sources' units are matched first: ``weights``, ``activations``, ``both``.
        label: Name in tables and files.
    """

    def __init__(
        self,
        scale: float,
        steps: int,
        batch: int,
        rate: float,
        norms: Norms,
        seed: int,
        align: Align = "none",
        label: str | None = None,
    ) -> None:
        super().__init__(align, label)
        at_least(0, scale=scale)
        whole(0, steps=steps)
        whole(1, batch=batch)
        seeds(seed=seed)
        above(0, rate=rate)
        one_of(Norms, norms=norms)
        self.scale, self.steps, self.batch, self.rate, self.seed = scale, steps, batch, rate, seed
        self.norms: Norms = norms
        self.needs = self.needs | {PICTURES}

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse pictures that no head answers for; count in the way back through the student, and the pictures."""
        preparation = super().prepare(problem, pictures, budgets, planned)
        check_heads(self.name, problem, pictures.domains)
        parameters = sum(parameter.numel() for parameter in problem.sources[0].parameters())
        batch = sum(min(self.batch, count) for count in pictures.local.values())
        step = gradient_bytes(problem.spec, batch, 1, parameters)
        step += 4 * (len(problem.sources) + COPIES) * parameters
        return preparation.adding(step + picture_bytes(problem.spec, sum(pictures.local.values())), step)

    def combine(self, space: Space, student: Student, run: Run) -> Combined:
        """Learn, and put the network together from what was learned."""
        problem, pictures = space.problem, space.evidence.pictures
        blend = self.blend(space, student)
        optimizer = self.optimizer(blend)
        objective = Objective(student, list(pictures), self.norms, run.world)
        draws = Draws(pictures, self.batch, self.seed, run.world)
        names, every = problem.source_names, max(1, self.steps // POINTS)
        curves: dict[str, dict[str, dict[int, float]]] = {}
        for step in tqdm(range(self.steps), desc=f"learning {self.name}", unit="step", leave=False, disable=None):
            before = self.summary(blend, names) if step % every == 0 else {}
            entropies = self.step(blend, objective, next(draws), step, self.steps, optimizer.step)
            if step % every == 0:
                note(curves, step, {**before, "entropy": {ALL: sum(entropies.values()) / len(entropies), **entropies}})
        note(curves, self.steps, self.summary(blend, names))
        with torch.no_grad():
            return Combined(self.merged(blend), self.layers(blend, problem), curves, self.plain(blend, names))

    @torch.enable_grad()
    def step(
        self,
        blend: Blend,
        objective: Objective,
        batch: Mapping[str, Tensor],
        step: int,
        steps: int,
        update: Callable[[], object],
    ) -> dict[str, float]:
        """Learn from one batch.

        Args:
            blend: What is learned, changed in place.
            objective: What falls.
            batch: domain -> this process' pictures.
            step: Number of the step.
            steps: How many there will be.
            update: Takes a step of the optimizer.

        Returns:
            For each domain, the mean entropy before the step.
        """
        entropies = self.differentiate(blend, objective, batch, step, steps)
        update()
        self.confine(blend)
        return entropies

    def optimizer(self, blend: Blend) -> torch.optim.Optimizer:
        """Make Adam over all that is learned; it passes over what has no gradient yet, or no longer."""
        return torch.optim.Adam(blend.parameters(), lr=self.rate)

    def constants(self, space: Space, student: Student) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute base and task vectors, in the student's precision."""
        like = next(student.network.parameters())
        base = {name: tensor.to(like) for name, tensor in space.base.items()}
        vectors = {
            name: torch.stack([source[name] - tensor for source in space.sources]).to(like)
            for name, tensor in space.base.items()
        }
        return base, vectors

    @abstractmethod
    def blend(self, space: Space, student: Student) -> Blend:
        """Set up what is learned, where it starts.

        Args:
            space: The sources, in one space.
            student: Of the mean of the sources.
        """

    @abstractmethod
    def differentiate(
        self, blend: Blend, objective: Objective, batch: Mapping[str, Tensor], step: int, steps: int
    ) -> dict[str, float]:
        """Set the gradients of what this step learns, and None as those of the rest; returns the entropies."""

    def confine(self, blend: Blend) -> None:
        """Bring what was learned back into its bounds."""

    @abstractmethod
    def merged(self, blend: Blend) -> dict[str, Tensor]:
        """Compute the student's parameters, once all is learned."""

    def summary(self, blend: Blend, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Measure a step for TensorBoard: for each source, the mean of its coefficients."""
        means = blend.coefficients.detach().mean(0).tolist()
        return {"coefficient": {ALL: sum(means) / len(means), **dict(zip(names, means, strict=True))}}

    def layers(self, blend: Blend, problem: Problem) -> dict[str, dict[str, float]]:
        """Measure what was learned of each layer's weights, where that differs from layer to layer."""
        rows = blend.coefficients.detach()
        if len(rows) == 1:
            return {}
        layers = {f"{layer.name}.weight": layer.name for layer in problem.spec.layers}
        return {
            layers[name]: {
                f"coefficient {source}": coefficient
                for source, coefficient in zip(problem.source_names, row, strict=True)
            }
            for name, row in zip(blend.base, rows.tolist(), strict=True)
            if name in layers
        }

    def plain(self, blend: Blend, names: Sequence[str]) -> dict[str, Any]:
        """Describe what was learned, for the student's file: for each source a coefficient, or one for each tensor."""
        rows = blend.coefficients.detach()
        columns = zip(names, rows.T.tolist(), strict=True)
        if len(rows) == 1:
            return {"coefficients": {name: column[0] for name, column in columns}}
        return {"coefficients": {name: dict(zip(blend.base, column, strict=True)) for name, column in columns}}


def note(
    curves: dict[str, dict[str, dict[int, float]]], step: int, measured: Mapping[str, Mapping[str, float]]
) -> None:
    """Add what was measured at a step to curves: quantity -> what of -> step -> value."""
    for quantity, values in measured.items():
        for name, value in values.items():
            curves.setdefault(quantity, {}).setdefault(name, {})[step] = value
