"""Permutation alone: matched units are averaged, badly matched ones stay separate up to the budget."""

from collections.abc import Iterator, Sequence
from typing import Literal

from project.alignment import Alignment, Similarity, align_by_activations, align_by_weights
from project.errors import ConfigurationError, MergeError
from project.methods.base import Merged, Method, Problem
from project.moments import UNITS
from project.student import stagewise


class Permutation(Method):
    """Align the sources' units by permutation, then average those that are merged (Git Re-Basin, arXiv 2209.04836).

    Args:
        matching: ``activations``: units that do the same on the calibration pictures, compared over all of them at
            every value of their group; ``weights``: units whose weights agree, by coordinate ascent, without data.
        similarity: For activations: ``distance`` (the paper's) or ``correlation``.
        separate: Which groups stay separate as the budget grows: from the ``back`` of the network or the ``front``.
        seed: Seed of the order in which weight matching visits the groups.
        label: Name in tables and files; default: ``permutation``.
    """

    def __init__(
        self,
        matching: Literal["activations", "weights"] = "activations",
        similarity: Similarity = "distance",
        separate: Literal["back", "front"] = "back",
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(label)
        for name, value, allowed in (
            ("matching", matching, ("activations", "weights")),
            ("similarity", similarity, ("correlation", "distance")),
            ("separate", separate, ("back", "front")),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
        self.matching = matching
        self.similarity: Similarity = similarity
        self.separate = separate
        self.seed = seed
        self.needs = frozenset((UNITS,)) if matching == "activations" else frozenset()

    def align(self, problem: Problem) -> Alignment:
        """Match the units of all sources."""
        if self.matching == "weights":
            states = [source.state_dict() for source in problem.sources]
            return align_by_weights(problem.spec, states, heads=problem.labels.mode == "shared", seed=self.seed)
        if problem.statistics is None:
            raise MergeError("matching by activations needs statistics; gather them, or match by weights.")
        return align_by_activations(problem.spec, problem.statistics, len(problem.sources), self.similarity)

    def merge(self, problem: Problem, budgets: Sequence[float]) -> Iterator[Merged]:
        """One alignment, then a student for every budget."""
        alignment = self.align(problem)
        matches = {name: float(scores.mean()) for name, scores in alignment.scores.items()}
        starts = []
        for budget in budgets:
            maps = stagewise(problem.spec, alignment, problem.fixed, budget, front=self.separate == "front")
            starts.append(Merged(self.name, budget, problem.start(maps), matches=matches))
        yield from self.fit(starts, problem)

    def fit(self, starts: list[Merged], problem: Problem) -> Iterator[Merged]:
        """What follows the start points; nothing here."""
        yield from starts
