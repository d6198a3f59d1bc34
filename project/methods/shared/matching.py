"""How the units of the sources are matched, for every method that can go by something other than their numbers."""

from dataclasses import dataclass
from typing import Literal

from project.alignment import (
    Alignment,
    Similarity,
    align_by_activations,
    align_by_both,
    align_by_weights,
    similarity_bytes,
)
from project.errors import ConfigurationError, between, one_of, seeds
from project.methods.problem import Evidence, Problem
from project.moments import UNITS
from project.runtime import MemoryEstimate, World

By = Literal["activations", "weights", "both"]


@dataclass(frozen=True)
class Matching:
    """A way to match units.

    Args:
        by: ``activations``: units that do the same on the calibration pictures, compared over all of them at every
            value of their group; ``weights``: units whose weights agree, by coordinate ascent, without data (Git
            Re-Basin, arXiv 2209.04836); ``both``: α times the correlation of their weights plus 1 − α times that of
            their activations, by the same ascent (MuDSC, arXiv 2403.01753).
        similarity: For activations alone: ``distance`` or ``correlation``.
        alpha: For both: α, the share of the weights. MuDSC tries 0.1, 0.2 … 0.9 and keeps the most accurate.
        seed: Seed of the order in which the ascent visits the groups.
    """

    by: By = "both"
    similarity: Similarity = "distance"
    alpha: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not known."""
        one_of(By, by=self.by)
        one_of(Similarity, similarity=self.similarity)
        between(0, 1, alpha=self.alpha)
        seeds(seed=self.seed)

    @property
    def needs(self) -> frozenset[str]:
        """What calibration must leave behind."""
        return frozenset() if self.by == "weights" else frozenset((UNITS,))

    def same(self, other: "Matching") -> bool:
        """Tell whether another matches units in the same way: settings that do not count may differ."""
        counts = {"activations": ("similarity",), "weights": ("seed",), "both": ("alpha", "seed")}
        return self.by == other.by and all(
            getattr(self, setting) == getattr(other, setting) for setting in counts[self.by]
        )

    def check(self, problem: Problem, argument: str = "matching") -> None:
        """Refuse activations of units that no value of the architecture holds alone.

        Args:
            problem: The sources.
            argument: What the user has set, for the message.
        """
        hidden = [group.name for group in problem.spec.free if not group.nodes]
        if self.needs and hidden:
            raise ConfigurationError(
                f"{argument} is {self.by!r}, but no value of this architecture holds the units of group {hidden[0]!r} "
                f"alone; use 'weights'."
            )

    def memory_estimate(self, problem: Problem) -> MemoryEstimate:
        """Estimate the similarities, which are gone once the units are matched."""
        kept = self.by == "both" and self.alpha < 1
        needed = similarity_bytes(problem.spec, len(problem.sources), kept=kept)
        return MemoryEstimate(needed, needed)

    def align(self, problem: Problem, evidence: Evidence, world: World) -> Alignment:
        """Match the units of all sources, alike in all processes."""
        spec, statistics, heads = problem.spec, evidence.statistics, problem.labels.mode == "shared"
        states = [source.state_dict() for source in problem.sources]
        if self.by == "weights":
            alignment = align_by_weights(spec, states, heads=heads, seed=self.seed)
        elif self.by == "activations":
            alignment = align_by_activations(spec, statistics, len(states), self.similarity)
        else:
            alignment = align_by_both(spec, states, statistics, self.alpha, heads=heads, seed=self.seed)
        world.agree(alignment.members, alignment.scores, alignment.distances)
        return alignment
