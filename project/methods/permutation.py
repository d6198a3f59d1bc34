"""Permutation alone: matched units are averaged, badly matched ones stay separate up to the budget."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor

from project.alignment import Alignment, Similarity, UnitMap, unaligned
from project.allocation import Budget, by_gain, check_growth, stagewise, uniform, unspent, widest_maps
from project.errors import ConfigurationError, one_of, whole
from project.fit import separation_gains, why_no_gains
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.matching import By, Matching
from project.moments import INPUTS, UNITS
from project.runtime import tell
from project.symmetry import Spec

Separate = Literal["gain", "front", "back", "uniform"]
GAINS = frozenset({UNITS, INPUTS})


class Permutation(Method):
    """Align the sources' units by permutation, then average those that are merged (Git Re-Basin, arXiv 2209.04836).

    Args:
        matching: ``activations``: units that do the same on the calibration pictures, compared over all of them at
            every value of their group; ``weights``: units whose weights agree, by coordinate ascent, without data;
            ``both`` (MuDSC, arXiv 2403.01753): by α S_w + (1 − α) S_act, the correlations of their weights and of
            their activations, by the same ascent.
        similarity: For activations alone: ``distance`` (the paper's) or ``correlation``.
        alpha: For both: α, the share of the weights.
        separate: Which units stay separate as the budget grows: those that gain most by it for their size (``gain``;
            beyond one source's size it takes moments of what the layers of the sources read), whole groups from the
            ``front`` of the network or the ``back``, or the same share of all (``uniform``). Default: by gain; from
            the front where units are matched without pictures, or gains are not known, which a message tells.
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
        separate: Separate | None = None,
        step: int | None = None,
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(label)
        one_of(By, matching=matching)
        if separate is not None:
            one_of(Separate, separate=separate)
        if step is not None:
            whole(1, step=step)
        self.matched = Matching(matching, similarity, alpha, seed)
        self.matching: By = matching
        self.similarity: Similarity = similarity
        self.alpha = alpha
        self.separate: Separate | None = separate
        self.step = step
        self.seed = seed
        self.needs = self.matched.needs
        if separate == "gain" or (separate is None and self.needs):  # what has no use for pictures is not to need any
            self.needs |= GAINS

    def needed(self, spec: Spec, budgets: Sequence[Budget]) -> frozenset[str]:
        """Moments of what layers read are for gains, which no student of one source's size has a use for."""
        return self.needs if self._by_gain(spec, budgets) else self.needs - (GAINS - self.matched.needs)

    def _way(self, spec: Spec) -> Separate:
        """How a budget is spent on students of a spec."""
        return self.separate or ("front" if not self.needs >= GAINS or why_no_gains(spec) else "gain")

    def _by_gain(self, spec: Spec, budgets: Sequence[Budget]) -> bool:
        """Whether what units gain decides on a student."""
        return self._way(spec) == "gain" and any(not budget.relative or budget.number > 1 for budget in budgets)

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse what the architecture does not allow: budgets, separating by gain, matching by activations."""
        check_growth(problem.spec, problem.fixed, budgets)
        reason = why_no_gains(problem.spec)
        if reason and self.separate == "gain":
            raise ConfigurationError(f"separate is 'gain', which no architecture allows where {reason}; use another.")
        message = None
        if reason and self.separate is None and any(problem.times(budget) > 1 for budget in budgets):
            message = f"{self.name} keeps units separate from the front, since gains are not known where {reason}"
        self.matched.check(problem)
        return Preparation(self.matched.memory_estimate(problem), message)

    def align(self, problem: Problem, evidence: Evidence, run: Run) -> Alignment:
        """Match the units of all sources, alike in all processes."""
        return self.matched.align(problem, evidence, run.world)

    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Align once, then make a student for every budget."""
        check_growth(problem.spec, problem.fixed, budgets)
        alignment = self.align(problem, evidence, run)
        gains = self._gains(problem, evidence, alignment) if self._by_gain(problem.spec, budgets) else {}
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
        spec, fixed, way = problem.spec, problem.fixed, self._way(problem.spec)
        if gains:
            return by_gain(spec, alignment, fixed, budget, gains, step=self.step)
        if way == "uniform":
            return uniform(spec, alignment, fixed, budget, step=self.step)
        return stagewise(spec, alignment, fixed, budget, front=way == "front", step=self.step)

    def shapes(self, problem: Problem, budgets: Sequence[Budget]) -> list[dict[str, UnitMap]]:
        """Find unit maps of the students' widths, or of no smaller ones, before any units are matched.

        Args:
            problem: The sources.
            budgets: Sizes of the students.
        """
        spec, fixed, anyhow = problem.spec, problem.fixed, unaligned(problem.spec, len(problem.sources))
        if self._by_gain(spec, budgets):
            return [widest_maps(spec, anyhow, fixed, budget) for budget in budgets]
        return [self._allocate(problem, anyhow, budget, {}) for budget in budgets]

    def fit_students(self, starts: list[Merged], problem: Problem, evidence: Evidence, run: Run) -> Iterator[Merged]:
        """Fit the students from their start points; here they stay as they are."""
        yield from starts
