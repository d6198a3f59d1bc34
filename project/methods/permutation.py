"""Permutation alone: matched units are averaged, badly matched ones stay separate up to the budget."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor

from project.alignment import Alignment, Similarity, UnitMap, unaligned
from project.allocation import Budget, by_gain, check_growth, stagewise, uniform, unspent, why_not_larger, widest_maps
from project.errors import ConfigurationError, one_of, whole
from project.fit import separation_gains
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.matching import By, Matching
from project.moments import INPUTS, UNITS
from project.runtime import tell

Separate = Literal["gain", "front", "back", "uniform"]


class Permutation(Method):
    """Align the sources' units by permutation, then average those that are merged (Git Re-Basin, arXiv 2209.04836).

    Args:
        matching: ``activations``: units that do the same on the calibration pictures, compared over all of them at
            every value of their group; ``weights``: units whose weights agree, by coordinate ascent, without data;
            ``both`` (MuDSC, arXiv 2403.01753): by α S_w + (1 − α) S_act, the correlations of their weights and of
            their activations, by the same ascent.
        similarity: For activations alone: ``distance`` (the paper's) or ``correlation``.
        alpha: For both: α, the share of the weights.
        separate: Which units stay separate as the budget grows: those that gain most by it for their size (``gain``),
            whole groups from the ``front`` of the network or the ``back``, or the same share of all (``uniform``).
        step: Units of a group are separated this many at once, but for its last ones. Default: an eighth of the group,
            16 at most, and single ones for what these leave where it is more than 3 % of the budget. Processors work on
            channels by 8 or 16: uneven widths cost time that no multiply-accumulate shows.
        seed: Seed of the order in which matching by weights, or both, visits the groups.
        label: Name in tables and files; default: ``permutation``.
    """

    follows_owners = False
    """Whether merged units will be fitted to the source that owns a picture's domain."""

    def __init__(
        self,
        matching: By = "activations",
        similarity: Similarity = "distance",
        alpha: float = 0.5,
        separate: Separate = "front",
        step: int | None = None,
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(label)
        one_of(By, matching=matching)
        one_of(Separate, separate=separate)
        if step is not None:
            whole(1, step=step)
        self.matched = Matching(matching, similarity, alpha, seed)
        self.matching: By = matching
        self.similarity: Similarity = similarity
        self.alpha = alpha
        self.separate: Separate = separate
        self.step = step
        self.seed = seed
        self.needs = self.matched.needs
        if separate == "gain":
            self.needs |= {UNITS, INPUTS}

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse what the architecture does not allow: budgets, separating by gain, matching by activations."""
        check_growth(problem.spec, problem.fixed, budgets)
        if self.separate == "gain" and (reason := why_not_larger(problem.spec)) is not None:
            raise ConfigurationError(f"separate is 'gain', which no architecture allows where {reason}; use another.")
        self.matched.check(problem)
        return Preparation(self.matched.memory_estimate(problem))

    def align(self, problem: Problem, evidence: Evidence, run: Run) -> Alignment:
        """Match the units of all sources, alike in all processes."""
        return self.matched.align(problem, evidence, run.world)

    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Align once, then make a student for every budget."""
        check_growth(problem.spec, problem.fixed, budgets)
        alignment = self.align(problem, evidence, run)
        gains = self._gains(problem, evidence, alignment) if self.separate == "gain" else {}
        run.world.agree(gains)
        starts = []
        for budget in budgets:
            maps = self._allocate(problem, alignment, budget, gains)
            if (message := unspent(problem.spec, problem.fixed, maps, budget)) is not None:
                tell(f"{self.name}: {message}")
            starts.append(Merged(self.name, budget, problem.start(maps), matches=alignment.matches))
        yield from self.fit_students(starts, problem, evidence, run)

    def _gains(self, problem: Problem, evidence: Evidence, alignment: Alignment) -> dict[str, Tensor]:
        """Compute what keeping each row's sources apart is worth, given the fit that follows."""
        maps = {**problem.fixed, **{name: UnitMap.sorted(members) for name, members in alignment.members.items()}}
        return separation_gains(
            problem.spec, problem.sources, problem.owners, evidence.statistics, maps, fitted=self.follows_owners
        )

    def _allocate(
        self, problem: Problem, alignment: Alignment, budget: Budget, gains: Mapping[str, Tensor]
    ) -> dict[str, UnitMap]:
        """Choose unit maps within a budget."""
        spec, fixed = problem.spec, problem.fixed
        if self.separate == "gain":
            return by_gain(spec, alignment, fixed, budget, gains, step=self.step)
        if self.separate == "uniform":
            return uniform(spec, alignment, fixed, budget, step=self.step)
        return stagewise(spec, alignment, fixed, budget, front=self.separate == "front", step=self.step)

    def shapes(self, problem: Problem, budgets: Sequence[Budget]) -> list[dict[str, UnitMap]]:
        """Find unit maps of the students' widths, or of no smaller ones, before any units are matched.

        Args:
            problem: The sources.
            budgets: Sizes of the students.
        """
        spec, fixed, anyhow = problem.spec, problem.fixed, unaligned(problem.spec, len(problem.sources))
        if self.separate == "gain":
            return [widest_maps(spec, anyhow, fixed, budget) for budget in budgets]
        return [self._allocate(problem, anyhow, budget, {}) for budget in budgets]

    def fit_students(self, starts: list[Merged], problem: Problem, evidence: Evidence, run: Run) -> Iterator[Merged]:
        """Fit the students from their start points; here they stay as they are."""
        yield from starts
