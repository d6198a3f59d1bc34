"""Which units stay separate within a budget: whole groups from one end, all groups alike, or where it gains most."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
from torch import Tensor

from project.alignment import Alignment, UnitMap
from project.allocation.budget import Budget
from project.allocation.candidates import Choices, Vector, step_of
from project.allocation.limits import MET, growing
from project.allocation.search import best_counts
from project.allocation.size import price, source_size
from project.symmetry import Spec


def stagewise(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget,
    *,
    front: bool = False,
    step: int | None = 1,
) -> dict[str, UnitMap]:
    """Meet a budget by separating whole groups, one after the other (PLeaS' "zip" budgets).

    Groups are separated from the back of the network (or the front) as long as the budget lasts. The first that fits
    only in part splits the rows whose merging costs most, of three sources or more also in part: one source leaves
    while the others stay merged.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how far they are from each other.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        front: Separate from the front instead.
        step: A group takes so many steps at once, but for its last ones; of two sources, a step separates one row.
            None: see :func:`~project.allocation.candidates.step_of`; single steps fill what these leave.

    Returns:
        Unit map of every group; the student's size is within the budget, but never below a full merge.
    """
    spending = _Spending(spec, alignment, fixed, budget, step)
    names = [group.name for group in (growing(spec) if front else growing(spec)[::-1])]
    counts: dict[str, int] = {}
    for name in names:
        counts |= spending.grown(counts, [name], step, every=True)
        if counts[name] < spending.splittings[name].steps:
            break
    return spending.maps(spending.met(counts, names, every=True))


def uniform(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget,
    *,
    step: int | None = 1,
) -> dict[str, UnitMap]:
    """Meet a budget by taking the same share of every group's steps, those that cost most first.

    Args:
        spec: Groups of the sources.
        alignment: Matched units and how far they are from each other.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        step: A group takes so many steps at once, but for its last ones; of two sources, a step separates one row.
            None: see :func:`~project.allocation.candidates.step_of`; single steps fill what these leave.

    Returns:
        Unit map of every group; the largest share within the budget, rounded down to whole steps in each group, and
        then up in as many as the budget allows, those first that lost most.
    """
    spending = _Spending(spec, alignment, fixed, budget, step)
    totals = {name: splitting.steps for name, splitting in spending.splittings.items()}
    shares = sorted({Fraction(0), *(Fraction(n, total) for total in totals.values() for n in range(1, total + 1))})

    def at(share: Fraction) -> dict[str, int]:
        return {name: int(share * total) for name, total in totals.items()}

    most = bisect_left(shares, True, lo=1, key=lambda share: not spending.fits(at(share)))
    wanted = at(shares[most - 1])
    counts = {name: spending.whole(name, count, step) for name, count in wanted.items()}
    lost = sorted(totals, key=lambda name: (counts[name] - wanted[name]) / totals[name])
    return spending.maps(spending.met(spending.grown(counts, lost, step), lost))


def by_gain(
    spec: Spec,
    alignment: Alignment,
    fixed: Mapping[str, UnitMap],
    budget: Budget,
    gains: Mapping[str, Tensor],
    *,
    step: int | None = 1,
) -> dict[str, UnitMap]:
    """Meet a budget by separating the rows that gain most together.

    Args:
        spec: Groups of the sources.
        alignment: Matched units.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of the student.
        gains: group -> what keeping the sources of each row apart is worth, 0 or more, in the order of its unit map.
        step: Rows of a group are separated this many at once, but for its last ones. None: see
            :func:`~project.allocation.candidates.step_of`; single rows fill what these leave.

    Returns:
        Unit map of every group; the student's size is within the budget, but never below a full merge.
    """
    choices = Choices(spec, alignment, fixed, budget, step)
    ranked = choices.ranked(gains)
    values = [_running(gains[kind.group][rows]) for kind, rows in zip(choices.kinds, ranked, strict=True)]
    return choices.maps(best_counts(choices, values, MET), ranked)


def widest_maps(spec: Spec, alignment: Alignment, fixed: Mapping[str, UnitMap], budget: Budget) -> dict[str, UnitMap]:
    """Make each group as wide as the budget would allow it alone: no student of it is wider anywhere.

    Args:
        spec: Groups of the sources.
        alignment: Matched units.
        fixed: Unit maps of the picture and of the logits.
        budget: Largest size of a student; these maps themselves need not be within it.

    Returns:
        Unit map of every group.
    """
    choices = Choices(spec, alignment, fixed, budget)
    return choices.maps(choices.most, [kind.rows for kind in choices.kinds])


def separated(maps: Mapping[str, UnitMap]) -> dict[str, float]:
    """Measure what is kept apart: for every group, the share of the sources' units with student units of their own.

    Args:
        maps: Unit maps of a student.

    Returns:
        Group -> share, 0 to 1.
    """
    return {name: float((units.present.sum(1) == 1).sum()) / sum(units.sizes) for name, units in maps.items()}


def _running(gains: Tensor) -> Vector:
    """Add gains, shape (rows,), up to the values of separating the first 0, 1, … rows, shape (rows + 1,)."""
    return np.concatenate([[0.0], np.cumsum(gains.double().numpy())])


class _Spending:
    """Spends a budget on steps of groups, in an order that is given."""

    def __init__(
        self, spec: Spec, alignment: Alignment, fixed: Mapping[str, UnitMap], budget: Budget, step: int | None
    ) -> None:
        self.spec, self.step, self.price = spec, step, price(spec, budget.unit)
        self.limit = budget.limit(lambda unit: source_size(spec, fixed[spec.output.name], unit)) * (1 + 1e-9)
        self.merged = {**fixed, **{group.name: UnitMap.sorted(alignment.members[group.name]) for group in spec.free}}
        self.splittings = {group.name: alignment.splitting(group.name) for group in growing(spec)}

    def maps(self, counts: Mapping[str, int]) -> dict[str, UnitMap]:
        """Unit maps after so many steps of each group; those not named stay merged."""
        return {**self.merged, **{name: self.splittings[name].after(count) for name, count in counts.items()}}

    def size(self, counts: Mapping[str, int]) -> float:
        """Size of the student after so many steps of each group."""
        return self.price.total(self.spec, self.maps(counts))

    def fits(self, counts: Mapping[str, int]) -> bool:
        """Whether that is within the budget."""
        return self.size(counts) <= self.limit

    def whole(self, name: str, count: int, step: int | None) -> int:
        """Round a number of a group's steps down to a multiple of ``step``; all of them stay all."""
        splitting = self.splittings[name]
        return count if count == splitting.steps else count - count % step_of(step, len(splitting.members))

    def grown(
        self, counts: Mapping[str, int], names: Sequence[str], step: int | None, *, every: bool = False
    ) -> dict[str, int]:
        """Let groups take more steps where they fit.

        Args:
            counts: Steps that each group has taken.
            names: The groups, those first that are to grow first.
            step: How many steps are taken at once.
            every: Whether a group takes all that fit; else so many at most.
        """
        found = dict(counts)
        for name in names:
            now, total = found.get(name, 0), self.splittings[name].steps
            ends = [now, min(total, self.whole(name, now + step_of(step, len(self.splittings[name].members)), step))]
            if every and not self._exceeded(found, name, ends[-1]):
                ends += range(ends[-1] + 1, total + 1)
            fitting = bisect_left(ends, True, lo=1, key=partial(self._exceeded, found, name))
            found[name] = self.whole(name, ends[fitting - 1], step)
        return found

    def _exceeded(self, counts: Mapping[str, int], name: str, count: int) -> bool:
        return not self.fits({**counts, name: count})

    def met(self, counts: Mapping[str, int], names: Sequence[str], *, every: bool = False) -> dict[str, int]:
        """Take single steps, in turns, where those of the default length leave too much of the budget."""
        now, last = dict(counts), None
        while self.step is None and now != last and self.size(now) < MET * self.limit:
            last, now = now, self.grown(now, names, 1, every=every)
        return now
